"""BED files: intervals of a genome, perhaps with names and strands."""

from pathlib import Path
from typing import Literal, NamedTuple

from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.view import GenomeView
from dnamamba.tables import numbered_lines, whole_number

_HEADERS = ("track", "browser")
"""First words of lines that speak to a genome browser"""


class BedRow(NamedTuple):
    """A line of a BED file."""

    line: int
    """In the file, from 1"""
    interval: Interval
    """0-based and half-open, as in the file; the contig by the genome's name"""
    name: str
    """Column 4; "" where there is none"""
    strand: Literal["+", "-"]
    """Column 6; `+` where there is none"""


def read_bed(path: Path, genome: GenomeView) -> list[BedRow]:
    """The rows of a BED file, plain or gzip, in file order.

    `InputError` with the line for fewer than three columns, coordinates that are no whole numbers, start ≥ end, a
    contig that the genome lacks (names are matched by `contig_names`), or an end beyond its contig.
    """
    rows = []
    for number, line in numbered_lines(path, "BED, as text"):
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#") or words[0] in _HEADERS:
            continue
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        where = f"{path}, line {number}"
        if len(columns) < 3:
            raise InputError(f"{where}: {len(columns)} columns; BED needs contig, start and end")
        start, end = whole_number(columns[1]), whole_number(columns[2])
        if start is None or end is None:
            raise InputError(f"{where}: start {columns[1]!r} and end {columns[2]!r} must be whole numbers, 0 or more")
        try:
            name = genome.names.find(columns[0])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if name is None:
            raise InputError(f"{where}: the genome has no contig {columns[0]!r}{genome.names.suggestion()}")
        interval = Interval(name, start, end)
        length = genome.contig(name).length
        if start >= end:
            raise InputError(f"{where}: {interval} must have start < end (BED is 0-based, half-open)")
        if end > length:
            raise InputError(f"{where}: {interval} ends beyond the contig, which has {length} bases")
        rows.append(
            BedRow(
                number,
                interval,
                columns[3] if len(columns) > 3 else "",
                "-" if len(columns) > 5 and columns[5] == "-" else "+",
            )
        )
    return rows


def read_intervals(path: Path, genome: GenomeView) -> list[Interval]:
    """The intervals alone. Raises `InputError` as `read_bed`."""
    return [row.interval for row in read_bed(path, genome)]
