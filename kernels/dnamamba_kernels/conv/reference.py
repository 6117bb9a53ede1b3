"""Causal depthwise convolution in plain PyTorch.

    s_t = bias + Σ_{j < width} weight[:, width−1−j] · x_{t−j},   y = silu(s) or s

Rows before the first position come from `initial_state`. With `sequence_ids` a tap counts only if no id changes
between it and t.
Arithmetic is fp64 where `x` is fp64, else fp32.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.conv.protocol import ConvArguments, ConvBackend, ConvStep
from dnamamba_kernels.eager import is_transformed


class ReferenceConv(ConvBackend, ConvStep):
    """Serves every device, dtype and shape."""

    def forward(self, a: ConvArguments) -> tuple[Tensor, Tensor]:
        x, weight, bias, initial_state, sequence_ids, activation, reverse = a
        if reverse:
            x, sequence_ids = x.flip(1), None if sequence_ids is None else sequence_ids.flip(1)
        width, length = weight.shape[1], x.shape[1]
        padded, run = _padded(x, initial_state, width), _runs(sequence_ids, width)
        s = _before_activation(padded, run, weight, bias)
        y = (functional.silu(s) if activation == "silu" else s).to(x.dtype)
        final_state = padded[:, length:]
        if run is not None:
            final_state = torch.where((run[:, length:] == run[:, -1:])[..., None], final_state, 0)
        return y.flip(1) if reverse else y, final_state.to(x.dtype, copy=True)

    def backward(
        self, a: ConvArguments, dy: Tensor, dfinal_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        x, weight, bias, initial_state, sequence_ids, activation, reverse = a
        if reverse:
            x, dy, sequence_ids = x.flip(1), dy.flip(1), None if sequence_ids is None else sequence_ids.flip(1)
        width, length = weight.shape[1], x.shape[1]
        padded, run = _padded(x, initial_state, width), _runs(sequence_ids, width)
        ds = dy.to(padded.dtype)
        if activation == "silu":
            ds = torch.ops.aten.silu_backward(ds, _before_activation(padded, run, weight, bias))
        dpadded = torch.zeros_like(padded)
        if dfinal_state is not None:
            dfinal = dfinal_state.to(padded.dtype)
            if run is not None:
                dfinal = torch.where((run[:, length:] == run[:, -1:])[..., None], dfinal, 0)
            dpadded[:, length:] += dfinal
        dweight = torch.empty_like(weight, dtype=padded.dtype)
        for tap in range(width):
            seen = slice(tap, tap + length)
            counted = ds if run is None else torch.where((run[:, seen] == run[:, width - 1 :])[..., None], ds, 0)
            dpadded[:, seen].addcmul_(counted, weight[:, tap].to(padded.dtype))
            dweight[:, tap] = (counted * padded[:, seen]).sum((0, 1))
        dinitial, dx = dpadded[:, : width - 1].to(x.dtype, copy=True), dpadded[:, width - 1 :].to(x.dtype)
        return dx.flip(1) if reverse else dx, dweight, None if bias is None else ds.sum((0, 1)), dinitial

    def step(self, a: ConvArguments) -> tuple[Tensor, Tensor]:
        """Differentiable, as every operation is."""
        x, weight, bias, state, _, activation, _ = a
        assert state is not None
        rows = torch.cat([state, x[:, None]], 1)
        compute = compute_dtype(x)
        s = (rows.to(compute) * weight.to(compute).t()).sum(1)
        if bias is not None:
            s = s + bias
        return (functional.silu(s) if activation else s).to(x.dtype), rows[:, 1:].clone()


BACKEND = ReferenceConv()


def _padded(x: Tensor, initial_state: Tensor | None, width: int) -> Tensor:
    """The state's rows, then x: (batch, width − 1 + length, channels)."""
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], width - 1, x.shape[2])
    padded = torch.cat([initial_state, x], 1)
    return padded if x.dtype == torch.float64 else padded.float()


def _runs(sequence_ids: Tensor | None, width: int) -> Tensor | None:
    """Number of the run of equal ids at each padded row; the state belongs to the first run."""
    if sequence_ids is None:
        return None
    changes = functional.pad(sequence_ids[:, 1:] != sequence_ids[:, :-1], (width, 0))
    return changes.cumsum(1)


def _before_activation(padded: Tensor, run: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    width = weight.shape[1]
    length = padded.shape[1] - width + 1
    add = Tensor.addcmul if is_transformed() else Tensor.addcmul_  # a batch of weights (vmap) fits into no older sum
    s = torch.zeros_like(padded[:, :length])
    if bias is not None:
        s = s + bias if is_transformed() else s.add_(bias)
    taps = weight.t().to(s.dtype).contiguous()  # next to each other: twice as fast
    for tap in range(width):
        rows = padded[:, tap : tap + length]
        if run is not None:
            rows = torch.where((run[:, tap : tap + length] == run[:, width - 1 :])[..., None], rows, 0)
        s = add(s, rows, taps[tap])
    return s
