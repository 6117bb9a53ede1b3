"""Windows of L + 1 bases, each a pure function of (seed, epoch, index).

A plan tiles its intervals: consecutive windows of an interval begin L bases apart, inputs are bases [0, L) and targets
[1, L + 1), so neighbours share one base and every target is predicted once. In training each epoch shifts the tiles of
each interval by its own random phase, so that over epochs every base of the split is seen and at every position of the
window; the order of an epoch is a seeded permutation that is computed, never stored. No state: workers, resuming and
the number of devices change nothing.
"""

from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import TokenStore

__all__ = ["Window", "WindowPlan", "hash_bits", "hash_key", "permute", "reverse_complement"]


SHORT = 512
"""Windows up to here are gathered by numpy in one call, longer ones copied row by row: each the faster there."""
_64_BITS = (1 << 64) - 1


class Window(NamedTuple):
    """Bases [start, end) of a contig, 0-based; end − start is L + 1."""

    contig: str
    start: int
    end: int
    reverse_complement: bool
    """To be reverse-complemented before the shift; `read` and `batch` leave that to the caller."""


class _Epoch(NamedTuple):
    """The tiles of one epoch. Tile numbers count through all intervals, skipped ones included."""

    number: int
    first: np.ndarray
    """(intervals,) int64: the store position of each interval's first tile."""
    tile: np.ndarray
    """(intervals + 1,) int64: the number of each interval's first tile; the last entry is their count."""
    skipped_shift: np.ndarray
    """(skipped,) int64: each skipped tile's number less the skipped ones before it."""

    @property
    def size(self) -> int:
        return int(self.tile[-1]) - len(self.skipped_shift)


