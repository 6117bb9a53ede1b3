"""VCF files read and written as text: every line comes out as it went in, with INFO fields added.

Two passes over the file: one for what a score needs (`read_vcf`), one that writes each line back with its scores
(`annotate`), so that a file of millions of records takes memory for its alleles alone. A file that changes between them
is refused. What `text_files` reads is read; a name that ends in .gz is written as bgzip. Inside, positions are 0-based;
in the file, 1-based.

pysam's VariantFile would not do: it writes 30.00 as 30, 0.1234567891 as 0.123457, fills up dropped fields of samples,
and declares as "Dummy" what the header lacks.
"""

import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError, warn
from dnamamba.genome.progress import OnProgress
from dnamamba.outputs import bgzip_file, whole_file
from dnamamba.tables import whole_number
from dnamamba.text_files import as_text, numbered_lines, open_bytes

EXPECTED = "a VCF"
_COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT".split(b"\t")
"""What the VCF specification calls mandatory, and what stands before samples."""
FIXED_COLUMNS = 8
"""The mandatory ones"""


@dataclass(frozen=True)
class Records:
    """The records of a VCF in file order, as columns."""

    contigs: tuple[str, ...]
    """The names of the file's contigs, in order of appearance"""
    contig: np.ndarray
    """(records,) int32: index into `contigs`"""
    start: np.ndarray
    """(records,) int64: 0-based; −1 for POS 0, the position before a contig's first base"""
    ref: list[str]
    """As written"""
    alt: list[str]
    """The ALT column as written: alleles with commas between, `.` for none"""
    stamp: tuple[int, int] | None = None
    """Size and time of change (ns) of the file when it was read; None where there was no file"""
    info: Mapping[int, str] = field(default_factory=dict)
    """The INFO column of the records with a symbolic allele, which says where it ends"""

    def __len__(self) -> int:
        return len(self.ref)

    def alternates(self, record: int) -> list[str]:
        """The alternate alleles of a record, as written; none for `.`"""
        return [] if self.alt[record] == "." else self.alt[record].split(",")


class Field(NamedTuple):
    """An INFO field to add."""

    name: str
    number: str
    kind: str
    description: str

    @property
    def line(self) -> bytes:
        """Its declaration in the header."""
        return (
            f'##INFO=<ID={self.name},Number={self.number},Type={self.kind},Description="{self.description}">\n'
        ).encode()


class Line(NamedTuple):
    """A record's line of the file."""

    number: int
    """From 1"""
    columns: list[bytes]
    """CHROM POS ID REF ALT and the rest of the line, together and without its end: QUAL FILTER INFO …"""


class Variant(NamedTuple):
    """What a record is about, as it is written."""

    contig: bytes
    start: int
    """0-based; −1 for POS 0"""
    ref: str
    alt: str
    """Alleles with commas between, `.` for none"""


def variant_of(path: Path, line: Line) -> Variant:
    """CHROM POS REF ALT of a record. Raises `InputError` for what the specification forbids."""
    contig, text, _, ref, alt, _ = line.columns
    position = whole_number(text.decode("ascii", "replace"))
    if position is None and text:
        raise InputError(f"{path}, line {line.number}: POS is {as_text(text)!r}, expected a whole number below 10^18")
    if position is None or not (contig and ref and alt and ref.isascii() and alt.isascii()):
        raise InputError(_malformed(path, line))
    return Variant(contig, position - 1, ref.decode(), alt.decode())


def read_vcf(path: Path, progress: OnProgress | None = None) -> Records:
    """The records of a VCF. Raises `InputError` with the line for a file that is none, cut off, or malformed."""
    names: dict[bytes, int] = {}
    contig: list[int] = []
    start: list[int] = []
    ref: list[str] = []
    alt: list[str] = []
    info: dict[int, str] = {}
    stamp = _stamp(path)
    with open_vcf(path, progress) as (_, lines):
        for line in lines:
            variant = variant_of(path, line)
            contig.append(names.setdefault(variant.contig, len(names)))
            start.append(variant.start)
            if "<" in variant.alt:
                info[len(ref)] = as_text(line.columns[5].split(b"\t")[2])
            ref.append(sys.intern(variant.ref))
            alt.append(sys.intern(variant.alt))
    columns = np.array(contig, np.int32), np.array(start, np.int64)
    return Records(tuple(map(as_text, names)), *columns, ref, alt, stamp, info)


def read_ids(path: Path, records: Records) -> list[str]:
    """The ID column of each record, `.` where there is none. Raises as `read_vcf`, and if the file has others now."""
    with open_vcf(path) as (_, lines):
        return [as_text(line.columns[2]) for line in unchanged(path, records, lines)]


