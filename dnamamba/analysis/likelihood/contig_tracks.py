"""The tracks of one contig while they are made: filled strand by strand, read in the order of the genome.

The reverse strand comes from the contig's end, and the mean needs both strands; a chromosome's tracks are gigabytes. So
they lie in a nameless file on the output's disk, which goes with the process however it ends.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS
from dnamamba.genome.regions import bases_of

BLOCK = 1 << 20
"""Bases that are read back at a time."""


class Column(NamedTuple):
    """A track of a strand (forward, reverse, mean)."""

    strand: str
    track: str

    def __str__(self) -> str:
        """Its name in every format."""
        return f"{self.strand}_{self.track}"


class ContigTracks:
    """fp32 values of the bases in `pairs` of a contig: `strands` × `tracks` × bases."""

    def __init__(
        self,
        name: str,
        tokens: np.ndarray,
        pairs: np.ndarray,
        strands: Sequence[str],
        tracks: Sequence[str],
        folder: Path,
    ) -> None:
        """`tokens` (length,) uint8 of the contig; `pairs` (k, 2) merged intervals; `strands` among forward, reverse."""
        self.name, self.pairs, self.strands, self.tracks = name, pairs, tuple(strands), tuple(tracks)
        self.bases = bases_of(pairs)
        self._contig_tokens = tokens
        self._ends = np.cumsum(pairs[:, 1] - pairs[:, 0])
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by `__exit__`
        self._missing = dict.fromkeys(self.strands, self.bases)
        self._given_up = False

    def __enter__(self) -> "ContigTracks":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, strand: str, start: int, values: np.ndarray) -> None:
        """Keeps values (tracks, bases) of the contig's bases from `start` on, as far as they are wanted."""
        end = start + values.shape[1]
        first = int(np.searchsorted(self.pairs[:, 1], start, side="right"))
        for index in range(first, len(self.pairs)):
            low, high = self.pairs[index].tolist()
            if low >= end:
                break
            a, b = max(low, start), min(high, end)
            index = int(self._ends[index]) - (high - a)
            for track, line in enumerate(np.ascontiguousarray(values[:, a - start : b - start])):
                _write(self._file.fileno(), line, self._offset(strand, track, index))
            self._missing[strand] -= b - a

    def assert_complete(self) -> None:
        """Every wanted base has been put once on every strand."""
        assert not any(self._missing.values()), f"{self.name}: {self._missing} bases were not computed"

    def save(self, path: Path) -> None:
        """All values, into a file that is there."""
        self._file.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(self._file, file, BLOCK)

    def load(self, path: Path) -> None:
        """What `save` has written, in place of `put`."""
        with path.open("rb") as file:
            shutil.copyfileobj(file, self._file, BLOCK)
        assert self._file.tell() == len(self.strands) * len(self.tracks) * self.bases * 4, f"{path}: of another size"
        self._missing = dict.fromkeys(self.strands, 0)

    def blocks(self) -> Iterator[slice]:
        """The wanted bases, numbered from 0, in ascending order, some at a time."""
        for start in range(0, self.bases, BLOCK):
            if self._given_up:
                raise CancelledError
            yield slice(start, min(start + BLOCK, self.bases))

    def give_up(self) -> None:
        """Ends the writers that go through the blocks in other threads."""
        self._given_up = True

    def positions(self, block: slice) -> np.ndarray:
        """(bases,) int64: where they lie in the contig, 0-based, ascending."""
        number = np.arange(block.start, block.stop)
        index = np.searchsorted(self._ends, number, side="right")
        return self.pairs[index, 1] - (self._ends[index] - number)

    def tokens(self, block: slice) -> np.ndarray:
        """(bases,) uint8, without the soft mask."""
        return self._contig_tokens[self.positions(block)] & TOKEN_BITS

    def values(self, column: Column, block: slice) -> np.ndarray:
        """(bases,) fp32; NaN where there is none. The mean is missing where one of the strands is."""
        if column.strand == "mean":
            forward, reverse = (self.values(Column(strand, column.track), block) for strand in ("forward", "reverse"))
            return (forward + reverse) / 2
        values = np.empty(block.stop - block.start, np.float32)
        _read(self._file.fileno(), values, self._offset(column.strand, self.tracks.index(column.track), block.start))
        return values

    def _offset(self, strand: str, track: int, base: int) -> int:
        return ((self.strands.index(strand) * len(self.tracks) + track) * self.bases + base) * 4


def _write(file: int, values: np.ndarray, offset: int) -> None:
    data = memoryview(values.data).cast("B")
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _read(file: int, values: np.ndarray, offset: int) -> None:
    data = memoryview(values.data).cast("B")
    while data:
        count = os.preadv(file, [data], offset)
        assert count, "the tracks' file ended early"
        data, offset = data[count:], offset + count
