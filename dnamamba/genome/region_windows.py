"""Training windows that show one class of regions: exons, promoters, what a BED file names.

The class's bases are cut into spans of at most half a window. In an epoch every span is shown once, at a random
position of its window, in a seeded order. So a base of a class is read once an epoch and more where its regions lie
close together, with what stands around it in the genome. Each window is a function of (seed, epoch, index).
"""

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval, subtract
from dnamamba.genome.region_classes import RegionClasses
from dnamamba.genome.store import TokenStore
from dnamamba.genome.windows import Window, drawn_flags, hash_bits, hash_key, permute, rows_at


class RegionPlan:
    """The windows of `length` + 1 bases around a class's regions in the intervals of a split.

    Spans are left out near which windows could have more N than `max_n_fraction` of their bases. Raises `InputError` if
    none is left.
    """

    def __init__(
        self,
        store: TokenStore,
        intervals: tuple[Interval, ...],
        classes: RegionClasses,
        name: str,
        length: int,
        seed: int,
        max_n_fraction: float = 0.1,
        reverse_complement: bool = False,
    ) -> None:
        self.store, self.length, self.reverse_complement = store, length, reverse_complement
        self.key = hash_key(seed, *name.encode())
        most_n = int(max_n_fraction * (length + 1))
        runs = store.all_n_runs
        gaps = runs[runs[:, 1] - runs[:, 0] > most_n]
        parts = []
        for interval in intervals:
            offset = store.contig(interval.contig).offset
            whole = np.array([[offset + interval.start, offset + interval.end]], np.int64)
            for start, end in subtract(whole, gaps).tolist():
                if end - start > length:
                    spans = cut(classes.runs(name, start, end), max(length // 2, 1))
                    first = np.maximum(spans[:, 1] - length - 1, start)
                    # The first base of a window is nobody's target: it comes before the span, where it can.
                    last = np.maximum(np.minimum(spans[:, 0] - 1, end - length - 1), first)
                    parts.append(np.column_stack((first, last)))
        found = np.concatenate([np.empty((0, 2), np.int64), *parts])
        n_count = store.n_before(found[:, 1] + length + 1) - store.n_before(found[:, 0])
        self._skipped = int((n_count > most_n).sum())
        self._first, self._last = found[n_count <= most_n].T
        if not len(self._first):
            raise InputError(
                f"the training split has no {name} region in an interval of a window's {length} + 1 bases; leave that "
                "class out of the shares of regions, or choose shorter windows"
            )

    def epoch_size(self, epoch: int) -> int:
        """Spans, and so windows."""
        return len(self._first)

    def skipped(self, epoch: int) -> int:
        """Spans left out for too many N."""
        return self._skipped

    def positions(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(windows,) int64: where in the store the windows at `indices` (windows,) of an epoch begin."""
        spans = permute(np.asarray(indices, np.int64), len(self._first), hash_key(self.key, epoch, 2))
        choices = (self._last[spans] - self._first[spans] + 1).astype(np.uint64)
        drawn = hash_bits(np.asarray(indices).astype(np.uint64), self.key, epoch, 1)
        return self._first[spans] + (drawn % choices).astype(np.int64)

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(windows, length + 1) uint8 tokens as in the genome, and (windows,) bool reverse-complement flags."""
        tokens = rows_at(self.store.tokens, self.positions(epoch, indices), self.length + 1)
        return tokens, self._flags(epoch, np.asarray(indices))

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a window lies."""
        indices = np.array([index])
        position = int(self.positions(epoch, indices)[0])
        [contig] = [c for c in self.store.contigs if c.offset <= position < c.offset + c.length]
        start = position - contig.offset
        return [Window(contig.name, start, start + self.length + 1, bool(self._flags(epoch, indices)[0]))]

    def _flags(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        return drawn_flags(indices, self.key, epoch) if self.reverse_complement else np.zeros(len(indices), bool)


def cut(intervals: np.ndarray, most: int) -> np.ndarray:
    """(k, 2) int64 spans of at most `most` bases, each from a base of `intervals` to one, that together hold all their
    bases once. `intervals` (m, 2) int64 are disjoint and ascend; short ones that lie together share a span."""
    firsts: list[int] = []
    lasts: list[int] = []
    for start, end in intervals.tolist():
        if firsts and end - firsts[-1] <= most:
            lasts[-1] = end
            continue
        parts = -(-(end - start) // most)
        edges = [start, end] if parts == 1 else (start + (end - start) * np.arange(parts + 1) // parts).tolist()
        firsts += edges[:-1]
        lasts += edges[1:]
    return np.column_stack((np.array(firsts, np.int64), np.array(lasts, np.int64)))
