"""Stretches of a contig's two strands, run through the model in batches and in chunks, and what it says of each base.

Coordinates of a strand: on the forward strand those of the contig, on the reverse strand the same of its reverse
complement, so that the strand's base q is the contig's base length − 1 − q.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import BASES, PAD, TOKEN_BITS, reverse_complement
from dnamamba.inference.load import Inference

TRACKS = ("log_likelihood", "p_A", "p_C", "p_G", "p_T", "entropy")


class Row(NamedTuple):
    """A stretch of a strand, in its coordinates."""

    reverse: bool
    start: int
    """First base that is read"""
    first: int
    """First base that is wanted; from start + 1 on"""
    end: int
    """Where the wanted bases end; the last of them is not read"""


class Piece(NamedTuple):
    """What the model says of some bases of a strand, in the contig's coordinates."""

    reverse: bool
    start: int
    """The first of them"""
    values: np.ndarray
    """(tracks, bases) fp32; NaN where the base is N"""


def run_rows(
    inference: Inference,
    tokens: np.ndarray,
    rows: Sequence[Row],
    tracks: Sequence[str],
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Piece]:
    """The wanted bases of all rows, in any order.

    Rows of like length go together, at most `batch_tokens` bases at once; where that is less than two rows, they go in
    chunks, with the states handed on. How rows are batched and chunked changes nothing beyond rounding.

    Args:
        tokens: (length,) uint8, the contig's tokens as in the token store.
        tracks: which of `TRACKS`, in the order of the values' rows.
        progress: called with the number of bases that have been read since it was called before.
    """
    # One chunk is computed while the one before is fetched: the GPU never waits for the host.
    waiting: deque[_Launched] = deque()
    order = sorted(rows, key=lambda row: row.start - row.end)
    while order:
        longest = order[0].end - order[0].start - 1
        size = max(batch_tokens // longest, 2)
        batch, order = order[:size], order[size:]
        for launched in _launch(inference, tokens, batch, tracks, max(batch_tokens // len(batch), 1)):
            waiting.append(launched)
            if len(waiting) > 1:
                yield from _pieces(tokens.size, waiting.popleft())
            if progress is not None:
                progress(launched.read)
    while waiting:
        yield from _pieces(tokens.size, waiting.popleft())


class _Launched(NamedTuple):
    """A chunk of a batch on its way."""

    rows: Sequence[Row]
    begin: int
    """Bases of each row before the chunk"""
    values: "_Fetched"
    """(rows, tracks, chunk)"""
    read: int
    """Bases of the rows in it"""


def _launch(
    inference: Inference, tokens: np.ndarray, rows: Sequence[Row], tracks: Sequence[str], chunk: int
) -> Iterator[_Launched]:
    """Runs a batch chunk by chunk."""
    longest = max(row.end - row.start - 1 for row in rows)
    reverse = _to_device(np.array([row.reverse for row in rows]), inference.device)
    state = None
    for begin in range(0, longest, chunk):
        count = min(chunk, longest - begin)
        window = np.full((len(rows), count + 1), PAD, np.uint8)
        for line, row in zip(window, rows, strict=True):
            there = read_strand(tokens, row.reverse, row.start + begin, min(row.start + begin + count + 1, row.end))
            line[: there.size] = there
        on_device = _to_device(window, inference.device)
        # A block of its own: yielding inside of it would leave the mode on for whoever uses the generator.
        with torch.inference_mode(), inference.autocast():
            output = inference.model(on_device[:, :-1], state)
            state = output.state
            assert output.logits is not None
            values = describe(output.logits, on_device[:, 1:], reverse, tracks)
        read = sum(min(max(row.end - 1 - row.start - begin, 0), count) for row in rows)
        yield _Launched(rows, begin, _Fetched(values), read)


def _pieces(length: int, chunk: _Launched) -> Iterator[Piece]:
    values = chunk.values.numpy()
    for number, row in enumerate(chunk.rows):
        zero = row.start + chunk.begin + 1  # the strand's base that values[number, :, 0] speaks of
        first, end = max(row.first, zero), min(row.end, zero + values.shape[2])
        if first < end:
            wanted = values[number, :, first - zero : end - zero]
            yield Piece(True, length - end, wanted[:, ::-1]) if row.reverse else Piece(False, first, wanted)


def describe(logits: Tensor, targets: Tensor, reverse: Tensor, tracks: Sequence[str]) -> Tensor:
    """(rows, tracks, length) fp32 from logits (rows, length, 4) of the bases `targets` (rows, length); NaN where a
    target is no base. Rows with `reverse` (rows,) have the probabilities in letters of the other strand."""
    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    letters = torch.where(reverse[:, None, None], p.flip(-1), p)
    columns: dict[str, Callable[[], Tensor]] = {
        "log_likelihood": lambda: log_p.gather(-1, targets.long().clamp(max=BASES - 1)[..., None])[..., 0],
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


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    # From pinned memory, or the copy would wait for what the GPU has still to do.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
