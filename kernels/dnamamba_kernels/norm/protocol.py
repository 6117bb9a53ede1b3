"""What a backend of the norm is.

A backend is a module next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py` says where
"auto" takes it. It gets checked arguments. Results are fresh tensors.
"""

from typing import Protocol

import torch
from torch import Tensor


class NormBackend(Protocol):
    """One implementation of residual addition and RMSNorm."""

    def supports(self, x: Tensor) -> str | None:
        """None if the backend serves such data, else why not."""
        return None

    def forward(
        self, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, residual (rows, dim) → y in x's dtype, new_residual in `residual_dtype`, rstd (rows,) in fp32 (fp64 where
        the residual is)."""

    def backward(
        self,
        dy: Tensor,
        dnew_residual: Tensor | None,
        new_residual: Tensor,
        weight: Tensor,
        rstd: Tensor,
        dtype: torch.dtype,
        residual_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(the gradient of x + residual in `dtype`, the same in `residual_dtype` if any, dweight in rstd's dtype)."""

    def normalised(self, new_residual: Tensor, weight: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
        """What `forward` gave as y, bit for bit, in `dtype`, from the residual stream (rows, dim) and rstd."""
