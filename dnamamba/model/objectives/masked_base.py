"""Predict bases that are masked from those on both sides (BERT's objective, arXiv 1810.04805, on single bases)."""

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, MASK, PAD
from dnamamba.model.abilities import Ability
from dnamamba.model.objectives.objective import Objective
from dnamamba.model.splitmix import STEP, splitmix64
from dnamamba.model.tokens import PreparedBatch, on_strand, plain_tokens, soft_masked

CHOSEN = 0.15
"""Share of the bases A, C, G, T that are to be predicted."""
MASKED, REPLACED = 0.8, 0.1
"""Shares of the chosen ones: read as MASK, and as a random base; the others are read as they are."""


class MaskedBase(Objective):
    """A window's bases from the second on: some are chosen, and alone are targets; N, PAD and the like never are.

    What is drawn for a window follows from its key: not from the batch that it is in, nor from the device. In training
    the chosen bases are masked, replaced and left in the shares above, so that every input has to be doubted. Otherwise
    all chosen ones are masked: likelihoods are those of bases that are not seen.
    """

    abilities = Ability.PREDICTS_MASKED_BASE
    needs = Ability(0)

    def prepare_batch(
        self,
        tokens: Tensor,
        reverse_complement: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        training: bool = False,
    ) -> PreparedBatch:
        """Strip the soft mask, take the reverse complement of some windows, then choose bases and hide them."""
        tokens, sequence_ids = on_strand(tokens, reverse_complement, sequence_ids)
        tokens = tokens[:, 1:]
        plain = plain_tokens(tokens)
        if keys is None:
            keys = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        bits = random_bits(keys, tokens.shape[1])
        chosen = (plain < BASES) & (_uniform(bits, 40) < CHOSEN)
        hidden: Tensor | int = MASK
        if training:
            fate, other = _uniform(bits, 16), (bits & (BASES - 1)).to(torch.uint8)
            hidden = torch.where(fate < MASKED, MASK, torch.where(fate < MASKED + REPLACED, other, plain))
        inputs, targets = torch.where(chosen, hidden, plain), torch.where(chosen, plain, PAD)
        ids = None if sequence_ids is None else sequence_ids[:, 1:]
        return PreparedBatch(inputs, targets, soft_masked(tokens), ids)


def random_bits(keys: Tensor, length: int) -> Tensor:
    """(batch, length) int64 of 64 random bits each: the first numbers of the SplitMix64 generator (Steele et al. 2014)
    that starts at each of the `keys` (batch,) int64. The same on all devices."""
    return splitmix64(keys[:, None] + torch.arange(length, device=keys.device) * STEP)


def _uniform(bits: Tensor, first: int) -> Tensor:
    """Multiples of 2⁻²⁴ in [0, 1), fp32, from 24 of the bits."""
    return ((bits >> first) & ((1 << 24) - 1)).float() * 2.0**-24
