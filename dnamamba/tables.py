"""Tables as CSV, TSV and Parquet, and whole numbers in text. Every reader of tables reads them here.

- TSV has no quoting, unless its header's cells stand in quotation marks, as R writes them. In CSV a cell ends on the
  line on which it begins: one unpaired quotation mark would swallow all rows up to the next.
- Paths are names of files, never patterns: polars would take brackets and stars in them for one.
"""

import csv
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dnamamba import parquet
from dnamamba.errors import InputError
from dnamamba.text_files import LONGEST_LINE, RawFile, as_text, is_pipe, open_bytes, read_text_lines

if TYPE_CHECKING:
    import polars

DELIMITERS = {".csv": ",", ".tsv": "\t", ".maf": "\t"}
TABLES = (*DELIMITERS, ".parquet")

MISSING = frozenset(("", ".", "NA", "<NA>", "N/A", "n/a", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"))
"""What tables write where there is no value: the spellings of pandas and R, and VCF's point."""

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}|-[1-9][0-9]{0,17}")

Rows = Iterator[tuple[str, Sequence[str | None]]]
"""Where a row stands, for messages, and its cells; None for one that Parquet has as missing."""


def suffix(path: Path) -> str:
    """What kind of file this is: `.csv` for x.csv, x.CSV and x.csv.gz. A pipe's is told from its first line."""
    if is_pipe(path):
        return _kind_of_pipe(path)
    name = path.name.lower()
    for packed in (".gz", ".bgz"):
        name = name.removesuffix(packed)
    return Path(name).suffix


def whole_number(text: str, lowest: int = 0) -> int | None:
    """The number, at least `lowest`, that at most 18 digits 0 to 9 write, with `-` before them for one below 0.

    None for anything else, as `+20`, `1_0`, `1²` and digits of other scripts, which Python's int would read or fail on.
    """
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else None
    return None if number is None or number < lowest else number


def number(text: str) -> float | None:
    """The number that a text writes, as Python's float reads it; None for anything else, as `1_0` and digits of other
    scripts, which Python's float would read."""
    if not text.isascii() or "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def table_rows(path: Path) -> tuple[list[str], Rows]:
    """The header and the rows of a CSV, TSV (plain or gzip) or Parquet file, by its suffix.

    Raises `InputError` for an unknown suffix, a file that cannot be read, and a line with another number of cells than
    the header.
    """
    kind = suffix(path)
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of table; expected .csv, .tsv, .maf (.gz) or .parquet")
    return delimited_rows(path, DELIMITERS[kind])


def delimited_rows(path: Path, delimiter: str, comment: str = "") -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """The header, perhaps empty, and the rows of a text table, plain or gzip. Raises `InputError` as `table_rows`.

    Empty lines are passed over, and before the header lines that begin with # and have no delimiter; with `comment`
    also lines that begin with it, and lines of blanks.
    """
    rows = _delimited(path, delimiter, comment)
    return next(rows)[1], rows


def column_index(
    header: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, flag: str, path: Path
) -> int:
    """Where a column stands: the one wanted, or else the first of the usual ones. Raises `InputError` for one that is
    not there, or there twice."""
    for name in (wanted,) if wanted else usual:
        if name in header:
            if header.count(name) > 1:
                raise InputError(f"{path}: {header.count(name)} columns are called {name!r}; rename all but one")
            return header.index(name)
    expected = repr(wanted) if wanted else " or ".join(usual[:2])
    raise InputError(f"{path}: no {what} column {expected} among {', '.join(header)}; name it with {flag}")


def read_table(path: Path) -> "polars.DataFrame":
    """A table as polars has it, with the types of its values. Raises `InputError` as `table_rows`."""
    if suffix(path) == ".parquet":
        return _read_parquet(path)
    import polars

    header, rows = table_rows(path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(cells for _, cells in rows)
    with _polars_errors(path, "a table"):
        return polars.read_csv(io.BytesIO(text.getvalue().encode()), infer_schema_length=None)


def _kind_of_pipe(path: Path) -> str:
    with open_bytes(path) as stream:
        lines = [as_text(line) for line in stream.peek(4096)[:4096].splitlines()]  # type: ignore[attr-defined]
    first = lines[0] if lines else ""
    for start, kind in (("PAR1", ".parquet"), ("##fileformat=VCF", ".vcf"), (">", ".fa"), ("LOCUS", ".gb")):
        if first.startswith(start):
            return kind
    for cells in map(str.split, lines):
        if len(cells) > 2 and whole_number(cells[1]) is not None and whole_number(cells[2]) is not None:
            return ".bed"
    return ".tsv" if "\t" in first else ".csv" if "," in first else ""


def _delimited(path: Path, delimiter: str, comment: str) -> Iterator[tuple[str, list[str]]]:
    """The header first."""
    header: list[str] | None = None
    quoted = delimiter == ","
    for number, line in read_text_lines(path, "a table as text"):
        if not line or (comment and (line.startswith(comment) or not line.strip())):
            continue
        if header is None and line.startswith("#") and delimiter not in line:  # as MAF's `#version 2.4`
            continue
        where = f"{path}, line {number}"
        if header is None:
            quoted = quoted or any(cell[:1] == cell[-1:] == '"' for cell in line.split(delimiter))
            header = [name.strip() for name in _cells(line, delimiter, quoted, where)]
            if len(header) == 1:
                _refuse_other_delimiter(where, delimiter, header[0])
            yield str(path), header
            continue
        row = _cells(line, delimiter, quoted, where)
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} columns, the header has {len(header)}")
        yield where, row
    if header is None:
        yield str(path), []


def _cells(line: str, delimiter: str, quoted: bool, where: str) -> list[str]:
    if not quoted or '"' not in line:
        return line.split(delimiter)
    csv.field_size_limit(LONGEST_LINE)  # of the whole process, whose own is 131 072 characters
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        raise InputError(
            f"{where}: a cell begins with a quotation mark and does not end on this line with another; close it, or "
            "double the quotation marks that belong to the text"
        ) from None


def _refuse_other_delimiter(where: str, delimiter: str, name: str) -> None:
    """Raises `InputError` for a header of one column that has the delimiter of another kind of table."""
    names = {",": "commas (.csv)", "\t": "tabs (.tsv)", ";": "semicolons"}
    for other in names.keys() - {delimiter}:
        if other in name:
            raise InputError(
                f"{where}: the columns are separated by {names[other]}, in a file whose name says {names[delimiter]}; "
                "rename or convert it"
            )


def _parquet_rows(path: Path) -> tuple[list[str], Rows]:
    table = _read_parquet(path)
    rows = ((f"{path}, row {number}", [_text(cell) for cell in row]) for number, row in enumerate(table.iter_rows(), 1))
    return table.columns, rows


def _read_parquet(path: Path) -> "polars.DataFrame":
    import polars  # only where it is needed: all else does without

    with RawFile(path, "a table as Parquet") as raw:
        # polars would take the name of a file for a pattern, and read a pipe as an empty file.
        source = io.BytesIO(raw.read()) if is_pipe(path) else path.open("rb")
    with source, _polars_errors(path, "Parquet"):
        if source.read(len(parquet.MAGIC)) != parquet.MAGIC:  # which polars passes over
            raise InputError(f"{path}: not Parquet: it does not begin with {parquet.MAGIC.decode()}; is it damaged?")
        try:
            groups = parquet.read_groups(source)
            source.seek(0)
            table = polars.read_parquet(source)
            parquet.check_values(table, groups)
        except parquet.Damage as damage:
            raise InputError(
                f"{path}: not readable as Parquet, it is damaged ({damage}); copy or make it again"
            ) from None
        return table


@contextmanager
def _polars_errors(path: Path, kind: str) -> Iterator[None]:
    """What polars raises for a damaged file becomes `InputError`, panics of its Rust code too: they are no `Exception`,
    and print a backtrace."""
    import polars

    try:
        with _without_backtraces(polars.exceptions.PanicException):
            yield
    except polars.exceptions.PanicException as error:
        raise InputError(f"{path}: not readable as {kind}, it is damaged ({error})") from None
    except (OSError, polars.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not readable as {kind} ({error})") from None


@contextmanager
def _without_backtraces(panic: type[BaseException]) -> Iterator[None]:
    """Keeps what Rust prints on stderr (the descriptor, not Python's) to itself where it ends in a panic."""
    with tempfile.TemporaryFile() as printed:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except panic:
            printed.truncate(0)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            os.write(2, printed.read())


def _text(cell: object) -> str | None:
    """As text has it; None for what is missing. A list becomes its values with semicolons between; lists within lists
    and structures stay as Python prints them."""
    if isinstance(cell, list) and not any(isinstance(part, list | dict) for part in cell):
        parts = [_text(part) for part in cell]
        return None if any(part is None or part in MISSING for part in parts) else ";".join(cast(list[str], parts))
    if isinstance(cell, bytes):
        return as_text(cell)
    return None if cell is None else str(cell)
