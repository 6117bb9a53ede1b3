"""The embedding of tokens, whose gradient is the same to the bit in every run."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dnamamba.model.precision import without_autocast
from dnamamba_kernels.eager import traced


class Embedding(nn.Embedding):
    """A row of the weight for each token. On a GPU PyTorch adds the gradients of a token's positions up by atomics, in
    an order of their own; here a matrix product does, which is faster, too, for an alphabet of few letters."""

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (…) int32 → (…, width) in the weight's dtype."""
        if tokens.device.type == "cpu" or not torch.is_grad_enabled() or traced(tokens, self.weight):
            return super().forward(tokens)
        return _Lookup.apply(tokens, self.weight)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.letters = weight.shape[0]
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        letters = torch.arange(ctx.letters, dtype=tokens.dtype, device=tokens.device)
        chosen = (tokens.flatten()[:, None] == letters).to(gradient.dtype)
        with without_autocast(gradient.device):
            return None, chosen.t() @ gradient.flatten(0, -2)
