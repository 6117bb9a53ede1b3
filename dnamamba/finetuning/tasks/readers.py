"""Labelled sequences in files as the field publishes them: CSV, TSV, Parquet, FASTA, and folders of text files.

Every reader gives `Record`s, with a `where` that an error can point at.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, UNK, encode
from dnamamba.errors import InputError
from dnamamba.genome.reader import SequenceBlock, read_genome

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FASTA = (".fa", ".fasta", ".fna")
SEQUENCE_COLUMNS = ("sequence", "seq", "Sequence", "dna", "text")
LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
NAME_COLUMNS = ("name", "id", "seq_id")
LONGEST_CELL = 1 << 30
"""Characters of a cell of CSV and TSV, and so bases of a sequence."""


class Columns(NamedTuple):
    """Which columns to read; None looks for the usual names."""

    sequence: str | None = None
    labels: list[str] | None = None
    subset: str | None = None
    """Keep rows whose column `task` is this."""
    labelled: bool = True
    """False where labels are not wanted, as for prediction."""


class Record(NamedTuple):
    """One labelled sequence."""

    where: str
    """File and line or record, for messages."""
    name: str
    tokens: np.ndarray
    """(bases,) uint8 without the soft-mask bit"""
    labels: tuple[str, ...]
    """As written: one text a label column"""


def suffix(path: Path) -> str:
    """`.csv` for x.csv and x.csv.gz: what kind of file this is."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def is_readable(path: Path) -> bool:
    """Whether `read_records` knows this kind of file."""
    return suffix(path) in (*DELIMITERS, *FASTA, ".parquet")


def read_records(path: Path, columns: Columns) -> Iterator[Record]:
    """The records of one file. Raises `InputError` with file and line for what is wrong with it."""
    kind = suffix(path)
    if kind in DELIMITERS:
        yield from _read_delimited(path, DELIMITERS[kind], columns)
    elif kind == ".parquet":
        yield from _read_parquet(path, columns)
    elif kind in FASTA:
        yield from _read_fasta(path, columns)
    else:
        raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .parquet, .fa, .fasta or .fna (.gz)")


def read_class_folder(folder: Path) -> Iterator[Record]:
    """SPLIT/CLASS/*.txt, one sequence a file, as Genomic Benchmarks are published. Classes and files are sorted."""
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(class_folder.glob("*.txt"))
        if not files:
            raise InputError(f"{class_folder}: no .txt files; expected one sequence a file")
        for path in files:
            tokens = to_tokens(path.read_text("ascii", "replace"), path)
            yield Record(str(path), path.stem, tokens, (class_folder.name,))


def to_tokens(sequence: str, where: object) -> np.ndarray:
    """(bases,) uint8 without case. Raises `InputError` for empty sequences and letters that are no nucleotide code."""
    sequence = sequence.strip()
    if not sequence:
        raise InputError(f"{where}: the sequence is empty")
    tokens = encode(sequence)
    if (tokens == UNK).any():
        position = int(np.argmax(tokens == UNK))
        raise InputError(f"{where}: position {position + 1} is {sequence[position]!r}, which is no nucleotide code")
    return tokens & np.uint8(TOKEN_BITS)


