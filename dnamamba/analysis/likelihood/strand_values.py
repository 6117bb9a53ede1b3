"""Tiles of a contig's two strands, run through the model in batches and in chunks, and what it says of each base.

Coordinates of a strand: on the forward strand those of the contig, on the reverse strand the same of its reverse
complement, so that the strand's base q is the contig's base length − 1 − q.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import tee
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import BASES, PAD, TOKEN_BITS, reverse_complement
from dnamamba.inference.batches import batches_by_length
from dnamamba.inference.load import Inference
from dnamamba.inference.stream import stream
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.loss import next_base_log_likelihood

TRACKS = ("log_likelihood", "p_A", "p_C", "p_G", "p_T", "entropy")


class StrandTile(NamedTuple):
    """A tile of a strand, in its coordinates."""

    reverse: bool
    start: int
    """First base that is read"""
    first: int
    """First base that is wanted; from start + 1 on"""
    end: int
    """Where the wanted bases end; the last of them is not read"""


class StrandValues(NamedTuple):
    """What the model says of some bases of a strand, in the contig's coordinates."""

    reverse: bool
    start: int
    """The first of them"""
    values: np.ndarray
    """(tracks, bases) fp32; NaN where the base is N"""


def describe_strands(
    inference: Inference[LanguageModel],
    tokens: np.ndarray,
    tiles: Sequence[StrandTile],
    tracks: Sequence[str],
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[StrandValues]:
    """The wanted bases of all tiles, in any order. Whoever takes them has put inference mode and autocast on.

    Tiles of like length go together, at most `batch_tokens` bases at once; where that is less than two tiles,
    they go in chunks, with the states handed on. How they are batched and chunked changes nothing beyond rounding.

    Args:
        tokens: (length,) uint8, the contig's tokens as in the token store.
        tracks: which of `TRACKS`, in the order of the values.
        progress: called with the number of bases that have been read since it was called before.
    """
    # One chunk is computed while the one before is fetched: the GPU never waits for the host.
    waiting: deque[_Launched] = deque()
    reads = np.array([tile.end - tile.start - 1 for tile in tiles], np.int64)
    for batch in batches_by_length(reads, batch_tokens, at_least=2):
        members = [tiles[index] for index in batch]
        for launched in _launch(inference, tokens, members, tracks, max(batch_tokens // len(members), 1)):
            waiting.append(launched)
            if len(waiting) > 1:
                yield from _values(tokens.size, waiting.popleft())
            if progress is not None:
                progress(launched.read)
    while waiting:
        yield from _values(tokens.size, waiting.popleft())


class _Launched(NamedTuple):
    """A chunk of a batch on its way."""

    tiles: Sequence[StrandTile]
    begin: int
    """Bases of each tile before the chunk"""
    values: "_Fetched"
    """(tiles, tracks, chunk)"""
    read: int
    """Bases of the tiles in it"""


def _launch(
    inference: Inference[LanguageModel],
    tokens: np.ndarray,
    tiles: Sequence[StrandTile],
    tracks: Sequence[str],
    chunk: int,
) -> Iterator[_Launched]:
    """Runs a batch chunk by chunk."""
    reverse = inference.compute.put(np.array([tile.reverse for tile in tiles]))
    # Each window holds a chunk's bases and one more: the chunk's inputs and their targets.
    for_inputs, for_targets = tee(map(inference.compute.put, _windows(tokens, tiles, chunk)))
    inputs = (window[:, :-1] for window in for_inputs)
    for output, window in zip(stream(inference.model.backbone, inputs), for_targets, strict=True):
        logits = inference.model.base_logits(output.hidden)
        values = describe(logits, window[:, 1:], reverse, tracks)
        read = sum(max(min(tile.end - 1 - tile.start, output.end) - output.begin, 0) for tile in tiles)
        yield _Launched(tiles, output.begin, _Fetched(values), read)


def _windows(tokens: np.ndarray, tiles: Sequence[StrandTile], chunk: int) -> Iterator[np.ndarray]:
    """(tiles, up to `chunk` + 1) uint8: the next bases of all tiles, PAD behind; the last of each window is the
    first of the one after it."""
    longest = max(tile.end - tile.start - 1 for tile in tiles)
    for begin in range(0, longest, chunk):
        count = min(chunk, longest - begin)
        window = np.full((len(tiles), count + 1), PAD, np.uint8)
        for row, tile in zip(window, tiles, strict=True):
            first = tile.start + begin
            bases = read_strand(tokens, tile.reverse, first, min(first + count + 1, tile.end))
            row[: bases.size] = bases
        yield window


def _values(length: int, chunk: _Launched) -> Iterator[StrandValues]:
    values = chunk.values.numpy()
    for row, tile in zip(values, chunk.tiles, strict=True):
        zero = tile.start + chunk.begin + 1  # the strand's base that row[:, 0] speaks of
        first, end = max(tile.first, zero), min(tile.end, zero + row.shape[1])
        if first < end:
            wanted = row[:, first - zero : end - zero]
            start = length - end if tile.reverse else first
            yield StrandValues(tile.reverse, start, wanted[:, ::-1] if tile.reverse else wanted)


def describe(logits: Tensor, targets: Tensor, reverse: Tensor, tracks: Sequence[str]) -> Tensor:
    """(sequences, tracks, length) fp32 from logits (sequences, length, 4) of the bases `targets` (sequences, length).

    NaN where a target is no base. Those with `reverse` (sequences,) have the probabilities in letters of the other
    strand.
    """
    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    letters = torch.where(reverse[:, None, None], p.flip(-1), p)
    columns: dict[str, Callable[[], Tensor]] = {
        "log_likelihood": lambda: next_base_log_likelihood(logits, targets),
        "entropy": lambda: -(p * log_p).sum(-1),
        **{f"p_{base}": lambda index=index: letters[..., index] for index, base in enumerate("ACGT")},  # type: ignore[misc]
    }
    stacked = torch.stack([columns[track]() for track in tracks], 1)
    return torch.where((targets < BASES)[:, None], stacked, torch.nan)


def read_strand(tokens: np.ndarray, reverse: bool, start: int, end: int) -> np.ndarray:
    """(end − start,) uint8: bases [start, end) of a strand, without the soft mask; none if start ≥ end."""
    if start >= end:
        return np.empty(0, np.uint8)
    if not reverse:
        return tokens[start:end] & TOKEN_BITS
    return reverse_complement(tokens[tokens.size - end : tokens.size - start]) & TOKEN_BITS


class _Fetched:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self.event = None
        self.host = tensor
        if tensor.is_cuda:
            self.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.host.copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def numpy(self) -> np.ndarray:
        if self.event is not None:
            self.event.synchronize()
        return self.host.numpy()