def unchanged(path: Path, records: Records, lines: Iterable[Line]) -> Iterator[Line]:
    """The lines of `open_vcf`, which are those of the records. Raises `InputError` if the file has changed since."""
    changed = InputError(f"{path}: was changed while it was scored; start again")
    if records.stamp != _stamp(path):
        raise changed
    places = zip(records.contig.tolist(), records.start.tolist(), records.ref, records.alt, strict=True)
    for line, place in zip_longest(lines, places):
        if line is None or place is None:
            raise changed
        contig, start, ref, alt = place
        found = variant_of(path, line)
        if (as_text(found.contig), found.start, found.ref, found.alt) != (records.contigs[contig], start, ref, alt):
            raise changed
        yield line
    if records.stamp != _stamp(path):
        raise changed


@contextmanager
def open_vcf(path: Path, progress: OnProgress | None = None) -> Iterator[tuple[list[bytes], Iterator[Line]]]:
    """The header's lines up to the one that starts with #CHROM, each ended by LF, and the lines of the records."""
    done, size = 0, (_stamp(path) or (0, 0))[0]

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, max(size, done))

    with open_bytes(path, EXPECTED, on_read) as stream:
        if stream.peek(3)[:3] == b"BCF":  # type: ignore[attr-defined]
            raise InputError(
                f"{path}: is BCF; convert it to VCF first: bcftools view -Oz -o FILE.vcf.gz {shlex.quote(path.name)}"
            )
        lines = numbered_lines(path, stream, EXPECTED)
        header = _header(path, lines)
        yield header, _records(path, lines, header[-1])


def info_fields(numbers: Mapping[str, str], info: str, alleles: int) -> list[dict[str, str]]:
    """INFO of a record for each of its `alleles` alternate alleles; what is `.` is left out, flags are "".

    By the header's Number (`info_numbers`): of A and R the allele's own value, all else as it stands. An undeclared
    field with as many values as alleles is taken for A. What the specification forbids is left out too, as nobody knows
    what it means: A and R with another number of values, and a field that is there twice.
    """
    found: list[dict[str, str]] = [{} for _ in range(alleles)]
    fields = [field.partition("=") for field in info.split(";")]
    times = Counter(key for key, _, _ in fields)
    for key, _, text in fields:
        if key in ("", ".") or text == "." or times[key] > 1:
            continue
        values, number = text.split(","), numbers.get(key)
        first = {"A": 0, "R": 1, None: 0}.get(number)
        split = first is not None and len(values) == alleles + first
        if number in ("A", "R") and not split:
            continue
        for allele, into in enumerate(found):
            if (value := values[allele + (first or 0)] if split else text) != ".":
                into[key] = value
    return found


def info_numbers(header: Iterable[bytes]) -> dict[str, str]:
    """The Number of each INFO field that a header declares: A, R, G, a count or `.`"""
    found = {}
    for line in header:
        if line.startswith(b"##INFO=<"):
            keys = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,>]*)', as_text(line[len(b"##INFO=<") :])))
            if "ID" in keys and "Number" in keys:
                found[keys["ID"]] = keys["Number"]
    return found


def annotate(
    path: Path,
    out: Path,
    fields: Sequence[Field],
    values: Iterable[Sequence[str | None]],
    records: Records,
    *,
    replaces: str = "",
    notes: Sequence[str] = (),
    contig_lengths: dict[str, int] | None = None,
    overwrite: bool = False,
) -> int:
    """Writes the VCF at `path` to `out`, whole or not at all, each record with the `fields` added; returns the records.

    Fields of these names that the file has already, declared or not, are replaced. All else stays as it is. Raises
    `InputError` for a file that no longer holds the `records` that `read_vcf` found in it.

    Args:
        values: for each record one text per field (`Number=A`: with commas between; a flag: ""), None leaves it out.
        replaces: a regular expression of further names whose fields are of an earlier job and taken out, with a
            warning.
        notes: header lines of our own, `##key=value`; earlier ones of the same key are replaced.
        contig_lengths: contigs of the records and their lengths, declared where the header does not.
        overwrite: whether `out` may be replaced.
    """
    names = [field.name.encode() for field in fields]
    older: set[bytes] = set()

    @cache
    def is_replaced(name: bytes) -> bool:
        ours = name in names or (replaces != "" and re.fullmatch(replaces.encode(), name) is not None)
        older.update([name] if ours else [])
        return ours

    count = 0
    with (
        open_vcf(path) as (header, lines),
        whole_file(out, overwrite) as partial,
        _create(partial) as write,
    ):
        write(b"".join(_new_header(header, fields, is_replaced, notes, contig_lengths or {})))
        pending: list[bytes] = []
        for line, texts in zip(unchanged(path, records, lines), values, strict=True):
            pending.append(_annotated(line, zip(names, texts, strict=True), is_replaced))
            count += 1
            if len(pending) == 4096:
                write(b"".join(pending))
                pending.clear()
        write(b"".join(pending))
    if older:
        shown = ", ".join(sorted(map(as_text, older)))
        warn(f"{path}: holds fields of an earlier job ({shown}); {out.name} has those of this one in their place")
    return count


