"""From a batch of stored windows to what the model eats: done on the device, so that the host moves one byte a base."""

from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, PAD, SOFT_MASK_BIT, TOKEN_BITS


class Batch(NamedTuple):
    """Windows ready for the model; all (batch, length), where the windows had length + 1 bases."""

    inputs: Tensor
    """uint8 tokens, bases [0, length) of each window"""
    targets: Tensor
    """uint8 tokens, bases [1, length + 1)"""
    soft_mask: Tensor
    """bool, True where the target was lower case in the source (repeats)"""
    sequence_ids: Tensor | None = None
    """int32, of the inputs, for packed rows; None where a row is one sequence"""


def prepare_batch(
    tokens: Tensor, reverse_complement: Tensor | None = None, sequence_ids: Tensor | None = None
) -> Batch:
    """Strip the soft mask, take the reverse complement of some windows, then shift: inputs and their next bases.

    Args:
        tokens: (batch, length + 1) uint8 as in the token store, soft mask in bit 7, on the training device.
        reverse_complement: (batch,) bool, windows to read on the other strand; None reads all as stored.
        sequence_ids: (batch, length + 1) int32 for rows that hold several sequences, each with a number of its own: a
            sequence's first base is nobody's target, its place is PAD, which does not count.
    """
    assert tokens.dtype == torch.uint8, f"token windows are uint8, got {tokens.dtype}"
    if reverse_complement is not None:
        # The whole window turns before the shift, so that the other strand too is predicted from its own 5' side.
        # 3 − t is t XOR 3 for the bases 0..3, and leaves bit 7, the soft mask, alone.
        complement = torch.where((tokens & TOKEN_BITS) < BASES, tokens ^ (BASES - 1), tokens)
        tokens = torch.where(reverse_complement[:, None], complement.flip(1), tokens)
    plain = tokens & TOKEN_BITS
    inputs, targets, soft_mask = plain[:, :-1], plain[:, 1:], tokens[:, 1:] >= SOFT_MASK_BIT
    if sequence_ids is None:
        return Batch(inputs, targets, soft_mask)
    if reverse_complement is not None:
        sequence_ids = torch.where(reverse_complement[:, None], sequence_ids.flip(1), sequence_ids)
    ids = sequence_ids[:, :-1]
    return Batch(inputs, torch.where(ids == sequence_ids[:, 1:], targets, PAD), soft_mask, ids)
