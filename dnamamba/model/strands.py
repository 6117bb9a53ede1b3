"""Reverse-complement averaging of models that are trained on both strands but not equivariant (Caduceus-Ph)."""

import torch
from torch import Tensor

from dnamamba.model.abilities import Ability
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.tokens import reverse_complement


def averaged_logits(model: LanguageModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(f(x) + rc(f(rc(x)))) / 2: (batch, length, 4) fp32, of a model that predicts masked bases; as it predicts the
    base at each position, both strands speak of the same one.

    Args:
        tokens: (batch, length) uint8 without the soft-mask bit, padded on the right.
        lengths: (batch,) int64, bases of each sequence.
    """
    assert Ability.PREDICTS_MASKED_BASE in model.abilities
    both = torch.cat((tokens, reverse_complement(tokens, lengths)))
    forward, reverse = model(both).logits.chunk(2)
    # Position by position; what lies behind a sequence's end stays there, and means nothing.
    position = torch.arange(tokens.shape[1], device=tokens.device)
    source = lengths[:, None] - 1 - position
    source = torch.where(source >= 0, source, position)
    return (forward + reverse.flip(-1).gather(1, source[..., None].expand_as(reverse))) / 2
