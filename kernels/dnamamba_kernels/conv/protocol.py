"""What a backend of the convolution is: `ConvBackend`, and `ConvStep` for one position.

A backend is a module next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py` says where
"auto" takes it. It gets checked arguments; x, dy and states have unit stride in their last dimension. Results are fresh
tensors.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class ConvArguments(NamedTuple):
    """The arguments of a convolution after their check. A step has the same fields without the length."""

    x: Tensor
    """(batch, length, channels)"""
    weight: Tensor
    """(channels, width), width 2…8"""
    bias: Tensor | None
    """(channels,)"""
    initial_state: Tensor | None
    """(batch, width − 1, channels) in x's dtype, the earliest in time first"""
    sequence_ids: Tensor | None
    """(batch, length) int32"""
    activation: str | None
    """"silu" or None"""
    reverse: bool


class ConvBackend(Protocol):
    """One implementation of the convolution."""

    def supports(self, x: Tensor) -> str | None:
        """None if the backend serves such data, else why not."""
        return None

    def forward(self, a: ConvArguments) -> tuple[Tensor, Tensor]:
        """y (batch, length, channels) and the final state (batch, width − 1, channels), both in x's dtype."""

    def backward(
        self, a: ConvArguments, dy: Tensor, dfinal_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """(dx, dweight, dbias, dinitial_state); dweight and dbias in fp32 (fp64 where x is)."""


class ConvStep(Protocol):
    """One position of the convolution, for generation; `reference` and `triton` have it, too."""

    def step(self, a: ConvArguments) -> tuple[Tensor, Tensor]:
        """y (batch, channels) and the state after the position that has `a.initial_state` before it."""
