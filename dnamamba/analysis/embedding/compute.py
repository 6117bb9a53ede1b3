"""Embeddings of sequences: batches padded on the right, long sequences in chunks (whole, by a model of both sides).

No base sees the padding, nor is it counted, so neither batch nor chunk changes an embedding beyond rounding. Those of a
reverse-complement-equivariant model are `Backbone.embeddings`: the same for both strands.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dnamamba.genome.sequences import NamedSequence
from dnamamba.inference.batches import batches_by_length, padded
from dnamamba.inference.load import Inference
from dnamamba.inference.pooling import pool_last, pool_mean
from dnamamba.inference.stream import Chunk, embeddings
from dnamamba.model.abilities import require_last_state
from dnamamba.model.language_model import LanguageModel

Pool = Literal["mean", "last", "position"]
BasesRead = Callable[[int], None]
"""Called with the number of bases that have just gone through the model."""


def check_pool(model: LanguageModel, pool: Pool) -> None:
    """Raises `InputError` for `last` of a model that sees both sides."""
    if pool == "last":
        require_last_state(model.abilities, "--pool last", "--pool mean or position")


@torch.inference_mode()
def embed_sequences(
    inference: Inference[LanguageModel],
    sequences: Sequence[NamedSequence],
    pool: Pool,
    out: np.ndarray,
    *,
    batch_tokens: int,
    both_strands: bool = False,
    progress: BasesRead | None = None,
) -> None:
    """Fills `out` with hidden states after the final norm.

    Args:
        out: fp32; (sequences, d_model) for `mean` (over A, C, G, T; NaN without any) and `last`; for `position`
            (bases of all sequences, d_model), one sequence after another, each in the order that it is read in.
        both_strands: the mean with the reverse complement's embedding; of the same base with `position`.
    """
    offsets = position_offsets(sequences)
    lengths = np.diff(offsets)
    share = 0.5 if both_strands else 1.0
    with inference.autocast():
        for batch in batches_by_length(lengths, batch_tokens):
            members = [sequences[index] for index in batch]
            for other in (False, True) if both_strands else (False,):
                chunks = _chunks(inference, members, other, batch_tokens, progress)
                if pool == "position":
                    for begin, row, hidden in _positions(chunks, lengths[batch]):
                        first, size = int(offsets[batch[row]]), len(members[row])
                        end = begin + len(hidden)
                        if other:
                            out[first + size - end : first + size - begin] += share * hidden[::-1]
                        else:
                            out[first + begin : first + end] = share * hidden
                else:
                    on_device = inference.compute.put(lengths[batch])
                    pooled = share * _pooled(chunks, on_device, pool).cpu().numpy()
                    out[batch] = out[batch] + pooled if other else pooled


def position_offsets(sequences: Sequence[NamedSequence]) -> np.ndarray:
    """(sequences + 1,) int64: where each begins among all positions."""
    return np.concatenate(([0], np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)))


def _pooled(chunks: Iterator[Chunk], lengths: Tensor, pool: Pool) -> Tensor:
    """(members, d_model) float64."""
    if pool == "mean":
        return pool_mean(chunks, lengths, bases_only=True, dtype=torch.float64)
    return pool_last(chunks, lengths, dtype=torch.float64)


def _positions(chunks: Iterator[Chunk], lengths: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(first position, row, its hidden states from there on (positions, d_model) fp32 on the host)"""
    for chunk in chunks:
        values = chunk.hidden.float().cpu().numpy()
        for row, size in enumerate((lengths - chunk.begin).clip(max=len(values[0])).tolist()):
            if size > 0:
                yield chunk.begin, row, values[row, :size]


def _chunks(
    inference: Inference[LanguageModel],
    members: Sequence[NamedSequence],
    other: bool,
    batch_tokens: int,
    progress: BasesRead | None,
) -> Iterator[Chunk]:
    """The members' hidden states, PAD behind each."""
    tokens = torch.from_numpy(padded([sequence.tokens(other) for sequence in members]))
    for chunk in embeddings(inference.model.backbone, tokens, max(batch_tokens // len(members), 1)):
        yield chunk
        if progress is not None:
            progress(sum(max(min(len(sequence), chunk.end) - chunk.begin, 0) for sequence in members))
