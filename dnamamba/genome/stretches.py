"""Sequences to be read by a model: records of FASTA files, or BED intervals of a genome."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.intervals import read_bed
from dnamamba.genome.reader import SequenceBlock, read_genome
from dnamamba.genome.store import TokenStore


class Stretch(NamedTuple):
    """One sequence and where it comes from."""

    name: str
    contig: str
    """Of the genome, or the record's name"""
    start: int
    """0-based, half-open"""
    end: int
    reverse: bool
    """Whether the reverse complement of these bases is meant"""
    stored: np.ndarray
    """(bases,) uint8 tokens of the forward strand, perhaps with the soft-mask bit; a view where it can be"""

    def __len__(self) -> int:
        return self.end - self.start

    def tokens(self, other_strand: bool = False) -> np.ndarray:
        """(bases,) uint8 without the soft-mask bit, of the strand that is meant, or of the other one."""
        plain = self.stored & np.uint8(TOKEN_BITS)
        return reverse_complement(plain) if self.reverse != other_strand else plain


def read_stretches(paths: Sequence[Path], genome: TokenStore | None) -> list[Stretch]:
    """All sequences of the files, in order; BED files by their suffix `.bed`, of `genome`.

    Raises `InputError` with file and line or record; for a file without sequences, too.
    """
    found: list[Stretch] = []
    for path in paths:
        if path.name.endswith((".bed.gz", ".bed.bgz")):
            raise InputError(f"{path}: compressed; BED is read as plain text, decompress it first")
        if path.suffix != ".bed":
            here = list(_of_fasta(path))
        elif genome is not None:
            here = list(_of_bed(path, genome))
        else:
            raise InputError(f"{path}: a BED file needs its genome; name it with --genome")
        if not here:
            raise InputError(f"{path}: no {'intervals' if path.suffix == '.bed' else 'sequences'}")
        found += here
    return found


def _of_bed(path: Path, genome: TokenStore) -> Iterator[Stretch]:
    intervals = read_bed(path, genome)
    lines = [
        line.split("\t") if "\t" in line else line.split()
        for line in path.read_text("utf-8").splitlines()
        if line.strip() and not line.startswith(("#", "track", "browser"))
    ]
    for interval, columns in zip(intervals, lines, strict=True):
        name = columns[3].strip() if len(columns) > 3 else ""
        reverse = len(columns) > 5 and columns[5].strip() == "-"
        yield Stretch(name or str(interval), *interval, reverse, genome.read(*interval))


def _of_fasta(path: Path) -> Iterator[Stretch]:
    name, blocks = "", list[np.ndarray]()
    for item in read_genome(path):
        if not isinstance(item, SequenceBlock) or item.first:
            if blocks:
                yield _record(path, name, blocks)
            blocks = []
        if isinstance(item, SequenceBlock):
            name = item.name
            blocks.append(item.tokens)


def _record(path: Path, name: str, blocks: list[np.ndarray]) -> Stretch:
    tokens = np.concatenate(blocks)
    if not tokens.size:
        raise InputError(f"{path}: record {name!r} has no bases; there is nothing to embed")
    return Stretch(name, name, 0, tokens.size, False, tokens)
