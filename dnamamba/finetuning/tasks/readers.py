"""Labelled sequences in files as the field publishes them: CSV, TSV, Parquet, FASTA, and folders of text files.

Every reader gives `Record`s, with a `where` that an error can point at.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS
from dnamamba.errors import InputError, quoted
from dnamamba.genome.sequences import (
    FASTA,
    CodesReadAsN,
    cell_tokens,
    fasta_records,
    name_column_index,
    sequence_column_index,
)
from dnamamba.tables import TABLES, column_index, suffix, table_rows
from dnamamba.text_files import read_text_lines

LABEL_COLUMNS = ("label", "labels", "class", "target", "y")


class TableColumns(NamedTuple):
    """Which columns to read; None looks for the usual names."""

    sequence: str | None = None
    labels: list[str] | None = None
    subset: str | None = None
    """Keep rows whose column `task` is this."""


class Record(NamedTuple):
    """One labelled sequence."""

    where: str
    """File and line or record, for messages."""
    name: str
    tokens: np.ndarray
    """(bases,) uint8 without the soft-mask bit"""
    labels: tuple[str, ...]
    """As written: one text a label column"""


def is_readable(path: Path) -> bool:
    """Whether `read_records` knows this kind of file."""
    return suffix(path) in (*TABLES, *FASTA)


def read_records(path: Path, columns: TableColumns) -> Iterator[Record]:
    """The records of one file. Raises `InputError` with file and line for what is wrong with it."""
    kind = suffix(path)
    if kind in TABLES:
        yield from _read_table(path, columns)
    elif kind in FASTA:
        yield from _read_fasta(path)
    else:
        raise InputError(f"{path}: unknown kind of file; expected .csv, .tsv, .parquet, .fa, .fasta or .fna (.gz)")


def read_class_folder(folder: Path) -> Iterator[Record]:
    """SPLIT/CLASS/*.txt, one sequence a file, as Genomic Benchmarks are published. Classes and files are sorted."""
    with CodesReadAsN(folder) as codes:
        for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
            files = sorted(class_folder.glob("*.txt"))
            if not files:
                raise InputError(f"{class_folder}: no .txt files; expected one sequence a file")
            for path in files:
                text = "".join(line.strip() for _, line in read_text_lines(path, "one sequence as text"))
                yield Record(str(path), path.stem, cell_tokens(text, path, codes), (class_folder.name,))


def _read_table(path: Path, columns: TableColumns) -> Iterator[Record]:
    header, rows = table_rows(path)
    sequence = sequence_column_index(header, columns.sequence, path)
    wanted: list[str | None] = [*columns.labels] if columns.labels else [None]
    labels = [column_index(header, column, LABEL_COLUMNS, "label", "--label_columns", path) for column in wanted]
    named = name_column_index(header)
    task = None if columns.subset is None else column_index(header, "task", (), "subset", "--subset", path)
    if task is None and "task" in header and suffix(path) == ".parquet":
        rows = iter(held := list(rows))
        tasks = sorted({cells[header.index("task")] or "" for _, cells in held})
        if len(tasks) > 1:
            raise InputError(f"{path}: holds several tasks; choose one with --subset: {', '.join(tasks[:20])}")
    with CodesReadAsN(path) as codes:
        for where, cells in rows:
            for index in (sequence, *labels):
                if (cell := cells[index]) is None:
                    raise InputError(f"{where}: {header[index]} is missing")
                if cell.startswith(("[[", "{", "[{")):
                    raise InputError(
                        f"{where}: {header[index]} is {quoted(cell)}; expected a value or one list of them"
                    )
            texts = ["" if cell is None else cell for cell in cells]
            if task is None or texts[task] == columns.subset:
                name = "" if named is None else texts[named]
                tokens = cell_tokens(texts[sequence], where, codes)
                yield Record(where, name, tokens, tuple(texts[index].strip() for index in labels))


def _read_fasta(path: Path) -> Iterator[Record]:
    """The label stands behind the header's last `|` (the Nucleotide Transformer's `>name|0`)."""
    for record, tokens in fasta_records(path):
        where = f"{path}, record {record.name!r}, line {record.line}"
        name, bar, label = f"{record.name} {record.description}".strip().rpartition("|")
        if not bar:
            raise InputError(f"{where}: no label; expected it behind the header's last '|', as in >{record.name}|0")
        yield Record(where, name, tokens & np.uint8(TOKEN_BITS), (label.strip(),))