class WindowPlan:
    """The windows of `length` + 1 bases in the intervals of a split.

    - `max_n_fraction`: windows with more N than this fraction of their bases are skipped.
    - `random_phase`: training: shifted tiles, shuffled order. Without it the windows are fixed, in genomic order, the
      same in every epoch.
    - `reverse_complement`: half of the windows, drawn by (seed, epoch, index), are flagged.

    With fixed windows the last bases of each interval, fewer than `length`, are in no window: see `uncovered_bases`.
    Raises `InputError` if no interval holds length + 1 bases, or all windows are N.
    """

    def __init__(
        self,
        store: TokenStore,
        intervals: tuple[Interval, ...],
        length: int,
        seed: int,
        max_n_fraction: float = 0.1,
        reverse_complement: bool = False,
        random_phase: bool = False,
    ) -> None:
        assert length >= 1
        self.store, self.length, self.seed = store, length, seed
        self.max_n = int(max_n_fraction * (length + 1))
        self.reverse_complement, self.random_phase = reverse_complement, random_phase
        longest = max(intervals, key=lambda interval: interval.length, default=None)
        if longest is None or longest.length <= length:
            has = (
                "there is no interval" if longest is None else f"the longest interval is {longest} of {longest.length}"
            )
            raise InputError(f"length {length} is too long: a window needs {length + 1} bases, but {has}; give less")
        self.intervals = tuple(interval for interval in intervals if interval.length > length)
        """Those long enough for a window."""
        self.short_bases = sum(interval.length for interval in intervals if interval.length <= length)
        """Bases in intervals too short for a window."""
        offsets = [store.contig(interval.contig).offset for interval in self.intervals]
        self._starts = np.array([o + i.start for o, i in zip(offsets, self.intervals, strict=True)], np.int64)
        self._lengths = np.array([interval.length for interval in self.intervals], np.int64)
        self._offsets = np.array(offsets, np.int64)
        self._epoch: _Epoch | None = None
        if self.epoch_size(0) == 0:
            raise InputError(
                f"{store.path}: every window of length {length} has more than {max_n_fraction:.0%} N; "
                "allow more N or choose other intervals"
            )

    def epoch_size(self, epoch: int) -> int:
        """Windows of an epoch, without the skipped ones. Differs a little between epochs with a random phase."""
        return self._tiles(epoch).size

    def skipped(self, epoch: int) -> int:
        """Windows of an epoch left out for too many N."""
        return len(self._tiles(epoch).skipped_shift)

    def uncovered_bases(self, epoch: int) -> int:
        """Bases of the intervals that are in no tile of this epoch: before the phase, at ends, in short intervals."""
        tiles = self._tiles(epoch)
        return int((self._lengths - np.diff(tiles.tile) * self.length - 1).sum()) + self.short_bases

    def window(self, epoch: int, index: int) -> Window:
        """Where a window lies; `IndexError` beyond the epoch's size."""
        starts, intervals = self._locate(epoch, np.array([index], np.int64))
        start = int(starts[0] - self._offsets[intervals[0]])
        flag = bool(self._flags(epoch, np.array([index], np.int64))[0])
        return Window(self.intervals[intervals[0]].contig, start, start + self.length + 1, flag)

    def windows(self, epoch: int, index: int) -> list[Window]:
        """All segments of a window: the whole. Plans that pack several into a window have the same method."""
        return [self.window(epoch, index)]

    def read(self, epoch: int, index: int) -> np.ndarray:
        """(length + 1,) uint8 tokens of a window with their soft-mask bits, as they stand in the genome: a view."""
        start = int(self._locate(epoch, np.array([index], np.int64))[0][0])
        return self.store.tokens[start : start + self.length + 1]

    def positions(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(windows,) int64: where in the store the windows at `indices` (windows,) of an epoch begin."""
        return self._locate(epoch, np.asarray(indices, np.int64))[0]

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(windows, length + 1) uint8 tokens as in the genome, and (windows,) bool reverse-complement flags."""
        indices = np.asarray(indices, np.int64)
        starts, _ = self._locate(epoch, indices)
        return rows_at(self.store.tokens, starts, self.length + 1), self._flags(epoch, indices)

    def _tiles(self, epoch: int) -> _Epoch:
        key = epoch if self.random_phase else 0
        if self._epoch is None or self._epoch.number != key:
            phases = np.zeros_like(self._starts)
            if self.random_phase:
                # At most length − 1, and such that every interval keeps a window.
                choices = np.minimum(self.length, self._lengths - self.length).astype(np.uint64)
                numbers = np.arange(len(phases), dtype=np.uint64)
                phases = (hash_bits(numbers, self.seed, epoch, 1) % choices).astype(np.int64)
            counts = (self._lengths - 1 - phases) // self.length
            tile = np.concatenate(([0], np.cumsum(counts)))
            first = self._starts + phases
            skipped = self._skipped_tiles(first, tile)
            self._epoch = _Epoch(key, first, tile, skipped - np.arange(len(skipped)))
        return self._epoch

    def _skipped_tiles(self, first: np.ndarray, tile: np.ndarray) -> np.ndarray:
        """Ascending numbers of the tiles with more than `max_n` N: only tiles that meet a run of N are looked at."""
        runs = self.store.all_n_runs
        first_run = np.searchsorted(runs[:, 1], self._starts, side="right")
        last_run = np.searchsorted(runs[:, 0], self._starts + self._lengths, side="left")
        intervals, run = _expand(first_run, last_run)
        begins, counts = first[intervals], np.diff(tile)[intervals]
        # The tile [begin + kL, begin + (k + 1)L + 1) meets the run [start, end) for k from (start − begin − 1) // L …
        low = np.clip((runs[run, 0] - begins - 1) // self.length, 0, counts)
        high = np.clip(-((begins - runs[run, 1]) // self.length), 0, counts)
        pairs, within = _expand(low, high)
        numbers = np.unique(tile[intervals[pairs]] + within)
        starts = self._tile_starts(numbers, first, tile)[0]
        n_count = self.store.n_before(starts + self.length + 1) - self.store.n_before(starts)
        return numbers[n_count > self.max_n]

    def _tile_starts(self, numbers: np.ndarray, first: np.ndarray, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        intervals = np.searchsorted(tile, numbers, side="right") - 1
        return first[intervals] + (numbers - tile[intervals]) * self.length, intervals

    def _locate(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store position and interval number of each window."""
        tiles = self._tiles(epoch)
        size = tiles.size
        if len(indices) and not (indices.min() >= 0 and indices.max() < size):
            raise IndexError(f"epoch {epoch} has windows 0 to {size - 1}; wanted {indices.min()} to {indices.max()}")
        order = permute(indices, size, hash_key(self.seed, epoch, 2)) if self.random_phase else indices
        numbers = order + np.searchsorted(tiles.skipped_shift, order, side="right")
        return self._tile_starts(numbers, tiles.first, tiles.tile)

    def _flags(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return drawn_flags(indices, self.seed, epoch) if self.reverse_complement else np.zeros(len(indices), bool)


def rows_at(tokens: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """(windows, width) uint8: the tokens from each of `starts` (windows,) on, copied."""
    if width <= SHORT:
        return np.lib.stride_tricks.sliding_window_view(tokens, width)[starts]
    rows = np.empty((len(starts), width), np.uint8)
    for row, start in enumerate(starts.tolist()):
        rows[row] = tokens[start : start + width]
    return rows


def drawn_flags(indices: np.ndarray, key: int, epoch: int) -> np.ndarray:
    """(windows,) bool: which windows of an epoch are reverse-complemented, half of them."""
    return (hash_bits(indices.astype(np.uint64), key, epoch, 3) >> np.uint64(63)).astype(bool)


def _expand(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, k) with low[i] ≤ k < high[i], as two int64 arrays, i ascending."""
    sizes = np.maximum(high - low, 0)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return rows, np.arange(len(rows)) + (low - np.cumsum(sizes) + sizes)[rows]


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """A keyed permutation of 0 … size − 1 at `indices` (k,) int64, without a table: O(k) time and memory.

    A Feistel network on pairs (left, right) of a rectangle a × b just above `size` (Black & Rogaway 2002, "FE2": rounds
    add modulo a or b); what falls beyond `size` is encrypted again until it falls inside, which keeps it a bijection.
    """
    if size <= 1:
        return np.zeros_like(indices)
    rows = int(np.ceil(np.sqrt(size)))
    a, b = np.uint64(rows), np.uint64(-(-size // rows))
    values: np.ndarray = indices.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left: np.ndarray = values[outside] % a
        right: np.ndarray = values[outside] // a
        for round_number in range(3):
            left = (left + hash_bits(right, key, round_number, 4) % a) % a
            right = (right + hash_bits(left, key, round_number, 5) % b) % b
        values[outside] = left + right * a
        outside = values >= size
    return values.astype(np.int64)


def hash_key(*parts: int) -> int:
    """64 bits out of integers: `_mix` chained over them, in Python's own, which are quicker for a single number."""
    state = 0
    for part in parts:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & _64_BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _64_BITS
        state ^= state >> 31
    return state


def hash_bits(values: np.ndarray, *key: int) -> np.ndarray:
    """uint64 values to 64 well-mixed bits each, for a key of integers."""
    return _mix(values ^ np.uint64(hash_key(*key)))


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014) on a uint64 array."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
