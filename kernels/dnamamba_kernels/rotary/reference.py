"""Rotary positions (RoPE, arXiv 2104.09864, equation 15) in plain PyTorch, in fp32 (fp64 where the data are fp64).

The pair of numbers i and i + head / 2 of a query or key turns by its angle; values stay. Backwards, gradients turn the
other way.
"""

import torch
from torch import Tensor

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.rotary.protocol import RotaryBackend


class ReferenceRotary(RotaryBackend):
    """Serves every device, dtype and shape."""

    def forward(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key = _rotated(qkv[:, :, :2], cos, sin).unbind(2)
        return query.clone(), key.clone(), qkv[:, :, 2].clone(memory_format=torch.contiguous_format)

    def backward(self, dquery: Tensor, dkey: Tensor, dvalue: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotated = _rotated(torch.stack((dquery, dkey), 2), cos, -sin)
        return torch.cat((rotated, dvalue[:, :, None]), 2)


BACKEND = ReferenceRotary()


def _rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(batch, length, 2, heads, head)"""
    first, second = values.to(compute_dtype(values)).chunk(2, dim=-1)
    cos, sin = cos[:, :, None, None], sin[:, :, None, None]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(values.dtype)
