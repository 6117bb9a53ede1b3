"""What a backend of the gated norm is.

A backend is a module next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py` says where
"auto" takes it. It gets checked arguments. Results are fresh tensors.
"""

from typing import Protocol

from torch import Tensor


class GatedNormBackend(Protocol):
    """One implementation."""

    def supports(self, x: Tensor) -> str | None:
        """None if the backend serves such data, else why not."""
        return None

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x, z (rows, dim) → y in x's dtype, and rstd (rows,) in fp32 (fp64 where x is)."""

    def backward(self, dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dx, dz in the dtypes of x and z, and dweight in rstd's."""
