"""Windows that hold several short sequences: what is too short for a window of its own is trained on all the same.

Every contig or interval of at most `length` bases is a sequence; best-fit decreasing puts them into packed windows of
length + 1 tokens. These stand in an epoch among the windows of the longer intervals, in one seeded order. Which
sequences share a window stays the same over the epochs: nothing passes from one to the next, so it makes no
difference.
"""

from bisect import bisect_left, insort

import numpy as np

from dnamamba.alphabet import PAD
from dnamamba.genome.intervals import Interval
from dnamamba.genome.windows import Window, WindowPlan, hash_bits, hash_key, permute


class PackedPlan:
    """The windows of a training plan and, shuffled among them, packed windows of the intervals too short for it.

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
        packed = pack(lengths[kept], self.length + 1)
        kept = kept[np.argsort(packed, kind="stable")]
        self.sequences = tuple(short[index] for index in kept.tolist())
        """The short intervals, window by window."""
        self._starts, self._lengths = starts[kept], lengths[kept]
        self._first = np.concatenate(([0], np.cumsum(np.bincount(packed))))

    @property
    def packed_windows(self) -> int:
        """Windows of several short sequences in an epoch."""
        return len(self._first) - 1

    def epoch_size(self, epoch: int) -> int:
        """Whole and packed windows of an epoch."""
        return self.long.epoch_size(epoch) + self.packed_windows

    def skipped(self, epoch: int) -> int:
        """Windows of an epoch left out for too many N."""
        return self.long.skipped(epoch)

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows as they stand in the genome, reverse-complement flags, and the number of each base's segment.

        (windows, length + 1) uint8, (windows,) bool, (windows, length + 1) int32; a window's segments
        are 0, 1, … in their order, then PAD with the next number up to its end.
        """
        numbers = self._numbers(epoch, indices)
        is_packed = numbers >= 0
        tokens = np.full((len(numbers), self.length + 1), PAD, np.uint8)
        flags = self._flags(epoch, indices)
        ids = np.zeros(tokens.shape, np.int32)
        if not is_packed.all():
            tokens[~is_packed], flags[~is_packed] = self.long.batch(epoch, -1 - numbers[~is_packed])
        for into in np.flatnonzero(is_packed).tolist():
            own = self._segments(int(numbers[into]))
            end = 0
            for number, sequence in enumerate(range(own.start, own.stop)):
                start, length = self._starts[sequence], self._lengths[sequence]
                tokens[into, end : end + length] = self.long.store.tokens[start : start + length]
                ids[into, end : end + length] = number
                end += length
            ids[into, end:] = own.stop - own.start
        return tokens, flags, ids

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a window's segments lie."""
        number = int(self._numbers(epoch, np.array([index]))[0])
        if number < 0:
            return self.long.windows(epoch, -1 - number)
        flag = bool(self._flags(epoch, np.array([index]))[0])
        return [Window(*interval, flag) for interval in self.sequences[self._segments(number)]]

    def _segments(self, window: int) -> slice:
        return slice(int(self._first[window]), int(self._first[window + 1]))

    def _numbers(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """The packed window at each index, or −1 − k for window k of the plan."""
        size = self.epoch_size(epoch)
        if len(indices) and not (indices.min() >= 0 and indices.max() < size):
            raise IndexError(f"epoch {epoch} has windows 0 to {size - 1}; wanted {indices.min()} to {indices.max()}")
        order = permute(np.asarray(indices, np.int64), size, hash_key(self.seed, epoch, 6))
        return np.where(order < self.packed_windows, order, self.packed_windows - 1 - order)

    def _flags(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        if not self.long.reverse_complement:
            return np.zeros(len(indices), bool)
        return (hash_bits(indices.astype(np.uint64), self.seed, epoch, 7) >> np.uint64(63)).astype(bool)


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """(k,) int64: the packed window of each sequence by best-fit decreasing: the longest first, each where least is
    left free."""
    packed = np.empty(len(lengths), np.int64)
    partly_filled: list[tuple[int, int]] = []  # (free bases, window), ascending
    opened = 0
    for sequence in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[sequence])
        at = bisect_left(partly_filled, (length, -1))
        free, window = partly_filled.pop(at) if at < len(partly_filled) else (capacity, opened)
        opened += window == opened
        packed[sequence] = window
        if free - length >= 2:
            insort(partly_filled, (free - length, window))
    return packed
