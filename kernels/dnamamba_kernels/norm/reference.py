"""Residual addition and RMSNorm in plain PyTorch, statistics in fp32 (fp64 where the residual is fp64).

r = x + residual,   y = r · rsqrt(mean(r²) + eps) · weight
"""

import torch
from torch import Tensor

from dnamamba_kernels.norm.protocol import NormBackend


class ReferenceNorm(NormBackend):
    """Serves every device, dtype and shape."""

    def forward(
        self, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute = torch.float64 if residual_dtype == torch.float64 else torch.float32
        total = x.to(compute)
        if residual is not None:
            total = total + residual
        new_residual = total.to(residual_dtype, copy=True)
        total = new_residual.to(compute)  # the value that the next layer sees is the one normalised
        rstd = torch.rsqrt(total.square().mean(-1) + eps)
        return self.normalised(total, weight, rstd, x.dtype), new_residual, rstd

    def normalised(self, new_residual: Tensor, weight: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
        return (new_residual.to(rstd.dtype) * rstd[:, None] * weight).to(dtype)

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
        normal = new_residual.to(rstd.dtype) * rstd[:, None]
        dy = dy.to(rstd.dtype)
        dnormal = dy * weight
        dtotal = (dnormal - normal * (dnormal * normal).mean(-1, keepdim=True)) * rstd[:, None]
        if dnew_residual is not None:
            dtotal = dtotal + dnew_residual
        dresidual = None if residual_dtype is None else dtotal.to(residual_dtype, copy=True)
        return dtotal.to(dtype), dresidual, (dy * normal).sum(0)


BACKEND = ReferenceNorm()