def _annotated(line: Line, fields: Iterable[tuple[bytes, str | None]], is_replaced: Callable[[bytes], bool]) -> bytes:
    """A record's line with names and texts added to its INFO, and those that are replaced taken out."""
    *first, rest = line.columns
    qual, filters, info, *samples = rest.split(b"\t", 3)
    info = b";".join([part for part in info.split(b";") if not is_replaced(part.partition(b"=")[0])])
    added = [name + b"=" + text.encode() if text else name for name, text in fields if text is not None]
    parts = [*([info] if info not in (b".", b"") else []), *added]
    return b"\t".join([*first, qual, filters, b";".join(parts) or b".", *samples]) + b"\n"


def is_vcf_name(path: Path) -> bool:
    """Whether a file of this name is written as VCF: .vcf, .vcf.gz or .vcf.bgz."""
    return path.name.endswith((".vcf", ".vcf.gz", ".vcf.bgz"))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None where there is none, and of a pipe, whose bytes are kept."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _new_header(
    header: list[bytes],
    fields: Sequence[Field],
    is_replaced: Callable[[bytes], bool],
    notes: Sequence[str],
    contig_lengths: dict[str, int],
) -> list[bytes]:
    keys = tuple(note.partition("=")[0].encode() + b"=" for note in notes)
    kept = []
    for line in header[:-1]:
        field = re.match(rb"##INFO=<ID=([^,>]+)", line)
        if not (field and is_replaced(field[1])) and not (keys and line.startswith(keys)):
            kept.append(line)
    declared = {match[1] for line in kept if (match := re.match(rb"##contig=<(?:.*,)?ID=([^,>]+)", line))}
    return [
        *kept,
        *(
            f"##contig=<ID={name},length={length}>\n".encode()
            for name, length in contig_lengths.items()
            if name.encode() not in declared
        ),
        *(field.line for field in fields),
        *(f"{note}\n".encode() for note in notes),
        header[-1],
    ]


def _header(path: Path, lines: Iterator[tuple[int, bytes]]) -> list[bytes]:
    header: list[bytes] = []
    for number, line in lines:
        if number == 1 and not line.startswith(b"##fileformat=VCF"):
            raise InputError(
                f"{path}, line 1: no VCF header; expected ##fileformat=VCFv4.2, further ## lines and a line "
                "#CHROM POS ID REF ALT QUAL FILTER INFO before the records"
            )
        header.append(line + b"\n")
        if line.startswith(b"#CHROM"):
            if line.count(b"\t") < FIXED_COLUMNS - 1:
                raise InputError(f"{path}, line {number}: #CHROM line with fewer than 8 columns between tabs")
            for column, name in zip(line.split(b"\t"), _COLUMNS, strict=False):
                if column != name:
                    raise InputError(
                        f"{path}, line {number}: a column is called {as_text(column)!r}, expected {name.decode()}: the "
                        "line is damaged, or the columns stand in another order"
                    )
            return header
        if not line.startswith(b"##"):
            break
    if not header:
        raise InputError(f"{path}: the file is empty; expected {EXPECTED}")
    raise InputError(f"{path}, line {len(header)}: no line #CHROM POS ID REF ALT QUAL FILTER INFO before the records")


def _records(path: Path, lines: Iterator[tuple[int, bytes]], column_line: bytes) -> Iterator[Line]:
    tabs = column_line.count(b"\t")
    for number, text in lines:
        columns = text.split(b"\t", 5)
        found = text.count(b"\t")
        if found != tabs or found < FIXED_COLUMNS - 1:
            if not text.strip():
                continue
            if found < FIXED_COLUMNS - 1:
                raise InputError(_malformed(path, Line(number, columns)))
            raise InputError(
                f"{path}, line {number}: {found + 1} columns, the #CHROM line has {tabs + 1}; is the record cut off?"
            )
        yield Line(number, columns)


def _malformed(path: Path, line: Line) -> str:
    shown = b" ".join(line.columns)[:60].decode("ascii", "replace")
    return (
        f"{path}, line {line.number}: {shown!r} is no VCF record; expected at least {FIXED_COLUMNS} columns between "
        "tabs: CHROM, POS (a whole number), ID, REF, ALT, QUAL, FILTER, INFO"
    )


@contextmanager
def _create(path: Path) -> Iterator[Callable[[bytes], object]]:
    """What writes text to a new file, as bgzip if its name says so."""
    if path.suffix not in (".gz", ".bgz"):
        with path.open("wb") as file:
            yield file.write
    else:
        with bgzip_file(path) as write:
            yield write
