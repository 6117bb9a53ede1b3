"""What a position's embedding adds of the bases before it, so that words of several bases are known from block one."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.alphabet import BASES, PAD
from dnamamba.model.mixers.mixer import segment_numbers
from dnamamba.model.precision import data_dtype
from dnamamba_kernels import before_part, current_ranks

WORD = 12
"""Bases of a word that starts out the same on both strands; the table's other bases are those that followed it there"""


class ContextEmbedding(nn.Module):
    """Σᵢ Wᵢ[xₜ₋ᵢ] for i = 1 … kmer − 1: a table of the four bases for each of the positions before.

    Two positions after the same k-mer have the same sum, and after k-mers of few differences similar ones: the key by
    which a mixer finds an earlier copy. N, padding and what lies before a sequence add nothing. As a matrix product
    with the bases' one-hot vectors its gradient is deterministic. Its state is the last kmer − 1 tokens.
    """

    def __init__(self, kmer: int, d_model: int) -> None:
        super().__init__()
        self.before = kmer - 1
        self.weight = nn.Parameter(torch.empty(d_model, self.before * BASES))
        """(d_model, (kmer − 1) · 4), the farthest base first"""

    @torch.no_grad()
    def start_with_words(self) -> None:
        """Draws tables ten times as large as embeddings, in half of the channels the same for the `WORD` bases before
        a position and for their reverse complement: a mixer that compares positions by content, and no more, then finds
        both copies of a word."""
        nn.init.normal_(self.weight, std=0.2)
        tables = self.weight.view(len(self.weight), self.before, BASES)
        word = tables[::2, -WORD:]
        word.copy_((word + word.flip(1, 2)) / math.sqrt(2))  # farthest first; A, C, G, T reversed is the complement

    def init_state(self, batch: int) -> Tensor:
        """(batch, kmer − 1) uint8: nothing, before the first position."""
        return torch.full((batch, self.before), PAD, dtype=torch.uint8, device=self.weight.device)

    def forward(self, tokens: Tensor, state: Tensor | None, sequence_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """tokens (batch, length) without the soft-mask bit → what is added, (batch, length, d_model), and the state.

        `sequence_ids` as in `Mixer.forward`: the given state belongs to the first segment.
        """
        start = self.init_state(len(tokens)) if state is None else state
        after = None
        if current_ranks() is not None:  # N, or what is no base, adds nothing: zeros of other sequences must not be A
            start, after = (
                PAD - each for each in before_part(PAD - tokens.to(torch.uint8), self.before, PAD - start, sequence_ids)
            )
        # One window a position, and one more, which is the state.
        windows = torch.cat((start, tokens.to(torch.uint8)), dim=1).unfold(1, self.before, 1)
        if sequence_ids is not None and tokens.shape[1]:
            segment = segment_numbers(sequence_ids)
            seen = torch.cat((segment.new_zeros(start.shape), segment), dim=1).unfold(1, self.before, 1)
            own = torch.cat((segment, segment[:, -1:]), dim=1)
            windows = torch.where(seen == own[..., None], windows, PAD)
        return self._product(windows[:, :-1]), windows[:, -1].clone() if after is None else after

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one position: token (batch,)."""
        return self._product(state), torch.cat((state[:, 1:], token.to(torch.uint8)[:, None]), dim=1)

    def _product(self, windows: Tensor) -> Tensor:
        """windows (…, kmer − 1) uint8 → (…, d_model)."""
        one_hot = windows[..., None] == torch.arange(BASES, dtype=torch.uint8, device=windows.device)
        return F.linear(one_hot.flatten(-2).to(data_dtype(self.weight)), self.weight)
