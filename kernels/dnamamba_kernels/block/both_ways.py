"""Add, norm and a Mamba mixer that reads whole sequences one way or both ways, as one differentiable operator.

    r = hidden + residual,   u = norm(r),   (x | z) = in_proj u
    y = Σ over directions of scan(silu(conv x), …, z),   hidden' = out_proj y

Directions share norm, in_proj and out_proj, and so their products. The first reads from the left and the second from
the right; of complements, the second half of a batch of both strands, the first from the right and the second from the
left. What the backward pass computes again is said in `dnamamba_kernels.block.mamba_block`. Here each direction keeps
its own states and x_proj's output; no sequence is cut, as the directions would begin at its two ends.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from dnamamba_kernels.block.computation import BlockOptions, BlockWeights, Computation, Inner, Values
from dnamamba_kernels.block.gradients import Sums, through_in_proj, through_scan
from dnamamba_kernels.block.slices import Slice, cut
from dnamamba_kernels.checks import check_sequence_ids
from dnamamba_kernels.eager import wants_gradient

Keep = Literal["nothing", "cheap", "none"]
"""Of a forward pass: y alone, or also what a backward pass needs that computes again what `recompute` says"""


def mamba_block_both_ways(
    hidden: Tensor,
    residual: Tensor | None,
    directions: Sequence[BlockWeights],
    options: BlockOptions,
    *,
    sequence_ids: Tensor | None = None,
    both_strands: bool = False,
) -> tuple[Tensor, Tensor]:
    """One block over a batch of whole sequences; differentiable once, in every tensor.

    Args:
        hidden: (batch, length, d_model), what the block before gave, in the options' dtype or a wider one.
        residual: (batch, length, d_model), the residual stream; None in the first block.
        directions: the weights of the first, and of the second where there are two; norm, in_proj and out_proj are
            those of the first.
        sequence_ids: (batch, length) int32 of packed windows: nothing crosses a change of id. Of both strands (batch /
            2, length), the same for both.
        both_strands: the second half of the batch are the complements of the first, in the same order of positions.

    Returns:
        hidden in the options' dtype, and the residual stream with the block's input added.

    Raises:
        ValueError: ids of another shape or dtype, or what the single operators refuse.
    """
    check_sequence_ids(sequence_ids, hidden.chunk(2)[0] if both_strands else hidden)
    parameters = [each for weights in directions for each in weights]
    if wants_gradient(hidden, residual, *parameters):
        return _BlockBothWays.apply(hidden, residual, sequence_ids, both_strands, options, *parameters)
    strands = _strands(parameters, options, hidden, sequence_ids, both_strands)
    u, stream, _ = strands[0].blocks[0].add_norm(hidden, residual)
    return _forward(strands, u, "nothing")[0], stream


class _BlockBothWays(torch.autograd.Function):
    """`mamba_block_both_ways`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        residual: Tensor | None,
        sequence_ids: Tensor | None,
        both_strands: bool,
        options: BlockOptions,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        strands = _strands(parameters, options, hidden, sequence_ids, both_strands)
        blocks = strands[0].blocks
        u, stream, rstd = blocks[0].add_norm(hidden, residual)
        out, kept = _forward(strands, u, "nothing" if options.recompute == "all" else options.recompute)
        values, ctx.spec = tree_flatten(kept)
        ctx.options, ctx.both_strands, ctx.requested = options, both_strands, blocks[0].requested
        ctx.dtypes, ctx.weights = (hidden.dtype, None if residual is None else residual.dtype), len(parameters)
        ctx.set_materialize_grads(False)
        weights = [each for block in blocks for each in block.w]
        ctx.save_for_backward(stream, rstd, sequence_ids, *weights, *values)
        return out, stream

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dstream: Tensor | None) -> Any:
        stream, rstd, sequence_ids, *saved = ctx.saved_tensors
        weights, kept = saved[: ctx.weights], tree_unflatten(saved[ctx.weights :], ctx.spec)
        strands = _strands(weights, ctx.options, stream, sequence_ids, ctx.both_strands, ctx.requested)
        blocks = strands[0].blocks
        dout = stream.new_zeros(stream.shape, dtype=ctx.options.dtype) if dout is None else dout.contiguous()
        du, sums = torch.empty_like(dout), [Sums() for _ in blocks]
        parts = [each.chunk(len(strands)) for each in (stream, rstd, dout, du)]
        for strand, values, *part in zip(strands, kept, *parts, strict=True):
            strand.backward(values, *part, sums)
        dhidden, dresidual, sums[0]["norm"] = blocks[0].norm_gradients(stream, rstd, du, dstream, ctx.dtypes)
        found = [each.get(name) for each in sums for name in BlockWeights._fields]
        return dhidden, dresidual, None, None, None, *found


class _KeptOfSlice(NamedTuple):
    """What a slice keeps for its backward pass."""

    y: Tensor
    """(sequences, positions, channels), the sum over directions"""
    states: list[Tensor]
    """of each direction's scan"""
    values: list[Values]
    """of each direction"""
    u: Tensor | None
    """The norm's output (sequences, positions, d_model)"""
    xz: Tensor | None
    """in_proj's output (sequences, positions, 2 · channels)"""


