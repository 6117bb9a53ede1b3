"""Sequences read in chunks, the state carried from one to the next: what a causal model says does not change by it. A
model that sees both sides reads each sequence whole."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from dnamamba.model.language_model import Backbone, ModelState


class Chunk(NamedTuple):
    """A chunk that went through the model."""

    begin: int
    """Positions before it"""
    tokens: Tensor
    """(batch, length of the chunk)"""
    hidden: Tensor
    """(batch, length of the chunk, hidden), after the final norm; of `embeddings` d_model wide"""
    state: ModelState
    """After its last position"""

    @property
    def end(self) -> int:
        return self.begin + self.tokens.shape[1]


def stream(backbone: Backbone, chunks: Iterable[Tensor], state: ModelState | None = None) -> Iterator[Chunk]:
    """One forward pass after the other.

    It runs in the contexts of whoever takes the chunks from it: precision, and gradients or none.

    Args:
        chunks: (batch, any length) tokens on the backbone's device, one after the other: of sequences that are there
            whole, `tokens.split(length, dim=1)`.
        state: after the bases before the first chunk; None starts afresh.
    """
    begin = 0
    for tokens in chunks:
        assert begin == 0 or backbone.is_causal, "a model that sees both sides reads a sequence whole"
        hidden, state = backbone(tokens, state)
        yield Chunk(begin, tokens, hidden, state)
        begin += tokens.shape[1]


def embeddings(backbone: Backbone, tokens: Tensor, chunk: int) -> Iterator[Chunk]:
    """`Backbone.embeddings` of sequences, at most `chunk` positions at a time; whole where the model sees both sides.

    Args:
        tokens: (batch, length), PAD behind each sequence, on any device.
    """
    parts = tokens.split(chunk if backbone.is_causal else tokens.shape[1], dim=1)
    device = backbone.embedding.weight.device
    for each in stream(backbone, (part.to(device) for part in parts)):
        yield each._replace(hidden=backbone.embeddings(each.hidden))
