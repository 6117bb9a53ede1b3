"""What the head sees of sequences that go through the backbone in chunks, with the gradients of whole ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from dnamamba.inference.pooling import joined, pooled_part
from dnamamba.inference.stream import Chunk
from dnamamba.model.chunked_backward import State, backward_from_borders, keep_borders
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.config import Strands
from dnamamba.model.tokens import reverse_complement


class ChunkedFeatures:
    """Pooled hidden states, and the way back: pooling is a sum over chunks, and the loss sees the chunks through it.

    First all chunks are run without a graph, which gives `features`. After the loss's backward pass has reached these,
    `backward` runs each chunk again (`dnamamba.model.chunked_backward`).

    Args:
        tokens, lengths: as of `dnamamba.inference.pooling.strand_features`.
        chunk: positions that go through the backbone at a time.
        truncated: leaves out the gradients that pass from chunk to chunk.
        context: entered around the forward passes: precision.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        tokens: Tensor,
        lengths: Tensor,
        strands: Strands,
        *,
        chunk: int,
        truncated: bool = False,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._truncated, self._context = truncated, context
        sides = [tokens] if strands == "one" else [tokens, reverse_complement(tokens, lengths)]
        with context():
            self._strands = [_StrandInChunks(model, side.split(chunk, dim=1), lengths) for side in sides]
        first, last = self._strands[0].pooled, self._strands[-1].pooled
        self.features = first if strands == "one" else joined(first, last, strands)

    def backward(self) -> None:
        """From the gradient that has arrived at the features to that of the backbone's parameters."""
        for strand in self._strands:
            with self._context():
                strand.backward(self._truncated)


class _StrandInChunks:
    def __init__(self, model: SequenceClassifier, chunks: tuple[Tensor, ...], lengths: Tensor) -> None:
        self.model, self.chunks, self.lengths = model, chunks, lengths
        pooled = torch.zeros(len(lengths), model.config.d_model, device=lengths.device)

        def advance(number: int, state: State) -> State:
            part, state = self._part(number, state)
            pooled.add_(part)
            return state

        self.kept = keep_borders(advance, len(chunks))
        with torch.no_grad():
            advance(len(chunks) - 1, None if self.kept is None else self.kept[len(chunks) - 2])
        self.pooled = pooled.requires_grad_()

    def _part(self, number: int, state: State) -> tuple[Tensor, State]:
        tokens = self.chunks[number]
        hidden, state = self.model.backbone(tokens, state)
        chunk = Chunk(number * self.chunks[0].shape[1], tokens, hidden, state)
        return pooled_part(self.model.head_config.pooling, chunk, self.lengths), state

    def backward(self, truncated: bool) -> None:
        arrived = self.pooled.grad
        assert arrived is not None, "the loss's backward pass comes first"

        def part(number: int, state: State) -> tuple[Tensor, State]:
            pooled, state = self._part(number, state)
            return (pooled * arrived).sum(), state

        backward_from_borders(part, len(self.chunks), self.kept, truncated=truncated)
