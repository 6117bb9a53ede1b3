"""Named sequences for a model to read: records of FASTA and GenBank, rows of tables, BED intervals of a genome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, UNK, N, encode, reverse_complement
from dnamamba.errors import InputError, warn
from dnamamba.genome.bed import SUFFIXES as BED
from dnamamba.genome.bed import read_bed
from dnamamba.genome.indexed import open_for
from dnamamba.genome.progress import OnProgress
from dnamamba.genome.reader import SequenceBlock, read_genome
from dnamamba.genome.view import GenomeView
from dnamamba.tables import MISSING, TABLES, column_index, suffix, table_rows

FASTA = (".fa", ".fasta", ".fna")
SEQUENCE_COLUMNS = ("sequence", "seq", "Sequence", "dna", "text")
NAME_COLUMNS = ("name", "id", "seq_id")


@dataclass(frozen=True, slots=True)
class NamedSequence:
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

    @property
    def strand(self) -> str:
        return "-" if self.reverse else "+"

    def tokens(self, other_strand: bool = False) -> np.ndarray:
        """(bases,) uint8 without the soft-mask bit, of the strand that is meant, or of the other one."""
        plain = self.stored & np.uint8(TOKEN_BITS)
        return reverse_complement(plain) if self.reverse != other_strand else plain

    def window(self, first: int, length: int) -> "NamedSequence":
        """Bases [first, first + length) of the strand that is meant, as far as there are any."""
        last = min(first + length, len(self))
        low, high = (len(self) - last, len(self) - first) if self.reverse else (first, last)
        return replace(self, start=self.start + low, end=self.start + high, stored=self.stored[low:high])


def read_sequences(
    path: Path, genome: GenomeView | None, sequence_column: str | None = None
) -> Iterator[NamedSequence]:
    """The sequences of a file in its order: BED (`.bed`, `.narrowPeak` …) of `genome`, CSV, TSV, Parquet; all else is
    FASTA or GenBank.

    Raises `InputError` with file and line or record, for a file without sequences, too.
    """
    kind = suffix(path)
    if kind in BED:
        if genome is None:
            raise InputError(f"{path}: a BED file needs its genome; name it with --genome")
        found = _of_bed(path, genome)
    else:
        found = _of_table(path, sequence_column) if kind in TABLES else _of_fasta(path)
    sequence = None
    for sequence in found:
        yield sequence
    if sequence is None:
        raise InputError(f"{path}: no {'intervals' if kind in BED else 'sequences'}")


def open_for_sequences(
    paths: Sequence[Path], genome: Sequence[Path], store: Path | None, progress: OnProgress | None = None
) -> GenomeView:
    """The genome of the BED files among `paths`. Raises `InputError` as `open_for` and `read_bed`."""
    beds = [path for path in paths if suffix(path) in BED]

    def bases(opened: GenomeView) -> int:
        return sum(row.interval.length for path in beds for row in read_bed(path, opened))

    return open_for(genome, store, bases, progress)


class CodesReadAsN:
    """Counts the IUPAC codes of a source that are read as N, and reports them once at its end. A context manager."""

    def __init__(self, source: object) -> None:
        self._source = source
        self._codes = self._sequences = 0

    def __enter__(self) -> "CodesReadAsN":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._codes and kind is None:
            warn(
                f"{self._source}: {self._codes:,} letters in {self._sequences:,} sequences are other codes than A, C, "
                "G, T, U and N; they are read as N"
            )

    def add(self, codes: int) -> None:
        """So many of them in a sequence."""
        self._codes += codes
        self._sequences += codes > 0


def to_tokens(sequence: str, where: object, codes: CodesReadAsN | None) -> np.ndarray:
    """(bases,) uint8 of a sequence as text, in any case: the one check of letters. U is T.

    Args:
        where: what the sequence is, for the messages.
        codes: counts IUPAC codes, which are read as N; None refuses them.

    Raises:
        InputError: a letter that is no nucleotide code, or that is not wanted.
    """
    tokens = encode(sequence)
    if (tokens == UNK).any():
        position = int(np.argmax(tokens == UNK))
        raise InputError(
            f"{where}: {sequence[position]!r} at position {position + 1} is no nucleotide; expected A, C, G, T, N"
        )
    tokens &= np.uint8(TOKEN_BITS)
    count = int((tokens == N).sum()) - sequence.count("N") - sequence.count("n")
    if codes is not None:
        codes.add(count)
    elif count:
        position = next(at for at in np.flatnonzero(tokens == N).tolist() if sequence[at] not in "Nn")
        raise InputError(
            f"{where}: {sequence[position]!r} at position {position + 1} stands for several bases; "
            "expected A, C, G, T, N"
        )
    return tokens


def fasta_records(path: Path, allow_codes: bool = True) -> Iterator[tuple[SequenceBlock, np.ndarray]]:
    """The first block of each record of FASTA or GenBank, for its names, and (bases,) uint8 tokens of all of it.

    Raises `InputError` for a record without bases, and without `allow_codes` for one with other codes than A, C, G, T,
    U and N; with it they are read as N, and a warning counts them.
    """
    with CodesReadAsN(path) as codes:
        begun: SequenceBlock | None = None
        blocks: list[SequenceBlock] = []
        for item in read_genome(path):
            if not isinstance(item, SequenceBlock) or item.first:
                if begun is not None:
                    yield begun, _record_tokens(path, begun, blocks, codes if allow_codes else None)
                begun, blocks = (item if isinstance(item, SequenceBlock) else None), []
            if isinstance(item, SequenceBlock):
                blocks.append(item)


def _record_tokens(
    path: Path, record: SequenceBlock, blocks: list[SequenceBlock], codes: CodesReadAsN | None
) -> np.ndarray:
    tokens = np.concatenate([block.tokens for block in blocks])
    count = sum(block.ambiguous for block in blocks)
    where = f"{path}, record {record.name!r}, line {record.line}"
    if not tokens.size:
        raise InputError(f"{where}: the sequence is empty")
    if codes is not None:
        codes.add(count)
    elif count:
        raise InputError(f"{where}: {count:,} letters stand for several bases; expected A, C, G, T, N")
    return tokens


def cell_tokens(text: str, where: object, codes: CodesReadAsN) -> np.ndarray:
    """As `to_tokens`, of a table's cell or a file with one sequence. Raises `InputError` for an empty one, too, and for
    what tables write where there is none: NA would be read as N and A."""
    if (text := text.strip()) in MISSING:
        raise InputError(f"{where}: the sequence is {f'missing ({text!r})' if text else 'empty'}")
    return to_tokens(text, where, codes)


def sequence_column_index(header: list[str], wanted: str | None, path: Path) -> int:
    """Where a table's sequences stand. Raises `InputError` if there is no such column."""
    if not header:
        raise InputError(f"{path}: empty; expected a header line with a column sequence")
    return column_index(header, wanted, SEQUENCE_COLUMNS, "sequence", "--sequence_column", path)


def name_column_index(header: list[str]) -> int | None:
    """Where a table's names stand, if it has some."""
    return next((header.index(name) for name in NAME_COLUMNS if name in header), None)


def _of_bed(path: Path, genome: GenomeView) -> Iterator[NamedSequence]:
    for row in read_bed(path, genome):
        interval = row.interval
        yield NamedSequence(row.name or str(interval), *interval, row.strand == "-", genome.read(*interval))


def _of_fasta(path: Path) -> Iterator[NamedSequence]:
    for record, tokens in fasta_records(path):
        yield NamedSequence(record.name, record.name, 0, tokens.size, False, tokens)


def _of_table(path: Path, sequence_column: str | None) -> Iterator[NamedSequence]:
    header, rows = table_rows(path)
    sequence, named = sequence_column_index(header, sequence_column, path), name_column_index(header)
    with CodesReadAsN(path) as codes:
        for number, (where, cells) in enumerate(rows, 1):
            if (text := cells[sequence]) is None:
                raise InputError(f"{where}: {header[sequence]} is missing")
            tokens = cell_tokens(text, where, codes)
            name = (cells[named] if named is not None else "") or str(number)
            yield NamedSequence(name, name, 0, tokens.size, False, tokens)
