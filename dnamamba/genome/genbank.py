"""GenBank files: the names and the letters of their records, streamed.

A contig is named by accession and version, as Biopython's `SeqRecord.id`; by its LOCUS line where that is empty, `.`,
`unknown`, or there more than once. What comes before a LOCUS line, such as the header of NCBI's releases, is no record.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from dnamamba.errors import InputError
from dnamamba.text_files import as_text, numbered_lines, read_lines

EXPECTED = "GenBank"
PART = 1 << 20
"""Letters given at once, about."""

_LOCUS = b"LOCUS "
_SIZE = re.compile(rb"\s(\d{1,18})\s+(?:bp|aa|rc)(?:\s|$)")
_NO_ID = ("", ".", "unknown", "<unknown")


class Letters(NamedTuple):
    """Letters of one record, in file order. Every record begins with one whose `first` is set."""

    name: str
    description: str
    line: int
    """Of the LOCUS line, 1-based."""
    first: bool
    start: int
    """0-based position in the record."""
    letters: bytes
    """In upper case: that a GenBank file has lower case says nothing."""


def is_genbank(head: bytes) -> bool:
    """Whether a file that begins like this is GenBank, perhaps behind the header of a release."""
    return not head.startswith(b">") and re.search(rb"(?:^|[\r\n])" + _LOCUS, head) is not None


def read_genbank(path: Path, stream: IO[bytes]) -> Iterator[Letters]:
    """The records of a GenBank file whose decompressed bytes `stream` has; the file is read for their names before.

    Raises `InputError` for a record without sequence, one that is cut short, or of another length than it declares.
    """
    names = iter(_names(path))
    lines = numbered_lines(path, stream, EXPECTED)
    for number, line in lines:
        if line.startswith(_LOCUS):
            yield from _record(path, next(names), number, _size(path, number, line), lines)


def _names(path: Path) -> list[str]:
    """Of each record."""
    found: list[tuple[str, str]] = []
    locus = accession = version = ""
    for _, line in read_lines(path, EXPECTED):
        if line.startswith((_LOCUS, b"//")):
            if locus:
                found.append((locus, _id(accession, version)))
            locus, accession, version = _word(line) or "." if line.startswith(_LOCUS) else "", "", ""
        elif line.startswith(b"ACCESSION"):
            accession = accession or _word(line)
        elif line.startswith(b"VERSION"):
            version = version or _word(line)
    if locus:
        found.append((locus, _id(accession, version)))
    times = Counter(identity for _, identity in found)
    return [locus if identity in _NO_ID or times[identity] > 1 else identity for locus, identity in found]


def _id(accession: str, version: str) -> str:
    """As Biopython makes it: VERSION is a suffix of the first accession, or stands for itself."""
    _, dot, suffix = version.partition(".")
    if accession and version.count(".") == 1 and suffix.isascii() and suffix.isdigit():
        return accession + dot + suffix
    return version or accession


def _word(line: bytes) -> str:
    """The first word behind the keyword of a line."""
    words = line.split(maxsplit=2)
    return as_text(words[1]) if len(words) > 1 else ""


def _size(path: Path, number: int, line: bytes) -> int | None:
    """The length that a LOCUS line declares; None for one with a name alone."""
    if size := _SIZE.search(line):
        return int(size[1])
    if len(line.split()) > 2:
        raise InputError(f"{path}, line {number}: no length in the LOCUS line; expected `LOCUS name length bp`")
    return None


def _record(
    path: Path, name: str, start: int, size: int | None, lines: Iterator[tuple[int, bytes]]
) -> Iterator[Letters]:
    where = f"{path}, record {name!r}"
    description, keyword = "", b""
    for number, line in lines:
        keyword = line[:12].strip() or keyword
        if keyword == b"DEFINITION":
            description = f"{description} {as_text(line[12:]).strip()}".strip()
        elif line.startswith(_LOCUS):
            raise InputError(f"{where}, line {number}: truncated or damaged: the next record begins before its `//`")
        elif line.startswith(b"//"):
            raise InputError(f"{where}, line {number}: a GenBank record without its sequence; fetch the full one")
        elif line.startswith(b"ORIGIN"):
            break
    else:
        raise _cut(where)
    description = description.removesuffix(".")
    yield Letters(name, description, start, True, 0, b"")
    count = 0
    for letters in _sequence(where, lines):
        yield Letters(name, description, start, False, count, letters)
        count += len(letters)
    if not count:
        raise InputError(f"{where}, line {start}: a GenBank record without its sequence; fetch the full one")
    if size is not None and count != size:
        raise InputError(f"{where}, line {start}: truncated or damaged: {size:,} bp are declared, {count:,} are there")


def _sequence(where: str, lines: Iterator[tuple[int, bytes]]) -> Iterator[bytes]:
    """The letters after ORIGIN, in parts; the last one may be empty."""
    parts: list[bytes] = []
    held = count = 0
    offset: int | None = None
    for number, line in lines:
        line = line.rstrip()
        if line.startswith((b"//", _LOCUS)):
            if line.startswith(_LOCUS):
                raise InputError(f"{where}, line {number}: truncated or damaged: the next record begins before `//`")
            yield b"".join(parts).upper()
            return
        if not line or line[:1].isalpha():  # CONTIG and the like, behind the sequence
            continue
        width = 10 if line[9:10] in (b" ", b"") else 11  # some programs, and positions of ten digits, take one more
        if line[width - 1 : width] not in (b" ", b""):
            raise InputError(f"{where}, line {number}: expected a position, then bases from column 11 on")
        if position := line[:width].strip():
            first = int(position) - count if position.isdigit() and len(position) < 19 else None
            offset = first if offset is None else offset
            if first is None or first != offset:
                expected = "a number" if offset is None else str(count + offset)
                raise InputError(
                    f"{where}, line {number}, column 1: position {as_text(position)!r}, expected {expected}; "
                    "a line is damaged or missing"
                )
        letters = line[width:].replace(b" ", b"")
        parts.append(letters)
        held, count = held + len(letters), count + len(letters)
        if held >= PART:
            yield b"".join(parts).upper()
            parts, held = [], 0
    raise _cut(where)


def _cut(where: str) -> InputError:
    return InputError(
        f"{where}: truncated or damaged: the file ends within it; compare its size with that of its source"
    )
