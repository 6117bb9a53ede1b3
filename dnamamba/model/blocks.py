"""The pre-norm residual block: residual ← hidden + residual, then hidden ← mixer(norm(residual)).

The sum is taken at the start of the next block rather than at the end of this one, so that it and the norm are one
kernel; the residual stream itself is never rounded to the lower precision when `residual_in_fp32` is set.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.mixers import mixer_class
from dnamamba.model.norm import RMSNorm
from dnamamba_kernels.eager import is_transformed


class Block(nn.Module):
    """Add, norm, mixer. `forward` and `step` hand states through to the mixer (see `dnamamba.model.mixers.mixer`).

    Of a reverse-complement-equivariant model the batch is sequences, then their complements in the same order of
    positions, which the mixer reads in reverse; it carries no state.
    """

    def __init__(self, config: ModelConfig, mixer: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config)
        self.mixer = mixer_class(mixer)(config)
        self.reads_both_strands = config.rc_equivariant

    def forward(
        self,
        hidden: Tensor,
        residual: Tensor | None,
        state: Any = None,
        sequence_ids: Tensor | None = None,
        recompute: Recompute | None = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """hidden, residual (batch, length, d_model) → hidden, residual, state after the last position.

        `recompute` says what the backward pass, if there is to be one, computes again (see `Backbone.recompute`).
        """
        if recompute is not None:
            inputs = hidden, residual, state, sequence_ids
            found = self.mixer.recomputing(self.norm, *inputs, recompute, self.reads_both_strands)
            if found is not None:
                return found
            is_kept = torch.is_grad_enabled() and not is_transformed()  # torch.func takes no hooks of saved tensors
            if recompute == "all" and is_kept:
                # No dropout here, so no random state to replay.
                return checkpoint(self, *inputs, use_reentrant=False, preserve_rng_state=False)
        hidden, residual = self.norm(hidden, residual)
        if self.reads_both_strands:
            return self.mixer.both_strands(hidden, sequence_ids), residual, None
        hidden, state = self.mixer(hidden, state, sequence_ids)
        return hidden, residual, state

    def step(self, hidden: Tensor, residual: Tensor | None, state: Any) -> tuple[Tensor, Tensor, Any]:
        """The same for one position: hidden, residual (batch, d_model)."""
        hidden, residual = self.norm(hidden, residual)
        hidden, state = self.mixer.step(hidden, state)
        return hidden, residual, state


class MambaBlock(nn.Module):
    """A Mamba block for models of one's own: y = x + mixer(norm(x)), (batch, length, d_model) in and out.

    Args:
        d_model: width.
        options: fields of `ModelConfig` (d_state, d_conv, expand, dt_rank, discretization, …).

    >>> MambaBlock(d_model=32, d_state=16)(torch.zeros(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        config = ModelConfig(d_model=d_model, n_layer=1, **options)
        self.block = Block(config, config.mixers[0])

    def forward(self, x: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
        """x (batch, length, d_model); `sequence_ids` (batch, length) int32 packs several segments into a window."""
        return self.scan(x, None, sequence_ids)[0]

    def scan(self, x: Tensor, state: Any = None, sequence_ids: Tensor | None = None) -> tuple[Tensor, Any]:
        """The same for a chunk that follows another: with the state after the chunk before, and the one after this."""
        hidden, _, state = self.block(x, None, state, sequence_ids)
        return x + hidden, state
