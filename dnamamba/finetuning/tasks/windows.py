"""Windows of labelled genomes: N-free, uniform over species, then contig, then position; (seed, epoch, index) decides.

The positions where a window may begin are listed once: N-free intervals at least a window long. A draw picks a
species in turn, a contig that has such a position, and one of its positions, all equally likely, without trial and
error.
"""

from dataclasses import dataclass, field

import numpy as np

from dnamamba.alphabet import TOKEN_BITS
from dnamamba.finetuning.tasks.examples import ExampleBatch, Examples, Origin
from dnamamba.genome.windows import hash_bits


@dataclass(frozen=True)
class SpeciesIntervals:
    """Where the windows of one species' split come from: N-free intervals of `tokens`."""

    species: str
    tokens: np.ndarray
    """(bases,) uint8, all contigs one after another, soft mask in bit 7"""
    bounds: np.ndarray
    """(intervals, 2) int64: [start, end) among `tokens`, ascending within a contig"""
    contig: np.ndarray
    """(intervals,) int64: number of the contig"""
    contigs: tuple[str, ...]
    offsets: np.ndarray
    """(contigs,) int64: where each contig begins among `tokens`"""
    groups: tuple[str, ...]
    """One an interval: what is resampled as a whole for confidence intervals."""

    @property
    def bases(self) -> int:
        """Of all intervals together."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).sum())

    @property
    def longest(self) -> int:
        """Bases of the longest interval."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).max(initial=0))


class Starts:
    """The positions where windows of one length may begin in one species' split."""

    def __init__(self, intervals: SpeciesIntervals, length: int) -> None:
        choices = intervals.bounds[:, 1] - intervals.bounds[:, 0] - length + 1
        kept = np.flatnonzero(choices > 0)
        self.interval = kept
        self.first = intervals.bounds[kept, 0]
        self.cumulative = np.concatenate(([0], np.cumsum(choices[kept])))
        contig = intervals.contig[kept]
        heads = np.flatnonzero(np.concatenate(([True], contig[1:] != contig[:-1]))) if len(kept) else kept
        self.contig_bounds = np.append(self.cumulative[heads], self.cumulative[-1])
        """(contigs with a position + 1,) int64: numbers of the positions of each contig"""

    @property
    def total(self) -> int:
        return int(self.cumulative[-1])

    def draw(self, contig_bits: np.ndarray, position_bits: np.ndarray) -> np.ndarray:
        """(k,) uint64 twice → (k,) numbers of positions: contigs equally likely, then positions within the contig."""
        contig = (contig_bits % np.uint64(len(self.contig_bounds) - 1)).astype(np.int64)
        low, high = self.contig_bounds[contig], self.contig_bounds[contig + 1]
        return low + (position_bits % (high - low).astype(np.uint64)).astype(np.int64)

    def positions(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k,) numbers of positions → starts among the tokens, and the number of each one's interval."""
        row = np.searchsorted(self.cumulative, numbers, side="right") - 1
        return self.first[row] + numbers - self.cumulative[row], self.interval[row]


@dataclass
class SpeciesWindows:
    """The training set of the species task."""

    species: list[SpeciesIntervals]
    """One a class, in the order of the classes."""
    length: int
    size: int
    """Windows an epoch."""
    is_fixed: bool = False
    """All epochs have the windows of the first."""
    _starts: dict[int, list[Starts]] = field(default_factory=dict)

    def starts(self, length: int) -> list[Starts]:
        """One a class."""
        if length not in self._starts:
            self._starts[length] = [Starts(intervals, length) for intervals in self.species]
        return self._starts[length]

    def batch(self, seed: int, epoch: int, indices: np.ndarray, length: int | None = None) -> ExampleBatch:
        """Windows of `length` (default: the full one); classes take turns, so every batch is balanced."""
        length = length or self.length
        epoch = 0 if self.is_fixed else epoch
        indices = np.asarray(indices, np.int64)
        labels = indices % len(self.species)
        numbers = indices.astype(np.uint64)
        contig_bits, position_bits = hash_bits(numbers, seed, epoch, 7), hash_bits(numbers, seed, epoch, 8)
        tokens = np.empty((len(indices), length), np.uint8)
        for label, starts in enumerate(self.starts(length)):
            rows = np.flatnonzero(labels == label)
            if len(rows):
                first, _ = starts.positions(starts.draw(contig_bits[rows], position_bits[rows]))
                gather(self.species[label].tokens, first, tokens, rows)
        return ExampleBatch(tokens, np.full(len(indices), length, np.int64), labels)

    def sample(self, count: int) -> Examples:
        """The first `count` windows of epoch 0 of a seed that no training has."""
        batch = self.batch(-1, 0, np.arange(count))
        return Examples(batch.tokens, batch.lengths, batch.labels)


def gather(tokens: np.ndarray, first: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
    """Writes the windows that begin at `first` to these rows of `out`, case dropped."""
    width = out.shape[1]
    for row, start in zip(rows.tolist(), first.tolist(), strict=True):
        np.bitwise_and(tokens[start : start + width], np.uint8(TOKEN_BITS), out=out[row])


def spread_windows(species: list[SpeciesIntervals], length: int, per_class: int) -> Examples:
    """At most `per_class` windows of each species, as many of each, evenly spread over its split, about a quarter of
    `length` apart or more within an interval: the same for every seed."""
    found = [_spread(Starts(each, length), length) for each in species]
    per_class = min(per_class, *map(len, found))
    tokens = np.empty((per_class * len(species), length), np.uint8)
    labels = np.repeat(np.arange(len(species)), per_class)
    origins: list[Origin] = []
    for label, (source, numbers) in enumerate(zip(species, found, strict=True)):
        chosen = numbers[(np.arange(per_class) * 2 + 1) * len(numbers) // (2 * per_class)]
        first, interval = Starts(source, length).positions(chosen)
        gather(source.tokens, first, tokens, np.flatnonzero(labels == label))
        for start, number in zip(first.tolist(), interval.tolist(), strict=True):
            contig = int(source.contig[number])
            begin = start - int(source.offsets[contig])
            origins.append(Origin(source.contigs[contig], begin, begin + length, source.groups[number]))
    return Examples(tokens, np.full(len(tokens), length, np.int64), labels, origins)


def _spread(starts: Starts, length: int) -> np.ndarray:
    """Numbers of positions: every interval is cut into parts of at most a quarter window, the middle of each is taken.
    So an interval that is just long enough has its window too."""
    choices = np.diff(starts.cumulative)
    parts = -(-choices // max(length // 4, 1))
    interval = np.repeat(np.arange(len(choices)), parts)
    number = np.arange(len(interval)) - (np.cumsum(parts) - parts)[interval]
    return starts.cumulative[interval] + (number * 2 + 1) * choices[interval] // (2 * parts[interval])
