"""What a backend of SSD is: `SSDBackend`.

A backend is a module or folder next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py`
says where "auto" takes it. It gets checked arguments; x, B, C and dy have unit stride in their last dimension. Results
are fresh tensors.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class SSDArguments(NamedTuple):
    """The arguments after their check; "parameters" are fp32, or fp64 for fp64 data."""

    x: Tensor
    """(batch, length, heads, head)"""
    log_decay: Tensor
    """(batch, length, heads), a parameter: log a"""
    weight: Tensor
    """(batch, length, heads), a parameter: w"""
    B: Tensor
    """(batch, length, groups, state)"""
    C: Tensor
    """as B"""
    D: Tensor | None
    """(heads,), a parameter"""
    initial_state: Tensor | None
    """(batch, heads, head, state), a parameter"""
    sequence_ids: Tensor | None
    """(batch, length) int32"""


class SSDGradients(NamedTuple):
    """Gradients of the arguments, each in its argument's shape and dtype; None where the argument was absent.
    `initial_state` is always there."""

    x: Tensor
    log_decay: Tensor
    weight: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    initial_state: Tensor


class SSDBackend(Protocol):
    """One implementation."""

    def supports(self, x: Tensor, B: Tensor) -> str | None:
        """None if the backend serves such data, else why not."""
        return None

    def forward(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        """y in x's shape and dtype, and the final state (batch, heads, head, state) in the parameters' dtype."""

    def backward(self, a: SSDArguments, dy: Tensor, dfinal_state: Tensor | None) -> SSDGradients:
        """From the arguments alone: states are computed again."""
