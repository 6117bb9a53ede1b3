"""Rows that hold several short sequences: what is too short for a window of its own is trained on all the same.

Every contig or interval of at most `length` bases is a sequence; best-fit decreasing puts them into rows of length + 1
tokens. The rows stand in an epoch among the windows of the longer intervals, in one seeded order. Which sequences share
a row stays the same over the epochs: nothing passes from one to the next, so their company makes no difference.
"""

from bisect import bisect_left, insort

import numpy as np

from dnamamba.alphabet import PAD
from dnamamba.genome.intervals import Interval
from dnamamba.genome.windows import Window, WindowPlan, hash_bits, hash_key, permute


class PackedPlan:
    """The windows of a training plan and, shuffled among them, packed rows of the intervals too short for it.

    Sequences with more N than `max_n_fraction` of their bases are left out, as windows are, and those of a single base.
    """

    def __init__(self, windows: WindowPlan, intervals: tuple[Interval, ...], max_n_fraction: float) -> None:
        self.long = windows
        self.length, self.seed = windows.length, windows.seed
        short = [interval for interval in intervals if 2 <= interval.length <= self.length]
        offsets = np.array([windows.store.contig(interval.contig).offset for interval in short], np.int64)
        starts = offsets + np.array([interval.start for interval in short], np.int64)
        lengths = np.array([interval.length for interval in short], np.int64)
        n_count = windows.store.n_before(starts + lengths) - windows.store.n_before(starts)
        kept = np.flatnonzero(n_count <= max_n_fraction * lengths)
        rows = pack(lengths[kept], self.length + 1)
        kept = kept[np.argsort(rows, kind="stable")]
        self.sequences = tuple(short[index] for index in kept.tolist())
        """The short intervals, row by row."""
        self._starts, self._lengths = starts[kept], lengths[kept]
        self._first = np.concatenate(([0], np.cumsum(np.bincount(rows))))

    @property
    def packed_rows(self) -> int:
        """Rows of several short sequences in an epoch."""
        return len(self._first) - 1

    def epoch_size(self, epoch: int) -> int:
        """Windows and packed rows of an epoch."""
        return self.long.epoch_size(epoch) + self.packed_rows

    def skipped(self, epoch: int) -> int:
        """Windows of an epoch left out for too many N."""
        return self.long.skipped(epoch)

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows as they stand in the genome, reverse-complement flags, and the number of each base's sequence.

        (rows, length + 1) uint8, (rows,) bool, (rows, length + 1) int32; a row's sequences are 0, 1, … in their order,
        then PAD with the next number up to its end.
        """
        places = self._places(epoch, indices)
        is_row = places >= 0
        tokens = np.full((len(places), self.length + 1), PAD, np.uint8)
        flags = self._flags(epoch, indices)
        ids = np.zeros(tokens.shape, np.int32)
        if not is_row.all():
            tokens[~is_row], flags[~is_row] = self.long.batch(epoch, -1 - places[~is_row])
        for into in np.flatnonzero(is_row).tolist():
            own = self._of_row(int(places[into]))
            end = 0
            for number, sequence in enumerate(range(own.start, own.stop)):
                start, length = self._starts[sequence], self._lengths[sequence]
                tokens[into, end : end + length] = self.long.store.tokens[start : start + length]
                ids[into, end : end + length] = number
                end += length
            ids[into, end:] = own.stop - own.start
        return tokens, flags, ids

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a row's sequences lie."""
        place = int(self._places(epoch, np.array([index]))[0])
        if place < 0:
            return self.long.windows(epoch, -1 - place)
        flag = bool(self._flags(epoch, np.array([index]))[0])
        return [Window(*interval, flag) for interval in self.sequences[self._of_row(place)]]

    def _of_row(self, row: int) -> slice:
        return slice(int(self._first[row]), int(self._first[row + 1]))

    def _places(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The packed row at each index, or −1 − k for window k of the plan."""
        size = self.epoch_size(epoch)
        if len(indices) and not (indices.min() >= 0 and indices.max() < size):
            raise IndexError(f"epoch {epoch} has rows 0 to {size - 1}; asked for {indices.min()} to {indices.max()}")
        order = permute(np.asarray(indices, np.int64), size, hash_key(self.seed, epoch, 6))
        return np.where(order < self.packed_rows, order, self.packed_rows - 1 - order)

    def _flags(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        if not self.long.reverse_complement:
            return np.zeros(len(indices), bool)
        return (hash_bits(indices.astype(np.uint64), self.seed, epoch, 7) >> np.uint64(63)).astype(bool)


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """(k,) int64: the row of each sequence by best-fit decreasing: the longest first, each where least room is left."""
    rows = np.empty(len(lengths), np.int64)
    room: list[tuple[int, int]] = []  # (free bases, row), ascending
    opened = 0
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        at = bisect_left(room, (length, -1))
        free, row = room.pop(at) if at < len(room) else (capacity, opened)
        opened += row == opened
        rows[sequence] = row
        if free - length >= 2:
            insort(room, (free - length, row))
    return rows