def delimited_rows(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Where it stands and the cells of each line of a text table, plain or gzipped; the header, perhaps empty, first.

    Raises `InputError` for a line with another number of cells than the header, and a file that cannot be read.
    """
    csv.field_size_limit(LONGEST_CELL)  # the module's own is 131 072 characters, the process has but one
    try:
        with open_text(path) as file:
            rows = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            yield str(path), header
            for row in rows:
                if not row:
                    continue
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(header):
                    raise InputError(f"{where}: {len(row)} columns, the header has {len(header)}")
                yield where, row
    except UnicodeDecodeError:
        raise InputError(f"{path}: binary data, expected text in UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip ({error}); fetch the file again") from None
    except csv.Error as error:
        raise InputError(f"{path}: not readable as a table ({error})") from None


def _read_delimited(path: Path, delimiter: str, columns: Columns) -> Iterator[Record]:
    rows = delimited_rows(path, delimiter)
    _, header = next(rows)
    if not header:
        raise InputError(f"{path}: empty; expected a header line with the columns sequence and label")
    chosen = _choose(header, columns, path)
    for where, row in rows:
        if (record := _record(where, row, chosen, columns)) is not None:
            yield record


def open_text(path: Path) -> IO[str]:
    """A text file, plain or gzip. Raises `InputError` if there is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    opener = gzip.open if is_gzip else open
    return cast(IO[str], opener(path, "rt", encoding="utf-8-sig", newline=""))


class _Chosen(NamedTuple):
    sequence: int
    labels: list[int]
    name: int | None
    task: int | None


def _choose(header: list[str], columns: Columns, path: Path) -> _Chosen:
    def one(wanted: str | None, usual: tuple[str, ...], what: str, flag: str) -> int:
        for name in (wanted,) if wanted else usual:
            if name in header:
                return header.index(name)
        expected = repr(wanted) if wanted else " or ".join(usual[:2])
        raise InputError(f"{path}: no {what} column {expected} among {', '.join(header)}; name it with {flag}")

    sequence = one(columns.sequence, SEQUENCE_COLUMNS, "sequence", "--sequence_column")
    labels: list[int] = []
    if columns.labelled:
        asked: list[str | None] = [*columns.labels] if columns.labels else [None]
        labels = [one(column, LABEL_COLUMNS, "label", "--label_columns") for column in asked]
    name = next((header.index(name) for name in NAME_COLUMNS if name in header), None)
    task = one("task", (), "subset", "--subset") if columns.subset is not None else None
    return _Chosen(sequence, labels, name, task)


def _record(where: str, row: list[str], chosen: _Chosen, columns: Columns) -> Record | None:
    if chosen.task is not None and row[chosen.task] != columns.subset:
        return None
    labels = tuple(row[index].strip() for index in chosen.labels)
    name = row[chosen.name] if chosen.name is not None else ""
    return Record(where, name, to_tokens(row[chosen.sequence], where), labels)


def _read_parquet(path: Path, columns: Columns) -> Iterator[Record]:
    import polars  # only here: everything else does without

    try:
        table = polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from None
    header = table.columns
    if "task" in header and columns.labelled and columns.subset is None and table["task"].n_unique() > 1:
        tasks = ", ".join(map(str, table["task"].unique().sort().head(20)))
        raise InputError(f"{path}: holds several tasks; choose one with --subset: {tasks}")
    chosen = _choose(header, columns, path)
    wanted = [chosen.sequence, *chosen.labels]
    for number, row in enumerate(table.iter_rows(), 1):
        where = f"{path}, row {number}"
        if any(row[index] is None for index in wanted):
            raise InputError(f"{where}: {header[next(i for i in wanted if row[i] is None)]} is missing")
        cells = ["" if cell is None else _text(cell) for cell in row]
        if (record := _record(where, cells, chosen, columns)) is not None:
            yield record


def _text(cell: object) -> str:
    return ";".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def _read_fasta(path: Path, columns: Columns) -> Iterator[Record]:
    """The label stands behind the header's last `|` (the Nucleotide Transformer's `>name|0`)."""
    blocks: list[np.ndarray] = []
    begun: SequenceBlock | None = None

    def finished(first: SequenceBlock) -> Record:
        where = f"{path}, record {first.name!r}, line {first.line}"
        header = f"{first.name} {first.description}".strip()
        if columns.labelled and "|" not in header:
            raise InputError(f"{where}: no label; expected it behind the header's last '|', as in >{first.name}|0")
        tokens = np.concatenate(blocks) & np.uint8(TOKEN_BITS)
        if not len(tokens):
            raise InputError(f"{where}: the sequence is empty")
        label = (header.rpartition("|")[2].strip(),) if columns.labelled else ()
        return Record(where, header.rpartition("|")[0] if columns.labelled else first.name, tokens, label)

    for block in read_genome(path):
        if not isinstance(block, SequenceBlock):
            continue
        if block.first:
            if begun is not None:
                yield finished(begun)
            begun, blocks = block, []
        blocks.append(block.tokens)
    if begun is not None:
        yield finished(begun)
