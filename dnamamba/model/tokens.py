"""From a batch of stored windows to what the model eats: done on the device, so that the host moves one byte a base."""

from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS


class Batch(NamedTuple):
    """Windows ready for the model; all (batch, length), where the windows had length + 1 bases."""

    inputs: Tensor
    """uint8 tokens, bases [0, length) of each window"""
    targets: Tensor
    """uint8 tokens, bases [1, length + 1)"""
    soft_mask: Tensor
    """bool, True where the target was lower case in the source (repeats)"""


def prepare_batch(tokens: Tensor, reverse_complement: Tensor | None = None) -> Batch:
    """Strip the soft mask, take the reverse complement of some windows, then shift: inputs and their next bases.

    Args:
        tokens: (batch, length + 1) uint8 as in the token store, soft mask in bit 7, on the training device.
        reverse_complement: (batch,) bool, windows to read on the other strand; None reads all as stored.
    """
    assert tokens.dtype == torch.uint8, f"token windows are uint8, got {tokens.dtype}"
    if reverse_complement is not None:
        # The whole window turns before the shift, so that the other strand too is predicted from its own 5' side.
        # 3 − t is t XOR 3 for the bases 0..3, and leaves bit 7, the soft mask, alone.
        complement = torch.where((tokens & TOKEN_BITS) < BASES, tokens ^ (BASES - 1), tokens)
        tokens = torch.where(reverse_complement[:, None], complement.flip(1), tokens)
    plain = tokens & TOKEN_BITS
    return Batch(plain[:, :-1], plain[:, 1:], tokens[:, 1:] >= SOFT_MASK_BIT)
