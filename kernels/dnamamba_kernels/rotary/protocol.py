"""What a backend of the rotation is.

A backend is a module next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py` says where
"auto" takes it. It gets checked arguments with unit stride in their last dimension. Results are fresh tensors.
"""

from typing import Protocol

from torch import Tensor


class RotaryBackend(Protocol):
    """One implementation."""

    def supports(self, qkv: Tensor) -> str | None:
        """None if the backend serves such data, else why not."""
        return None

    def forward(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (batch, length, 3, heads, head), cos and sin (batch or 1, length, head / 2) → query, key and value, each
        (batch, length, heads, head)."""

    def backward(self, dquery: Tensor, dkey: Tensor, dvalue: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """dqkv."""
