"""All gradients of a model as one array."""

from collections.abc import Iterable

import torch
import torch.nn as nn
from torch import Tensor

_ALIGNMENT = 64
"""Numbers: 256 bytes, as torch's allocator aligns tensors."""


class Gradients:
    """`values` holds the gradients of all parameters, each `.grad` a part of it: summed over ranks in one operation.

    Their addresses stay, as a CUDA graph that adds to them needs.
    """

    scale = 1.0
    """Times the loss, for the sum over ranks to be one"""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        first = self.parameters[0]
        assert all((each.dtype, each.device) == (first.dtype, first.device) for each in self.parameters)
        sizes = [-(-each.numel() // _ALIGNMENT) * _ALIGNMENT for each in self.parameters]
        self.values = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        parts = zip(self.parameters, self.values.split(sizes), strict=True)
        self.views = [part[: each.numel()].view_as(each) for each, part in parts]

    def zero(self) -> None:
        """Before a step: also where `.grad` has been taken away, as Lightning does when it starts."""
        self.values.zero_()
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    def sum_over_ranks(self) -> None:
        """After the last pass of a step, where there are several ranks."""
        torch.distributed.all_reduce(self.values)

    def clip(self, most: float) -> Tensor:
        """Scales them so that their norm is at most that; () their norm before."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, most)