class _OneStrand(NamedTuple):
    """Sequences whose directions read the same ways."""

    blocks: list[Computation]
    """of each direction"""
    reverse: list[bool]
    """whether it reads from the right"""
    sequence_ids: Tensor | None

    def slices(self, batch: int, length: int) -> list[Slice]:
        """Whole sequences, at least one at a time."""
        return cut(batch, length, max(self.blocks[0].most, length), 1)

    def inner(self, number: int, xz: Tensor, each: Slice, known: Values | None = None) -> Inner:
        """A direction's values of a slice."""
        ids = None if self.sequence_ids is None else each.of(self.sequence_ids)
        return self.blocks[number].inner(xz, None, None, ids, known, self.reverse[number])

    def run(self, u: Tensor, each: Slice, keep: Keep) -> _KeptOfSlice:
        """From the norm's output of a slice."""
        xz, y = self.blocks[0].project(u), None
        states, values = [], []
        for number, direction in enumerate(self.blocks):
            inner = self.inner(number, xz, each)
            scan, chunk = direction.scan(inner.scan)
            found, _, entering = scan.forward(inner.scan, chunk, keep != "nothing")
            if keep != "nothing":
                assert entering is not None
                states.append(entering)
                values.append(inner.values if keep == "none" else Values(inner.values.columns))
            del inner, entering  # what is not kept makes room for the next direction
            y = found if y is None else y.add_(found)
        assert y is not None
        return _KeptOfSlice(y, states, values, *((u, xz) if keep == "none" else (None, None)))

    def forward(self, u: Tensor, out: Tensor, keep: Keep) -> list[_KeptOfSlice]:
        """Writes the block's output (batch, length, d_model); what is kept of each slice."""
        kept = []
        for each in self.slices(*u.shape[:2]):
            found = self.run(each.of(u), each, keep)
            torch.mm(found.y.flatten(0, 1), self.blocks[0].w.out_proj.t(), out=each.rows(out))
            if keep != "nothing":
                kept.append(found)
        return kept

    def backward(
        self, kept: list[_KeptOfSlice], stream: Tensor, rstd: Tensor, dout: Tensor, du: Tensor, sums: list[Sums]
    ) -> None:
        """Writes the gradient of the norm's output (batch, length, d_model); adds those of all weights but the norm's
        to the `sums` of their directions."""
        block = self.blocks[0]
        for number, each in enumerate(self.slices(*stream.shape[:2])):
            again = kept[number] if kept else self.run(block.normalised(stream, rstd, each), each, "none")
            u = block.normalised(stream, rstd, each) if again.u is None else again.u
            xz = block.project(u) if again.xz is None else again.xz
            sums[0].add("out_proj", each.rows(dout).t() @ again.y.flatten(0, 1))
            dy = (each.rows(dout) @ block.w.out_proj).view(again.y.shape)
            dx, dz = self._through_directions(again, xz, each, dy, sums)
            del again, xz, dy
            through_in_proj(block, u.flatten(0, 1), dx, dz, each.rows(du), sums[0])

    def _through_directions(
        self, again: _KeptOfSlice, xz: Tensor, each: Slice, dy: Tensor, sums: list[Sums]
    ) -> tuple[Tensor, Tensor]:
        """The gradients of in_proj's halves (positions, channels)."""
        total: tuple[Tensor, Tensor] | None = None
        for number, direction in enumerate(self.blocks):
            inner = self.inner(number, xz, each, again.values[number])
            _, chunk = direction.scan(inner.scan)
            halves = through_scan(direction, inner, dy, None, None, again.states[number], chunk, sums[number])[:2]
            del inner
            if total is None:
                total = halves
            else:
                for one, other in zip(total, halves, strict=True):
                    one.add_(other)
        assert total is not None
        return total


def _strands(
    parameters: Sequence[Tensor | None],
    options: BlockOptions,
    rows: Tensor,
    sequence_ids: Tensor | None,
    both_strands: bool,
    requested: dict[str, str] | None = None,
) -> list[_OneStrand]:
    """The sequences, and their complements of both strands; the weights of all directions come one after the other.
    `rows` and `requested` are those of `Computation`."""
    blocks: list[Computation] = []
    for start in range(0, len(parameters), len(BlockWeights._fields)):
        weights = BlockWeights(*parameters[start : start + len(BlockWeights._fields)])  # type: ignore[arg-type]
        if blocks:  # what is shared is cast once
            shared = blocks[0].w
            weights = weights._replace(norm=shared.norm, in_proj=shared.in_proj, out_proj=shared.out_proj)
        blocks.append(Computation(weights, options, rows.flatten(0, 1), requested))
    ways = [False, True][: len(blocks)]
    strands = [_OneStrand(blocks, ways, sequence_ids)]
    if both_strands:
        strands.append(_OneStrand(blocks, [not way for way in ways], sequence_ids))
    return strands


def _forward(strands: list[_OneStrand], u: Tensor, keep: Keep) -> tuple[Tensor, list[list[_KeptOfSlice]]]:
    """The block's output of the norm's, (batch, length, d_model) both, and what each strand keeps of each slice."""
    out, count = torch.empty_like(u), len(strands)
    parts = zip(strands, u.chunk(count), out.chunk(count), strict=True)
    return out, [strand.forward(its_u, its_out, keep) for strand, its_u, its_out in parts]
