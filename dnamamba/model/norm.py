"""The norm of the residual stream."""

import torch
import torch.nn as nn
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba_kernels import rms_norm


class RMSNorm(nn.Module):
    """y = r / √(mean(r²) + ε) · weight with r = x + residual: the fused add and norm, statistics in fp32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.residual_in_fp32 = config.residual_in_fp32
        self.weight = nn.Parameter(torch.ones(config.d_model))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (…, d_model) and the residual stream (none yet in the first block) → y in x's dtype, the new residual."""
        return rms_norm(x, self.weight, residual=residual, eps=self.epsilon, residual_in_fp32=self.residual_in_fp32)
