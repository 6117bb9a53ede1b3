"""VCF files read and written as text: every line comes out as it went in, with INFO fields added.

Two passes over the file: one for what a score needs (`read_vcf`), one that writes each line back with its scores
(`annotate`), so that a file of millions of records takes memory for its alleles alone. Plain text, gzip and bgzip are
read; a name that ends in .gz is written as bgzip. Inside, positions are 0-based; in the file, 1-based.

pysam's VariantFile would not do: it writes 30.00 as 30, 0.1234567891 as 0.123457, fills up dropped fields of samples,
and declares as "Dummy" what the header lacks.
"""

import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.progress import OnProgress
from dnamamba.outputs import bgzip_file, whole_file

_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every complete bgzip file (SAM specification, 4.1.2)."""
FIXED_COLUMNS = 8
"""CHROM POS ID REF ALT QUAL FILTER INFO: what the VCF specification calls mandatory."""


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


def read_vcf(path: Path, progress: OnProgress | None = None) -> Records:
    """The records of a VCF. Raises `InputError` with the line for a file that is none, cut off, or malformed."""
    names: dict[bytes, int] = {}
    contig, start, ref, alt = [], [], [], []
    with open_vcf(path, progress) as (_, lines):
        for line in lines:
            name, position, _, ref_allele, alt_alleles, _ = line.columns
            if not (position.isdigit() and len(position) < 19 and ref_allele.isascii() and alt_alleles.isascii()):
                raise InputError(_malformed(path, line))
            if not (name and ref_allele and alt_alleles):
                raise InputError(_malformed(path, line))
            start.append(int(position) - 1)
            ref.append(sys.intern(ref_allele.decode()))
            alt.append(sys.intern(alt_alleles.decode()))
            contig.append(names.setdefault(name, len(names)))
    return Records(
        tuple(name.decode("utf-8", "replace") for name in names),
        np.array(contig, np.int32),
        np.array(start, np.int64),
        ref,
        alt,
    )


def read_ids(path: Path) -> list[str]:
    """The ID column of each record, `.` where there is none. Raises as `read_vcf`."""
    with open_vcf(path) as (_, lines):
        return [line.columns[2].decode("utf-8", "replace") for line in lines]


@contextmanager
def open_vcf(path: Path, progress: OnProgress | None = None) -> Iterator[tuple[list[bytes], Iterator[Line]]]:
    """The header's lines up to the one that starts with #CHROM, each with its end, and the lines of the records."""
    with _open(path) as (file, raw, size):
        try:
            header = _header(path, file)
            yield header, _lines(path, file, raw, size, len(header), progress)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: cut off or damaged ({error}); copy or make the file again") from None


def info_fields(numbers: Mapping[str, str], info: str, alleles: int) -> list[dict[str, str]]:
    """INFO of a record for each of its `alleles` alternate alleles; what is `.` is left out, flags are "".

    By the header's Number (`info_numbers`): of A and R the allele's own value, all else as it stands. An undeclared
    field with as many values as alleles is taken for A.
    """
    found: list[dict[str, str]] = [{} for _ in range(alleles)]
    for field in info.split(";"):
        key, _, text = field.partition("=")
        if key in ("", ".") or text == ".":
            continue
        values, number = text.split(","), numbers.get(key)
        first = {"A": 0, "R": 1, None: 0}.get(number)
        split = first is not None and len(values) == alleles + first
        for allele, into in enumerate(found):
            if (value := values[allele + (first or 0)] if split else text) != ".":
                into[key] = value
    return found


def info_numbers(header: Iterable[bytes]) -> dict[str, str]:
    """The Number of each INFO field that a header declares: A, R, G, a count or `.`"""
    found = {}
    for line in header:
        if match := re.match(rb"##INFO=<ID=([^,>]+),(?:.*?,)?Number=([^,>]+)", line):
            found[match[1].decode("utf-8", "replace")] = match[2].decode("ascii", "replace")
    return found


