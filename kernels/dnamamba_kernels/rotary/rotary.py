"""Rotary positions of queries and keys in one pass, as one differentiable PyTorch operator.

Backwards the three gradients become the one of the projection, rotated back, in one pass again.
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, compute_dtype, unit_stride
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives
from dnamamba_kernels.rotary.protocol import RotaryBackend


def rotary(qkv: Tensor, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Rotate queries and keys by their positions' angles, and part them and the values; differentiable in qkv.

    Args:
        qkv: (batch, length, 3, heads, head), head even: queries, keys and values, as a projection gives them; bf16,
            fp16 or fp32 (fp64 on the reference), unit stride in a head.
        cos, sin: (length, head / 2) or (batch, length, head / 2) fp32: of the angles by which the pairs of numbers i
            and i + head / 2 turn.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        query, key, value: (batch, length, heads, head) in qkv's dtype, fresh tensors.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or the backend cannot run this.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3 or qkv.shape[4] % 2 or qkv.numel() == 0:
        raise ValueError(f"qkv must be (batch, length, 3, heads, even head), not empty, got {tuple(qkv.shape)}")
    batch, length, _, _, head = qkv.shape
    check_rows("qkv", qkv, tuple(qkv.shape), "(batch, length, 3, heads, head)", qkv)
    angles = []
    for name, values in (("cos", cos), ("sin", sin)):
        values = values[None] if values.dim() == 2 else values
        check_rows(name, values, (values.shape[0], length, head // 2), "(batch, length, head / 2)", qkv)
        if values.shape[0] not in (1, batch) or values.dtype != compute_dtype(qkv):
            raise ValueError(f"{name} must be {compute_dtype(qkv)} of 1 or {batch} sequences, got {values.dtype}")
        angles.append(values)
    return _rotary(qkv, *angles, backends.requested("rotary", backend))


def _forward(qkv: Tensor, cos: Tensor, sin: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    chosen: RotaryBackend = backends.choose("rotary", backend, qkv)
    return chosen.forward(unit_stride(qkv), unit_stride(cos), unit_stride(sin))


rotary_op = torch.library.custom_op("dnamamba_kernels::rotary", _forward, mutates_args=())


@rotary_op.register_fake
def _(qkv, cos, sin, backend):
    shape = *qkv.shape[:2], *qkv.shape[3:]
    return qkv.new_empty(shape), qkv.new_empty(shape), qkv.new_empty(shape)


def _gradients(dquery: Tensor, dkey: Tensor, dvalue: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    chosen: RotaryBackend = backends.choose("rotary", backend, dquery)
    return chosen.backward(*(unit_stride(each) for each in (dquery, dkey, dvalue, cos, sin)))


rotary_backward_op = torch.library.custom_op("dnamamba_kernels::rotary_backward", _gradients, mutates_args=())


@rotary_backward_op.register_fake
def _(dquery, dkey, dvalue, cos, sin, backend):
    return dquery.new_empty(*dquery.shape[:2], 3, *dquery.shape[2:])


_run_backward = direct(rotary_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    _, cos, sin, backend = inputs
    ctx.save_for_backward(cos, sin)
    ctx.backend = backend


def _backward(ctx, *gradients):
    dqkv = _run_backward(*gradients, *ctx.saved_tensors, ctx.backend) if ctx.needs_input_grad[0] else None
    return dqkv, None, None, None


rotary_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(rotary_backward_op)
for _op in (rotary_op, rotary_backward_op):
    loop_over_batches(_op)


_rotary = differentiable(direct(rotary_op, _forward), _forward, _setup_context, _backward)
