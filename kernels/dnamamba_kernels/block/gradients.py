"""The backward pass of a Mamba block, slice by slice.

Gradients of in_proj's two halves are products of their own, x_proj's is added in place, and the parts of the narrow
gradient of x_proj's output are written where they belong: no activations are concatenated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba_kernels.block.computation import Computation, Inner, Values
from dnamamba_kernels.block.slices import Slice, joined, only
from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.scan.arguments import ScanGradients


class Again(NamedTuple):
    """The inner values of a slice, kept or computed again."""

    u: Tensor
    """(positions, d_model)"""
    inner: Inner
    states: Tensor
    """of the scan"""
    chunk: int
    """positions between them"""


class Kept(NamedTuple):
    """What a block keeps from its forward pass."""

    block: Computation
    stream: Tensor
    """The residual stream (batch, length, d_model)"""
    rstd: Tensor
    """of the norm (positions,)"""
    sequence_ids: Tensor | None
    conv_state: Tensor | None
    ssm_state: Tensor | None
    values: list[Tensor]
    """as the forward pass says"""
    slices: list[Slice]
    chunk: int
    """Positions between the scan's kept states, 0 if there are none"""

    def again(self, number: int) -> tuple[Again, Tensor]:
        """The values of a slice, and y (positions, channels)."""
        block, each = self.block, self.slices[number]
        ids = None if self.sequence_ids is None else each.of(self.sequence_ids)
        before, *others = self.values
        conv = before[number : number + 1] if each.start else each.sequences(self.conv_state)
        if self.chunk:
            y, states, *values = others
            inputs = each.of(values.pop()) if len(values) > 1 else block.normalised(self.stream, self.rstd, each)
            xz = each.of(values.pop()) if len(values) > 1 else block.project(inputs)
            inner = block.inner(xz, conv, None, ids, Values(*map(each.of, values)))
            first, last = each.start // self.chunk, -(-each.stop // self.chunk)
            states = states[each.first : each.last, first:last].contiguous()
            return Again(inputs.flatten(0, 1), inner, states, self.chunk), each.rows(y)
        ssm = others[0][number : number + 1] if each.start else each.sequences(self.ssm_state)
        inputs = block.normalised(self.stream, self.rstd, each)
        inner = block.inner(block.project(inputs), conv, ssm, ids)
        scan, chunk = block.scan(inner.scan)
        y, _, found = scan.forward(inner.scan, chunk, True)
        assert found is not None
        return Again(inputs.flatten(0, 1), inner, found, chunk), y.flatten(0, 1)


class Sums(dict[str, Tensor]):
    """Gradients of parameters by their names, added up over slices in fp32, or fp64 of fp64 parameters."""

    def add(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        if name in self:
            self[name] += gradient
        else:
            self[name] = gradient.to(compute_dtype(gradient))


def gradients(
    kept: Kept, dout: Tensor, dconv_final: Tensor | None, dssm_final: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Sums]:
    """The gradients of u (batch, length, d_model), of both states before the first position, and of all weights but the
    norm's, by the names of `BlockWeights`.

    Slices come from the last to the first; within a sequence each hands the gradients of its initial states on.
    """
    block, (batch, length, _) = kept.block, dout.shape
    du = torch.empty_like(dout)
    dconv_first = dout.new_empty(batch, block.back, block.channels)
    dssm_first = block.w.A.new_empty(batch, *block.w.A.shape)
    sums = Sums()
    dconv: Tensor | None = None
    dssm: Tensor | None = None
    for number in reversed(range(len(kept.slices))):
        each = kept.slices[number]
        if each.stop == length:
            dconv, dssm = each.sequences(dconv_final), each.sequences(dssm_final)
        again, y = kept.again(number)
        sums.add("out_proj", each.rows(dout).t() @ y)
        del y
        u, inner, states, chunk = again
        dy = (each.rows(dout) @ block.w.out_proj).view(inner.scan.x.shape)
        dx, dz, dconv, dssm = through_scan(block, inner, dy, dconv, dssm, states, chunk, sums)
        del again, inner, states, dy
        through_in_proj(block, u, dx, dz, each.rows(du), sums)
        if each.start:
            same = joined(kept.sequence_ids, each, block.back)
            dconv, dssm = only(same, dconv), only(None if same is None else same[:, -1], dssm)
        else:
            dconv_first[each.first : each.last], dssm_first[each.first : each.last] = dconv, dssm
    return du, dconv_first, dssm_first, sums


def through_scan(
    block: Computation,
    inner: Inner,
    dy: Tensor,
    dconv_state: Tensor | None,
    dssm_state: Tensor | None,
    states: Tensor,
    chunk: int,
    sums: Sums,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of in_proj's halves (positions, channels) and of a slice's initial states, from that of y; adds to
    `sums`. `states` are the scan's, `chunk` positions apart."""
    scan, _ = block.scan(inner.scan)
    dstate = None if dssm_state is None else dssm_state.contiguous()
    found, dssm_state = scan.backward(inner.scan._replace(initial_state=None), dy, dstate, states, chunk)
    assert found.z is not None
    dx = _through_maps(block, inner, found, sums).view(dy.shape)
    dx, dtaps, dbias, dconv_state = block.conv(dx).backward(inner.conv, dx, dconv_state)
    sums.add("conv", dtaps)
    sums.add("conv_bias", dbias)
    return dx.flatten(0, 1), found.z.flatten(0, 1), dconv_state, dssm_state


def through_in_proj(block: Computation, u: Tensor, dx: Tensor, dz: Tensor, du: Tensor, sums: Sums) -> None:
    """Writes the gradient of u (positions, d_model), from those of in_proj's halves; adds to `sums`."""
    sums.add("in_proj", torch.cat((dx.t() @ u, dz.t() @ u)))
    torch.mm(dx, block.w.in_proj[: block.channels], out=du).addmm_(dz, block.w.in_proj[block.channels :])


def _through_maps(block: Computation, inner: Inner, found: ScanGradients, sums: Sums) -> Tensor:
    """The gradient of the convolution's output (positions, channels), in the memory of the scan's gradient of x."""
    w, ddt = block.w, found.dt.flatten(0, 1)
    for name in ("A", "D", "dt_bias"):
        sums.add(name, getattr(found, name))
    sums.add("dt_proj", ddt.t() @ inner.values.columns[..., : block.rank].flatten(0, 1))
    joint = ddt.new_empty(len(ddt), len(w.x_proj))
    torch.mm(ddt, w.dt_proj, out=joint[:, : block.rank])
    first = block.rank
    for name, constant, gradient in (("B", w.B, found.B), ("C", w.C, found.C)):
        if constant is None:
            joint[:, first : first + block.state] = gradient.reshape(-1, block.state)
            first += block.state
        else:
            sums.add(name, gradient)
    sums.add("x_proj", joint.t() @ inner.scan.x.flatten(0, 1))
    return found.x.flatten(0, 1).addmm_(joint, w.x_proj)
