"""Intervals on contigs: 0-based, half-open, checked where they enter, trusted inside.

Sets of intervals of one contig are (k, 2) int64 arrays of [start, end): the operations work on those; whole genomes are
dictionaries from contig name to such an array.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

ByContig = dict[str, np.ndarray]


class Interval(NamedTuple):
    """Bases [start, end) of a contig, 0-based."""

    contig: str
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start}-{self.end}"


def by_contig(intervals: Iterable[Interval]) -> ByContig:
    """Sorted and merged intervals, a (k, 2) array a contig."""
    grouped: dict[str, list[tuple[int, int]]] = {}
    for interval in intervals:
        grouped.setdefault(interval.contig, []).append((interval.start, interval.end))
    return {name: merge(np.array(pairs, np.int64)) for name, pairs in grouped.items()}


def to_intervals(sets: Mapping[str, np.ndarray]) -> tuple[Interval, ...]:
    """The inverse of `by_contig`, contigs in the dictionary's order."""
    return tuple(Interval(name, start, end) for name, pairs in sets.items() for start, end in pairs.tolist())


def merge(pairs: np.ndarray) -> np.ndarray:
    """(k, 2) in any order to the sorted, disjoint intervals that cover the same bases; touching ones are joined."""
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    if not len(pairs):
        return np.empty((0, 2), np.int64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    reach = np.maximum.accumulate(pairs[:, 1])
    begins = np.concatenate(([True], pairs[1:, 0] > reach[:-1]))
    return np.column_stack((pairs[begins, 0], reach[np.concatenate((begins[1:], [True]))]))


def subtract(pairs: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The bases of merged `pairs` that are not in merged `removed`."""
    if not len(pairs) or not len(removed):
        return pairs
    # A sweep: +1 where a pair begins, −1 where it ends, and −2, +2 for what is removed: only level 1 remains.
    positions = np.concatenate((pairs[:, 0], pairs[:, 1], removed[:, 0], removed[:, 1]))
    steps = np.repeat([1, -1, -2, 2], [len(pairs), len(pairs), len(removed), len(removed)])
    order = np.argsort(positions, kind="stable")
    positions, level = positions[order], np.cumsum(steps[order])
    keep = (level[:-1] == 1) & (positions[1:] > positions[:-1])
    return merge(np.column_stack((positions[:-1][keep], positions[1:][keep])))


def widen(pairs: np.ndarray, by: int, length: int) -> np.ndarray:
    """Each interval longer by `by` at both ends, within [0, length), merged."""
    return merge(np.column_stack((np.maximum(pairs[:, 0] - by, 0), np.minimum(pairs[:, 1] + by, length))))


def total(sets: Mapping[str, np.ndarray]) -> int:
    """Bases in all."""
    return int(sum((pairs[:, 1] - pairs[:, 0]).sum() for pairs in sets.values()))