def annotate(
    path: Path,
    out: Path,
    fields: Sequence[Field],
    values: Iterable[Sequence[str | None]],
    *,
    notes: Sequence[str] = (),
    contig_lengths: dict[str, int] | None = None,
    progress: OnProgress | None = None,
) -> int:
    """Writes the VCF at `path` to `out`, whole or not at all, each record with the `fields` added; returns the records.

    Fields of these names that the file has already, declared or not, are replaced. All else stays as it is.

    Args:
        values: for each record one text per field (`Number=A`: with commas between; a flag: ""), None leaves it out.
        notes: header lines of our own, `##key=value`; earlier ones of the same key are replaced.
        contig_lengths: contigs of the records and their lengths, declared where the header does not.
    """
    names = [field.name.encode() for field in fields]
    ours = re.compile(rb"(?:^|;)(?:" + b"|".join(map(re.escape, names)) + rb")(?:=[^;]*)?(?=;|$)")
    count = 0
    with open_vcf(path, progress) as (header, lines), whole_file(out) as partial, _create(partial) as write:
        write(b"".join(_new_header(header, fields, names, notes, contig_lengths or {})))
        pending: list[bytes] = []
        for line, texts in _paired(path, lines, values):
            *first, rest = line.columns
            qual, filters, info, *samples = rest.split(b"\t", 3)
            if any(name in info for name in names):
                info = ours.sub(b"", info).lstrip(b";")
            added = [
                name + b"=" + text.encode() if text else name
                for name, text in zip(names, texts, strict=True)
                if text is not None
            ]
            parts = [*([info] if info not in (b".", b"") else []), *added]
            pending.append(b"\t".join([*first, qual, filters, b";".join(parts) or b".", *samples]) + b"\n")
            count += 1
            if len(pending) == 4096:
                write(b"".join(pending))
                pending.clear()
        write(b"".join(pending))
    return count


def _paired(
    path: Path, lines: Iterator[Line], values: Iterable[Sequence[str | None]]
) -> Iterator[tuple[Line, Sequence[str | None]]]:
    """Raises `InputError` if there are more of the ones than of the others."""
    for line, texts in zip_longest(lines, values):
        if line is None or texts is None:
            raise InputError(f"{path}: was changed while it was scored; start again")
        yield line, texts


def is_vcf_name(path: Path) -> bool:
    """Whether a file of this name is written as VCF: .vcf, .vcf.gz or .vcf.bgz."""
    return path.name.endswith((".vcf", ".vcf.gz", ".vcf.bgz"))


def _new_header(
    header: list[bytes],
    fields: Sequence[Field],
    names: list[bytes],
    notes: Sequence[str],
    contig_lengths: dict[str, int],
) -> list[bytes]:
    keys = tuple(note.partition("=")[0].encode() + b"=" for note in notes)
    kept = [line for line in header[:-1] if not _declared(line, names) and not (keys and line.startswith(keys))]
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


def _declared(line: bytes, names: list[bytes]) -> bool:
    match = re.match(rb"##INFO=<ID=([^,>]+)", line)
    return match is not None and match[1] in names


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO, int]]:
    """The text of a file, plain or decompressed; its raw bytes, for progress; its size."""
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a VCF") from None
    with raw:
        size = os.fstat(raw.fileno()).st_size
        start = raw.read(18)
        if not start:
            raise InputError(f"{path}: the file is empty; expected a VCF")
        is_gzip = start[:2] == b"\x1f\x8b"
        if is_gzip and start[12:14] == b"BC":
            raw.seek(max(size - len(_BGZF_END), 0))
            if raw.read() != _BGZF_END:
                raise InputError(f"{path}: cut off, it lacks bgzip's end marker; copy or make the file again")
        raw.seek(0)
        if not is_gzip:
            yield raw, raw, size
        else:
            with gzip.GzipFile(fileobj=raw) as text:
                yield cast(BinaryIO, text), raw, size


def _header(path: Path, file: BinaryIO) -> list[bytes]:
    first = file.readline()
    if first[:3] == b"BCF":
        raise InputError(f"{path}: is BCF; convert it to VCF first: bcftools view -Oz -o FILE.vcf.gz {path.name}")
    if not first.startswith(b"##fileformat=VCF"):
        raise InputError(
            f"{path}, line 1: no VCF header; expected ##fileformat=VCFv4.2, further ## lines and a line "
            "#CHROM POS ID REF ALT QUAL FILTER INFO before the records"
        )
    header = [first.rstrip(b"\r\n") + b"\n"]
    for line in file:
        header.append(line.rstrip(b"\r\n") + b"\n")
        if line.startswith(b"#CHROM"):
            if len(line.split(b"\t")) < FIXED_COLUMNS:
                raise InputError(f"{path}, line {len(header)}: #CHROM line with fewer than 8 columns between tabs")
            return header
        if not line.startswith(b"##"):
            break
    raise InputError(f"{path}, line {len(header)}: no line #CHROM POS ID REF ALT QUAL FILTER INFO before the records")


def _lines(
    path: Path, file: BinaryIO, raw: BinaryIO, size: int, first: int, progress: OnProgress | None
) -> Iterator[Line]:
    for number, text in enumerate(file, first + 1):
        columns = text.rstrip(b"\r\n").split(b"\t", 5)
        if len(columns) < 6 or columns[5].count(b"\t") < FIXED_COLUMNS - 6:
            if not text.strip():
                continue
            raise InputError(_malformed(path, Line(number, columns)))
        if progress is not None and number % 65536 == 0:
            progress(raw.tell(), size)
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
