"""Embeddings of sequences from a causal model: batches padded on the right, long sequences in chunks.

The model is causal and padding is never counted, so neither batch nor chunk changes an embedding beyond rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import BASES, PAD
from dnamamba.genome.sequences import NamedSequence
from dnamamba.inference.load import Inference

Pool = Literal["mean", "last", "position"]
Progress = Callable[[int], None]
"""Called with the number of bases that have just gone through the model."""


@torch.inference_mode()
def embed_stretches(
    inference: Inference,
    stretches: Sequence[NamedSequence],
    pool: Pool,
    out: np.ndarray,
    *,
    batch_tokens: int,
    both_strands: bool = False,
    progress: Progress | None = None,
) -> None:
    """Fills `out` with hidden states after the final norm.

    Args:
        out: fp32; (stretches, d_model) for `mean` (over A, C, G, T; NaN without any) and `last`; for `position`
            (bases of all stretches, d_model), one stretch after another, each in the order that it is read in.
        both_strands: the mean with the reverse complement's embedding; of the same base with `position`.
    """
    offsets = position_offsets(stretches)
    share = 0.5 if both_strands else 1.0
    for batch in _batches(stretches, batch_tokens):
        members = [stretches[index] for index in batch]
        for other in (False, True) if both_strands else (False,):
            if pool == "position":
                for row, begin, hidden in _states(inference, members, other, batch_tokens, progress):
                    first, size = int(offsets[batch[row]]), len(members[row])
                    end = begin + len(hidden)
                    place = (
                        slice(first + size - end, first + size - begin) if other else slice(first + begin, first + end)
                    )
                    values = share * (hidden[::-1] if other else hidden)
                    if other:
                        out[place] += values
                    else:
                        out[place] = values
            else:
                pooled = share * _pooled(inference, members, other, pool, batch_tokens, progress)
                out[batch] = out[batch] + pooled if other else pooled


def position_offsets(stretches: Sequence[NamedSequence]) -> np.ndarray:
    """(stretches + 1,) int64: where each begins among all positions."""
    return np.concatenate(([0], np.cumsum([len(stretch) for stretch in stretches], dtype=np.int64)))


def _pooled(
    inference: Inference,
    members: Sequence[NamedSequence],
    other: bool,
    pool: Pool,
    batch_tokens: int,
    progress: Progress | None,
) -> np.ndarray:
    """(members, d_model) float64."""
    device = inference.device
    total = torch.zeros(len(members), inference.model.config.d_model, dtype=torch.float64, device=device)
    counted = torch.zeros(len(members), dtype=torch.int64, device=device)
    lengths = torch.tensor([len(stretch) for stretch in members], device=device)
    for begin, tokens, hidden in _chunks(inference, members, other, batch_tokens, progress):
        if pool == "mean":
            is_base = tokens < BASES
            total += torch.where(is_base[..., None], hidden, 0).sum(1, dtype=torch.float64)
            counted += is_base.sum(1)
        else:
            last = lengths - 1 - begin
            here = (last >= 0) & (last < tokens.shape[1])
            state = hidden[torch.arange(len(members), device=device), last.clamp(0, tokens.shape[1] - 1)]
            total = torch.where(here[:, None], state.double(), total)
    if pool == "mean":
        total = torch.where(counted[:, None] > 0, total / counted[:, None], torch.nan)
    return total.cpu().numpy()


def _states(
    inference: Inference, members: Sequence[NamedSequence], other: bool, batch_tokens: int, progress: Progress | None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, first position in it, hidden states (positions, d_model) fp32 on the host)"""
    for begin, tokens, hidden in _chunks(inference, members, other, batch_tokens, progress):
        values = hidden.float().cpu().numpy()
        for row, stretch in enumerate(members):
            size = min(len(stretch) - begin, tokens.shape[1])
            if size > 0:
                yield row, begin, values[row, :size]


def _chunks(
    inference: Inference, members: Sequence[NamedSequence], other: bool, batch_tokens: int, progress: Progress | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first position, tokens (rows, size), hidden states (rows, size, d_model)) of the batch, PAD behind each row."""
    longest = len(members[0])
    padded = np.full((len(members), longest), PAD, np.uint8)
    for place, stretch in zip(padded, members, strict=True):
        place[: len(stretch)] = stretch.tokens(other)
    chunk = max(batch_tokens // len(members), 1)
    with inference.autocast():
        state = inference.model.init_state(len(members))
    for begin in range(0, longest, chunk):
        tokens = torch.from_numpy(padded[:, begin : begin + chunk]).to(inference.device)
        with inference.autocast():
            output = inference.model(tokens, state, logits=False)
        state = output.state
        yield begin, tokens, output.hidden
        if progress is not None:
            progress(sum(min(max(len(stretch) - begin, 0), chunk) for stretch in members))


def _batches(stretches: Sequence[NamedSequence], batch_tokens: int) -> Iterator[np.ndarray]:
    """Indices of stretches of like length, the longest first."""
    lengths = np.array([len(stretch) for stretch in stretches])
    order = np.argsort(-lengths, kind="stable")
    while order.size:
        size = max(1, batch_tokens // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]
