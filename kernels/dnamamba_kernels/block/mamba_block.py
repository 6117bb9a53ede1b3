"""Add, norm and a Mamba mixer as one differentiable operator that keeps little for its backward pass.

    r = hidden + residual,   u = norm(r),   (x | z) = in_proj u,   x = silu(conv x),   (low | B | C) = x_proj x
    y = scan(x, dt_proj low, A, B, C, D, z),   hidden' = out_proj y

The backward pass takes one slice of the batch at a time (`dnamamba_kernels.block.slices`) and computes again:

    none    nothing
    cheap   all but the scan and what follows it; kept are r (the residual stream itself), the norm's rstd, x_proj's
            output, y, and the states that the scan's gradients start from: 3.1 KiB a position at d_model 256 in bf16,
            where autograd keeps 8 of the single operators
    all     everything; kept are r, rstd, and the states at the borders of slices: 1 KiB
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dnamamba_kernels.block.computation import BlockOptions, BlockWeights, Computation
from dnamamba_kernels.block.gradients import Kept, gradients
from dnamamba_kernels.block.slices import Slice, borders, cut, joined, only
from dnamamba_kernels.checks import check_sequence_ids

LEAST = 16
"""Positions of a slice within a sequence, at least: more than the convolution's state holds"""


def mamba_block(
    hidden: Tensor,
    residual: Tensor | None,
    weights: BlockWeights,
    options: BlockOptions,
    *,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    sequence_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One block over a batch of sequences; differentiable once, in every tensor, the states included.

    Args:
        hidden: (batch, length, d_model), what the block before gave, in the options' dtype or a wider one.
        residual: (batch, length, d_model), the residual stream; None in the first block.
        conv_state: (batch, width − 1, channels) in the options' dtype; None is zeros.
        ssm_state: (batch, channels, state) fp32; None is zeros.
        sequence_ids: (batch, length) int32 of packed windows: nothing crosses a change of id.

    Returns:
        hidden in the options' dtype, the residual stream with the block's input added, and both states after the last
        position.

    Raises:
        ValueError: ids of another shape or dtype, or what the single operators refuse.
    """
    check_sequence_ids(sequence_ids, hidden)
    return _Block.apply(hidden, residual, conv_state, ssm_state, sequence_ids, options, *weights)


class _Block(torch.autograd.Function):
    """`mamba_block`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        residual: Tensor | None,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        sequence_ids: Tensor | None,
        options: BlockOptions,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = BlockWeights(*parameters)  # type: ignore[arg-type]
        block = Computation(weights, options, hidden.flatten(0, 1))
        u, stream, rstd = block.add_norm(hidden, residual)
        run = _in_slices if options.recompute == "all" else _whole
        out, states, ctx.slices, ctx.chunk, kept = run(block, u, conv_state, ssm_state, sequence_ids)
        ctx.options, ctx.requested = options, block.requested
        ctx.dtypes = hidden.dtype, None if residual is None else residual.dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(stream, rstd, sequence_ids, conv_state, ssm_state, *block.w, *kept)
        return out, stream, *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dstream: Tensor | None, *dstates: Tensor | None) -> Any:
        stream, rstd, ids, conv_state, ssm_state, *saved = ctx.saved_tensors
        weights, values = BlockWeights(*saved[: len(BlockWeights._fields)]), saved[len(BlockWeights._fields) :]
        block = Computation(weights, ctx.options, stream.flatten(0, 1), ctx.requested)
        kept = Kept(block, stream, rstd, ids, conv_state, ssm_state, values, ctx.slices, ctx.chunk)
        dout = stream.new_zeros(stream.shape, dtype=ctx.options.dtype) if dout is None else dout.contiguous()
        du, dconv_state, dssm_state, sums = gradients(kept, dout, *dstates)
        dhidden, dresidual, sums["norm"] = block.norm_gradients(stream, rstd, du, dstream, ctx.dtypes)
        return (
            dhidden,
            dresidual,
            None if conv_state is None else dconv_state,
            None if ssm_state is None else dssm_state,
            *(None, None),
            *(sums.get(name) for name in BlockWeights._fields),
        )


Forward = tuple[Tensor, tuple[Tensor, Tensor], list[Slice], int, list[Tensor]]
"""The block's output, both states after it, the slices of the backward pass, the positions between the scan's states
(0 where it keeps none), and what is kept"""


def _whole(
    block: Computation, u: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None, ids: Tensor | None
) -> Forward:
    """Kept: the convolution's inputs before each border, y, the scan's states, x_proj's output and, unless that is
    recomputed, all other values."""
    xz = block.project(u)
    inner = block.inner(xz, conv_state, ssm_state, ids)
    scan, chunk = block.scan(inner.scan)
    y, final, states = scan.forward(inner.scan, chunk, True)
    assert states is not None
    assert inner.conv_state is not None
    slices = cut(u.shape[0], u.shape[1], block.most, chunk)
    x = inner.conv.x
    before = x.new_zeros(len(slices), block.back, block.channels)
    for number, border in borders(slices):
        same = joined(ids, border, block.back)
        before[number] = only(same, x[border.first : border.last, border.start - block.back : border.start])[0]
        entering = states[border.first : border.last, border.start // chunk]
        entering.copy_(only(None if same is None else same[:, -1], entering))
    values = (inner.values.columns,) if block.options.recompute == "cheap" else (*inner.values, xz, u)
    after = inner.conv_state, final
    del inner, x, xz  # what is not kept makes room for the output
    out = (y.flatten(0, 1) @ block.w.out_proj.t()).view(u.shape)
    return out, after, slices, chunk, [before, y, states, *values]  # type: ignore[list-item]


def _in_slices(
    block: Computation, u: Tensor, conv_state: Tensor | None, ssm_state: Tensor | None, ids: Tensor | None
) -> Forward:
    """Kept: both states at each border."""
    out = torch.empty_like(u)
    slices = cut(u.shape[0], u.shape[1], block.most, LEAST)
    conv_final = u.new_empty(u.shape[0], block.back, block.channels)
    ssm_final = block.w.A.new_empty(u.shape[0], *block.w.A.shape)
    conv_before = conv_final.new_zeros(len(slices), *conv_final.shape[1:])
    ssm_before = ssm_final.new_zeros(len(slices), *ssm_final.shape[1:])
    for number, each in enumerate(slices):
        conv, ssm = each.sequences(conv_state), each.sequences(ssm_state)
        if each.start:
            same = joined(ids, each, block.back)
            conv = only(same, conv_final[each.first : each.last])
            ssm = only(None if same is None else same[:, -1], ssm_final[each.first : each.last])
            conv_before[number], ssm_before[number] = conv[0], ssm[0]
        inner = block.inner(block.project(each.of(u)), conv, ssm, None if ids is None else each.of(ids))
        scan, chunk = block.scan(inner.scan)
        y, final, _ = scan.forward(inner.scan, chunk, False)
        assert inner.conv_state is not None
        conv_final[each.first : each.last], ssm_final[each.first : each.last] = inner.conv_state, final
        torch.mm(y.flatten(0, 1), block.w.out_proj.t(), out=each.rows(out))
    return out, (conv_final, ssm_final), slices, 0, [conv_before, ssm_before]
