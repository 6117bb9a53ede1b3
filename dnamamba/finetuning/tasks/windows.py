"""Windows of labelled genomes: N-free, uniform over species, then contig, then position; (seed, epoch, index) decides.

The places where a window may begin are listed once: stretches of N-free bases at least a window long. A draw picks a
species in turn, a contig that has such a place, and one of its places, all equally likely, without trial and error.
"""

from dataclasses import dataclass, field

import numpy as np

from dnamamba.alphabet import TOKEN_BITS
from dnamamba.finetuning.tasks.examples import ExampleBatch, Examples, Origin
from dnamamba.genome.windows import hash_bits


@dataclass(frozen=True)
class Stretches:
    """Where the windows of one species' split come from: N-free stretches of `tokens`."""

    species: str
    tokens: np.ndarray
    """(bases,) uint8, all contigs one after another, soft mask in bit 7"""
    bounds: np.ndarray
    """(stretches, 2) int64: [start, end) among `tokens`, ascending within a contig"""
    contig: np.ndarray
    """(stretches,) int64: number of the contig"""
    contigs: tuple[str, ...]
    offsets: np.ndarray
    """(contigs,) int64: where each contig begins among `tokens`"""
    groups: tuple[str, ...]
    """One a stretch: what is resampled as a whole for confidence intervals."""

    @property
    def longest(self) -> int:
        """Bases of the longest stretch."""
        return int((self.bounds[:, 1] - self.bounds[:, 0]).max(initial=0))


class Starts:
    """The places where windows of one length may begin in one species' split."""

    def __init__(self, stretches: Stretches, length: int) -> None:
        room = stretches.bounds[:, 1] - stretches.bounds[:, 0] - length + 1
        kept = np.flatnonzero(room > 0)
        self.stretch = kept
        self.first = stretches.bounds[kept, 0]
        self.cumulative = np.concatenate(([0], np.cumsum(room[kept])))
        contig = stretches.contig[kept]
        heads = np.flatnonzero(np.concatenate(([True], contig[1:] != contig[:-1]))) if len(kept) else kept
        self.contig_bounds = np.append(self.cumulative[heads], self.cumulative[-1])
        """(contigs with a place + 1,) int64: numbers of the places of each contig"""

    @property
    def total(self) -> int:
        return int(self.cumulative[-1])

    def draw(self, contig_bits: np.ndarray, place_bits: np.ndarray) -> np.ndarray:
        """(k,) uint64 twice → (k,) numbers of places: contigs equally likely, then places within the contig."""
        contig = (contig_bits % np.uint64(len(self.contig_bounds) - 1)).astype(np.int64)
        low, high = self.contig_bounds[contig], self.contig_bounds[contig + 1]
        return low + (place_bits % (high - low).astype(np.uint64)).astype(np.int64)

    def positions(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(k,) numbers of places → starts among the tokens, and the number of each one's stretch."""
        row = np.searchsorted(self.cumulative, places, side="right") - 1
        return self.first[row] + places - self.cumulative[row], self.stretch[row]


@dataclass
class SpeciesWindows:
    """The training set of the species task."""

    stretches: list[Stretches]
    """One a class, in the order of the classes."""
    length: int
    size: int
    """Windows an epoch."""
    _starts: dict[int, list[Starts]] = field(default_factory=dict)

    def starts(self, length: int) -> list[Starts]:
        """One a class."""
        if length not in self._starts:
            self._starts[length] = [Starts(stretches, length) for stretches in self.stretches]
        return self._starts[length]

    def batch(self, seed: int, epoch: int, indices: np.ndarray, length: int | None = None) -> ExampleBatch:
        """Windows of `length` (default: the full one); classes take turns, so every batch is balanced."""
        length = length or self.length
        indices = np.asarray(indices, np.int64)
        labels = indices % len(self.stretches)
        numbers = indices.astype(np.uint64)
        contig_bits, place_bits = hash_bits(numbers, seed, epoch, 7), hash_bits(numbers, seed, epoch, 8)
        tokens = np.empty((len(indices), length), np.uint8)
        for label, starts in enumerate(self.starts(length)):
            rows = np.flatnonzero(labels == label)
            if len(rows):
                first, _ = starts.positions(starts.draw(contig_bits[rows], place_bits[rows]))
                gather(self.stretches[label].tokens, first, tokens, rows)
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


def spread_windows(stretches: list[Stretches], length: int, per_class: int) -> Examples:
    """At most `per_class` windows of each species, as many of each, evenly spread over its split, about a quarter of
    `length` apart or more within a stretch: the same for every seed."""
    found = [_spread(Starts(species, length), length) for species in stretches]
    per_class = min(per_class, *map(len, found))
    tokens = np.empty((per_class * len(stretches), length), np.uint8)
    labels = np.repeat(np.arange(len(stretches)), per_class)
    places: list[Origin] = []
    for label, (species, numbers) in enumerate(zip(stretches, found, strict=True)):
        chosen = numbers[(np.arange(per_class) * 2 + 1) * len(numbers) // (2 * per_class)]
        first, stretch = Starts(species, length).positions(chosen)
        gather(species.tokens, first, tokens, np.flatnonzero(labels == label))
        for start, number in zip(first.tolist(), stretch.tolist(), strict=True):
            contig = int(species.contig[number])
            begin = start - int(species.offsets[contig])
            places.append(Origin(species.contigs[contig], begin, begin + length, species.groups[number]))
    return Examples(tokens, np.full(len(tokens), length, np.int64), labels, places)


def _spread(starts: Starts, length: int) -> np.ndarray:
    """Numbers of places: every stretch is cut into parts of at most a quarter window, the middle of each is taken. So
    a stretch that is just long enough has its window too."""
    room = np.diff(starts.cumulative)
    parts = -(-room // max(length // 4, 1))
    stretch = np.repeat(np.arange(len(room)), parts)
    number = np.arange(len(stretch)) - (np.cumsum(parts) - parts)[stretch]
    return starts.cumulative[stretch] + (number * 2 + 1) * room[stretch] // (2 * parts[stretch])
