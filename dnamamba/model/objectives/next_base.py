"""Predict each base from those before it."""

import torch
from torch import Tensor

from dnamamba.alphabet import PAD
from dnamamba.model.abilities import Ability
from dnamamba.model.objectives.objective import Objective
from dnamamba.model.tokens import PreparedBatch, on_strand, plain_tokens, soft_masked


class NextBase(Objective):
    """A window of length + 1 bases: inputs are all but the last, targets all but the first."""

    abilities = Ability.PREDICTS_NEXT_BASE
    needs = Ability.CAUSAL

    def prepare_batch(
        self,
        tokens: Tensor,
        reverse_complement: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        training: bool = False,
    ) -> PreparedBatch:
        """Strip the soft mask, take the reverse complement of some windows, then shift: inputs and their next bases.

        In packed windows a segment's first base is nobody's target: its position holds PAD, which does not count.
        """
        # The strand is chosen before the shift, so that the other strand too is predicted from its own 5' side.
        tokens, sequence_ids = on_strand(tokens, reverse_complement, sequence_ids)
        plain = plain_tokens(tokens)
        inputs, targets, soft_mask = plain[:, :-1], plain[:, 1:], soft_masked(tokens[:, 1:])
        if sequence_ids is None:
            return PreparedBatch(inputs, targets, soft_mask)
        ids = sequence_ids[:, :-1]
        return PreparedBatch(inputs, torch.where(ids == sequence_ids[:, 1:], targets, PAD), soft_mask, ids)
