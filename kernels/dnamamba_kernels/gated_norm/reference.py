"""Gate and RMSNorm in plain PyTorch, in fp32 (fp64 where x is fp64).

r = x · silu(z),   y = r · rsqrt(mean(r²) + eps) · weight
"""

import torch
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.gated_norm.protocol import GatedNormBackend


class ReferenceGatedNorm(GatedNormBackend):
    """Serves every device, dtype and shape."""

    def forward(self, x: Tensor, z: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        gated = x.to(compute_dtype(x)) * functional.silu(z.to(compute_dtype(x)))
        rstd = torch.rsqrt(gated.square().mean(-1) + eps)
        return (gated * rstd[:, None] * weight).to(x.dtype), rstd

    def backward(self, dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dy, wide, gate = (each.to(rstd.dtype) for each in (dy, x, z))
        opened = functional.silu(gate)
        normal = wide * opened * rstd[:, None]
        dnormal = dy * weight
        dgated = (dnormal - normal * (dnormal * normal).mean(-1, keepdim=True)) * rstd[:, None]
        sigmoid = torch.sigmoid(gate)
        dz = dgated * wide * sigmoid * (1 + gate * (1 - sigmoid))
        return (dgated * opened).to(x.dtype), dz.to(z.dtype), (dy * normal).sum(0)


BACKEND = ReferenceGatedNorm()
