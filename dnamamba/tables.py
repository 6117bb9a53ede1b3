"""Text as the field's files have it, plain or gzip: lines, whole numbers, and tables as CSV, TSV and Parquet."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from dnamamba.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".parquet")
LONGEST_CELL = 1 << 30
"""Characters of a cell of CSV and TSV, and so bases of a sequence."""

MISSING = frozenset(("", ".", "NA", "<NA>", "N/A", "n/a", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"))
"""What tables write where there is no value: the spellings of pandas and R, and VCF's point."""

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}|-[1-9][0-9]{0,17}")

Rows = Iterator[tuple[str, Sequence[str | None]]]
"""Where a row stands, for messages, and its cells; None for one that Parquet has as missing."""


def suffix(path: Path) -> str:
    """`.csv` for x.csv and x.csv.gz: what kind of file this is."""
    name = path.name
    for packed in (".gz", ".bgz"):
        name = name.removesuffix(packed)
    return Path(name).suffix.lower()


def whole_number(text: str, lowest: int = 0) -> int | None:
    """The number, at least `lowest`, that at most 18 digits 0 to 9 write, with `-` before them for one below 0.

    None for anything else, as `+20`, `1_0`, `1²` and digits of other scripts, which Python's int would read or fail on.
    """
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else None
    return None if number is None or number < lowest else number


@contextmanager
def open_text(path: Path, expected: str = "text in UTF-8") -> Iterator[IO[str]]:
    """A text file, plain or gzip, line ends as they are. `InputError` for what is none, also while it is read."""
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if is_gzip else open
        with cast(IO[str], opener(path, "rt", encoding="utf-8-sig", newline="")) as text:
            yield text
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {expected}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: binary data, expected {expected}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip ({error}); fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def numbered_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends, and their numbers from 1. `InputError` as `open_text`."""
    with open_text(path, expected) as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip("\r\n")


def table_rows(path: Path) -> tuple[list[str], Rows]:
    """The header and the rows of a CSV, TSV (plain or gzip) or Parquet file, by its suffix.

    Raises `InputError` for an unknown suffix, a file that cannot be read, and a line with another number of cells than
    the header.
    """
    kind = suffix(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of table; expected .csv, .tsv (.gz) or .parquet")
    return delimited_rows(path, DELIMITERS[kind])


def delimited_rows(path: Path, delimiter: str, comment: str = "") -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The header, perhaps empty, and the rows of a text table, plain or gzip. Raises `InputError` as `table_rows`.

    With `comment`, lines that begin with it and blank ones are passed over.
    """
    rows = _delimited(path, delimiter, comment)
    return next(rows)[1], rows


def column_index(
    header: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, flag: str, path: Path
) -> int:
    """Where a column stands: the one wanted, or else the first of the usual ones. Raises `InputError`."""
    for name in (wanted,) if wanted else usual:
        if name in header:
            return header.index(name)
    expected = repr(wanted) if wanted else " or ".join(usual[:2])
    raise InputError(f"{path}: no {what} column {expected} among {', '.join(header)}; name it with {flag}")


def _delimited(path: Path, delimiter: str, comment: str) -> Iterator[tuple[str, list[str]]]:
    """The header first."""
    csv.field_size_limit(LONGEST_CELL)  # the module's own is 131 072 characters, the process has but one
    with open_text(path) as file:
        try:
            rows = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            yield str(path), header
            for row in rows:
                if not row or (comment and (row[0].startswith(comment) or not "".join(row).strip())):
                    continue
                where = f"{path}, line {rows.line_num}"
                if len(row) != len(header):
                    raise InputError(f"{where}: {len(row)} columns, the header has {len(header)}")
                yield where, row
        except csv.Error as error:
            raise InputError(f"{path}: not readable as a table ({error})") from None


def _parquet_rows(path: Path) -> tuple[list[str], Rows]:
    import polars  # only here: everything else does without

    try:
        table = polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from None
    rows = ((f"{path}, row {number}", [_text(cell) for cell in row]) for number, row in enumerate(table.iter_rows(), 1))
    return table.columns, rows


def _text(cell: object) -> str | None:
    """As text has it; None for what is missing. A list becomes its values with semicolons between."""
    if isinstance(cell, list):
        parts = [_text(part) for part in cell]
        return None if any(part is None or part in MISSING for part in parts) else ";".join(cast(list[str], parts))
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    return None if cell is None else str(cell)
