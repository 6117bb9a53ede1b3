"""BED files and their kin, such as narrowPeak: intervals of a genome, perhaps with names and strands."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from dnamamba.errors import InputError, warn
from dnamamba.genome.contig_names import some
from dnamamba.genome.intervals import Interval
from dnamamba.genome.view import GenomeView
from dnamamba.tables import suffix, whole_number
from dnamamba.text_files import is_pipe, read_text_lines

SUFFIXES = (".bed", ".bed3", ".bed4", ".bed5", ".bed6", ".bed9", ".bed12", ".narrowpeak", ".broadpeak", ".gappedpeak")
"""Of files that are BED, in lower case"""
_HEADERS = ("track", "browser")
"""Whole first words of lines that speak to a genome browser; contigs may be called track_1, or track"""
_BLANKS = re.compile(r"[ \t]+")
_STRANDS: dict[str, Literal["+", "-"]] = {"+": "+", "-": "-", ".": "+"}


class BedRow(NamedTuple):
    """A line of a BED file."""

    line: int
    """In the file, from 1"""
    interval: Interval
    """0-based and half-open, as in the file; the contig by the genome's name"""
    name: str
    """Column 4; "" where there is none"""
    strand: Literal["+", "-"]
    """Column 6; `+` where there is none, or a point"""


def is_bed_name(name: str | Path) -> bool:
    """Whether this is called as a BED file is, or a file or pipe at all, among contigs and their patterns."""
    path = Path(name)
    return os.path.isfile(path) or is_pipe(path) or suffix(path) in SUFFIXES  # pathlib fails at names too long


def read_bed(path: Path, genome: GenomeView, known_contigs_only: bool = False) -> list[BedRow]:
    """The rows of a BED file, plain or gzip, in file order.

    Intervals without bases are left out with a warning; blocks (BED12) are read as the whole that they make up.

    Args:
        known_contigs_only: leave out rows on contigs that the genome lacks, with a warning, unless all are.

    Raises:
        InputError: with the line, for fewer than three columns, coordinates that are no whole numbers, start > end, a
            contig that the genome lacks (names are matched by `contig_names`), an end beyond its contig, or another
            strand than +, - and the point.
    """
    rows = []
    for number, interval, columns in _rows(path, genome, known_contigs_only):
        strand = columns[5] if len(columns) > 5 else "."
        if strand not in _STRANDS:
            raise InputError(f"{path}, line {number}: the strand (column 6) is {strand!r}; expected +, - or a point")
        rows.append(BedRow(number, interval, columns[3] if len(columns) > 3 else "", _STRANDS[strand]))
    return rows


def read_intervals(path: Path, genome: GenomeView, known_contigs_only: bool = False) -> list[Interval]:
    """The intervals alone, whatever stands behind them. As `read_bed`."""
    return [interval for _, interval, _ in _rows(path, genome, known_contigs_only)]


def _rows(path: Path, genome: GenomeView, known_contigs_only: bool) -> list[tuple[int, Interval, list[str]]]:
    """(line, interval, columns), see `read_bed`."""
    rows = []
    empty: list[int] = []
    unknown: Counter[str] = Counter()
    blocks = 0
    for number, columns, start, end in _lines(path):
        where = f"{path}, line {number}"
        try:
            name = genome.names.find(columns[0])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if name is None:
            if known_contigs_only:
                unknown[columns[0]] += 1
                continue
            raise InputError(f"{where}: the genome has no contig {columns[0]!r}{genome.names.suggestion()}")
        interval = Interval(name, start, end)
        length = genome.contig(name).length
        if start > end:
            raise InputError(f"{where}: {interval} must have start < end (BED is 0-based, half-open)")
        if end > length:
            raise InputError(f"{where}: {interval} ends beyond the contig, which has {length} bases")
        if start == end:
            empty.append(number)
            continue
        blocks += len(columns) >= 12 and (whole_number(columns[9]) or 0) > 1
        rows.append((number, interval, columns))
    if unknown and not rows and not empty:
        raise InputError(
            f"{path}: none of its contigs ({some(list(unknown))}) is in the genome{genome.names.suggestion()}"
        )
    if unknown:
        shown = some(list(unknown))
        warn(f"{path}: {unknown.total():,} intervals are on contigs that the genome lacks ({shown}) and are left out")
    if empty:
        shown = some([f"line {number}" for number in empty])
        warn(f"{path}: {len(empty):,} intervals have no bases, start = end ({shown}), and are left out")
    if blocks:
        warn(f"{path}: {blocks:,} intervals have blocks; each is read as a whole, from its start to its end")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, list[str], int, int]]:
    """Number, columns, start and end of each line that is an interval."""
    for number, line in read_text_lines(path, "BED"):
        columns = [column.strip(" ") for column in line.split("\t")] if "\t" in line else _BLANKS.split(line.strip(" "))
        found = [whole_number(column) for column in columns[1:3]]
        if columns[0].startswith("#") or not any(columns):
            continue
        if _BLANKS.split(columns[0])[0] in _HEADERS and (len(found) < 2 or None in found):
            continue
        where = f"{path}, line {number}"
        if len(columns) < 3:
            raise InputError(f"{where}: {len(columns)} columns; BED needs contig, start and end")
        start, end = found
        if start is None or end is None:
            shown = f"start {columns[1]!r} and end {columns[2]!r}"
            raise InputError(f"{where}: {shown} must be whole numbers, 0 or more and below 10^18")
        yield number, columns, start, end
