"""From a batch of stored windows to what a model eats: done on the device, so that the host moves one byte a base."""

from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS


class PreparedBatch(NamedTuple):
    """Windows ready for the model; all (batch, length)."""

    inputs: Tensor
    """uint8 tokens"""
    targets: Tensor
    """uint8 tokens; for `NextBase` of each input's next base"""
    soft_mask: Tensor
    """bool, True where the target was lower case in the source (repeats)"""
    sequence_ids: Tensor | None = None
    """int32, of the inputs, for packed windows; None where a window is one sequence"""
    classes: Tensor | None = None
    """uint8, of the targets: their region classes, where those are weighed"""


def on_strand(
    tokens: Tensor, reverse_complement: Tensor | None, sequence_ids: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Stored windows (batch, length) uint8, those where `reverse_complement` (batch,) is True read on the other strand,
    with their soft mask; and their sequences' ids, (batch, length) or None, reversed with them."""
    assert tokens.dtype == torch.uint8, f"token windows are uint8, got {tokens.dtype}"
    if reverse_complement is None:
        return tokens, sequence_ids
    tokens = torch.where(reverse_complement[:, None], complement(tokens).flip(1), tokens)
    if sequence_ids is not None:
        sequence_ids = torch.where(reverse_complement[:, None], sequence_ids.flip(1), sequence_ids)
    return tokens, sequence_ids


def complement(tokens: Tensor) -> Tensor:
    """Of each token, the soft mask kept; what is no base stays as it is."""
    # 3 − t is t XOR 3 for the bases 0..3, and leaves bit 7, the soft mask, alone.
    return torch.where(plain_tokens(tokens) < BASES, tokens ^ (BASES - 1), tokens)


def plain_tokens(tokens: Tensor) -> Tensor:
    """Without the soft-mask bit."""
    return tokens & TOKEN_BITS


def soft_masked(tokens: Tensor) -> Tensor:
    """bool: lower case in the source."""
    return tokens >= SOFT_MASK_BIT


def reverse_complement(tokens: Tensor, lengths: Tensor, where: Tensor | None = None) -> Tensor:
    """The other strand of right-padded sequences, padding again on the right.

    Args:
        tokens: (batch, length) uint8 without the soft-mask bit.
        lengths: (batch,) bases of each sequence.
        where: (batch,) bool, the sequences to reverse-complement; None takes all.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    source = lengths[:, None] - 1 - position
    other = complement(tokens.gather(1, source.clamp(min=0)))
    other = torch.where(source >= 0, other, tokens)  # the padding stays
    return other if where is None else torch.where(where[:, None], other, tokens)
