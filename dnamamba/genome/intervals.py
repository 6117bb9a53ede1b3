"""Intervals on contigs: 0-based, half-open, checked where they enter, trusted inside.

Sets of intervals of one contig are (k, 2) int64 arrays of [start, end): the operations work on those; whole genomes are
dictionaries from contig name to such an array.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.store import TokenStore

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


def read_bed(path: Path, store: TokenStore) -> list[Interval]:
    """The intervals of a BED file in file order, columns after the third ignored.

    `InputError` with the line for fewer than three columns, coordinates that are no numbers, start ≥ end, a contig that
    the genome lacks, or an end beyond its contig.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such BED file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: binary data, not BED (uncompressed text is expected)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    intervals = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        where = f"{path}, line {number}"
        if len(columns) < 3:
            raise InputError(f"{where}: {len(columns)} columns; BED needs contig, start and end")
        name = columns[0].strip()
        try:
            start, end = int(columns[1]), int(columns[2])
        except ValueError:
            raise InputError(f"{where}: start {columns[1]!r} and end {columns[2]!r} must be whole numbers") from None
        if name not in store:
            raise InputError(f"{where}: the genome has no contig {name!r}{store.suggestion(name)}")
        length = store.contig(name).length
        if not 0 <= start < end:
            raise InputError(f"{where}: {name}:{start}-{end} must have 0 <= start < end (BED is 0-based, half-open)")
        if end > length:
            raise InputError(f"{where}: {name}:{start}-{end} ends beyond the contig, which has {length} bases")
        intervals.append(Interval(name, start, end))
    return intervals


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
