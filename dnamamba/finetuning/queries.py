"""What a classifier is asked about: the sequences of FASTA, tables and BED files, whole or in windows."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, reverse_complement
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.examples import pad
from dnamamba.finetuning.tasks.readers import Columns, is_readable, read_records, suffix
from dnamamba.genome.intervals import read_bed
from dnamamba.genome.store import TokenStore

BLOCK_BASES = 1 << 26
"""Sequence held at a time."""


class Query(NamedTuple):
    """One sequence and where it comes from, 0-based half-open on its record or contig."""

    name: str
    start: int
    end: int
    tokens: np.ndarray
    """(bases,) uint8 without the soft-mask bit, of the strand that was asked for"""
    strand: str = "+"

    def window(self, first: int, length: int) -> "Query":
        """Bases [first, first + length) of the strand that was asked for."""
        tokens = self.tokens[first : first + length]
        start = self.start + first if self.strand == "+" else self.end - first - len(tokens)
        return Query(self.name, start, start + len(tokens), tokens, self.strand)


class Asked:
    """Some queries, as `predict_logits` wants them: padded only within a batch."""

    def __init__(self, queries: list[Query]) -> None:
        self.queries = queries
        self.lengths = np.array([len(query.tokens) for query in queries], np.int64)

    def __len__(self) -> int:
        return len(self.queries)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, longest of them) uint8 and lengths."""
        return pad([self.queries[row].tokens for row in rows.tolist()])


def read_queries(
    path: Path, genome: TokenStore | None, sequence_column: str | None, window: int | None
) -> Iterator[Query]:
    """The queries of one file, in its order. Raises `InputError` with file and line or record."""
    for query in _whole(path, genome, sequence_column):
        if window is None:
            yield query
            continue
        for first in range(0, len(query.tokens), window):
            yield query.window(first, window)


def in_blocks(queries: Iterator[Query]) -> Iterator[Asked]:
    """Not all of a genome's windows at once."""
    held: list[Query] = []
    bases = 0
    for query in queries:
        held.append(query)
        bases += len(query.tokens)
        if bases >= BLOCK_BASES:
            yield Asked(held)
            held, bases = [], 0
    if held:
        yield Asked(held)


def _whole(path: Path, genome: TokenStore | None, sequence_column: str | None) -> Iterator[Query]:
    if suffix(path) == ".bed":
        if genome is None:
            raise InputError(f"{path}: a BED file needs its genome; name it with --genome")
        yield from _of_bed(path, genome)
    elif is_readable(path):
        for number, record in enumerate(read_records(path, Columns(sequence_column, labelled=False)), 1):
            yield Query(record.name or str(number), 0, len(record.tokens), record.tokens)
    else:
        raise InputError(
            f"{path}: unknown kind of file; expected .fa, .fasta, .fna, .csv, .tsv, .parquet (.gz) or .bed"
        )


def _of_bed(path: Path, genome: TokenStore) -> Iterator[Query]:
    for (contig, start, end), is_reverse in zip(read_bed(path, genome), read_strands(path), strict=True):
        tokens = genome.read(contig, start, end) & np.uint8(TOKEN_BITS)
        yield Query(contig, start, end, *((reverse_complement(tokens), "-") if is_reverse else (tokens, "+")))


def read_strands(path: Path) -> list[bool]:
    """Whether column 6 says `-`, one for each interval that `read_bed` gives."""
    strands = []
    for line in path.read_text("utf-8").splitlines():
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        strands.append(len(columns) > 5 and columns[5].strip() == "-")
    return strands
