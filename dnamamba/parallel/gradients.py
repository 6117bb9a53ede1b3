"""All gradients of a model as one array."""

from collections.abc import Iterable

import torch
import torch.nn as nn
from torch import Tensor

_ALIGNMENT = 64
"""Numbers: 256 bytes, as torch's allocator aligns tensors."""
_BASE = 4096.0
_DIGITS = tuple(_BASE**power for power in (2, 1, 0, -1, -2, -3))
"""What a digit of a sum counts"""
_SUMS = 6
"""As many may go with the gradients, behind them, as digits that fp32 adds up without rounding"""


class Gradients:
    """`values` holds the gradients of all parameters, each `.grad` a part of it: summed over ranks in one operation,
    and a step's sums with them.

    Their addresses stay, as a CUDA graph that adds to them needs.
    """

    scale = 1.0
    """Times the loss, for the sum over ranks to be one"""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        assert all((each.dtype, each.device) == (first.dtype, first.device) for each in self.parameters)
        sizes = [-(-each.numel() // _ALIGNMENT) * _ALIGNMENT for each in self.parameters]
        self._sent = torch.zeros(sum(sizes) + _SUMS * len(_DIGITS), dtype=first.dtype, device=first.device)
        self.values = self._sent[: sum(sizes)]
        self._units = torch.tensor(_DIGITS, dtype=torch.float64, device=first.device)
        parts = zip(self.parameters, self.values.split(sizes), strict=True)
        self.views = [part[: each.numel()].view_as(each) for each, part in parts]

    def zero(self) -> None:
        """Before a step: also where `.grad` has been taken away, as Lightning does when it starts."""
        self.values.zero_()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    def sum_over_ranks(self, sums: Tensor | None = None) -> Tensor:
        """After the last pass of a step, where there are several ranks.

        Args:
            sums: (up to 6,) fp64 of this rank, below 2⁴⁸.

        Returns:
            The same over all ranks, exact to 2⁻³⁶.
        """
        numbers = self._units.new_empty(0) if sums is None else sums
        first, width = len(self.values), len(self._units)
        sent = self._sent[: first + width * len(numbers)]
        tail = sent[first:].view(-1, width)
        tail.copy_(digits(numbers, self._units))
        torch.distributed.all_reduce(sent)
        return (tail.double() * self._units).sum(1)

    def clip(self, most: float, scale: Tensor | float = 1.0) -> Tensor:
        """Multiplies them by `scale` (), and then so that their norm is at most `most`; () their norm in between."""
        norm = torch.linalg.vector_norm(self.values) * scale
        self.values.mul_(scale * at_most(norm, most))
        return norm


def at_most(norm: Tensor, most: float) -> Tensor:
    """() the factor that makes a norm at most that, as torch clips it."""
    return (most / (norm + 1e-6)).clamp(max=1.0)


def digits(numbers: Tensor, units: Tensor) -> Tensor:
    """(n,) fp64 → (n, digits): whole numbers below 4,096 but for the first, so that fp32 adds up those of 4,096 ranks
    without rounding. What is not finite stays so."""
    wholes = (numbers[:, None] / units).floor()
    return wholes - _BASE * torch.nn.functional.pad(wholes[:, :-1], (1, 0))
