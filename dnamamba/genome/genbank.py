"""GenBank files, which Biopython parses.

A contig is named by `SeqRecord.id`, which is accession and version; by its LOCUS line where that is empty, `.`,
`unknown`, or there more than once. What comes before a LOCUS line, such as the header of NCBI's releases, is no record.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

from dnamamba.errors import InputError, one_line
from dnamamba.text_files import as_text, numbered_lines, read_lines

EXPECTED = "GenBank"

_LOCUS = b"LOCUS "
_HEADER = (b"DEFINITION", b"ACCESSION", b"VERSION", b"ORIGIN")
_NO_ID = ("", ".", "unknown", "<unknown")

_Line: TypeAlias = tuple[str, int, bytes]
"""The file and record, for messages; the number of the line from 1; the line."""


class GenBankRecord(NamedTuple):
    """One record of a file."""

    name: str
    description: str
    line: int
    """Of the LOCUS line, 1-based."""
    letters: bytes
    """In upper case: that a GenBank file has lower case says nothing."""


def is_genbank(head: bytes) -> bool:
    """Whether a file that begins like this is GenBank, perhaps behind the header of a release."""
    return not head.startswith(b">") and re.search(rb"(?:^|[\r\n])" + _LOCUS, head) is not None


def read_genbank(path: Path, stream: IO[bytes]) -> Iterator[GenBankRecord]:
    """The records of a GenBank file whose decompressed bytes `stream` has; the file is read for their names before.

    Raises `InputError` for what Biopython cannot read, a missing or damaged line of sequence, a record without
    sequence, one that is cut short, or of another length than it declares.
    """
    names = _names(path)
    handle = _Handle(path, _checked(path, names, numbered_lines(path, stream, EXPECTED)))
    for name, record in zip(names, _parse(handle), strict=True):
        try:
            letters = bytes(record.seq).upper()
        except ValueError:  # Biopython's, of a sequence of whose lines it took none
            raise InputError(f"{handle.where}, line {handle.line}: no lines of sequence behind ORIGIN") from None
        yield GenBankRecord(name, record.description, handle.line, letters)


def _names(path: Path) -> list[str]:
    """Of each record. A pass of its own, since a later record may have the same id."""
    found = [(_word(record.id), _word(record.name)) for record in _parse(_Handle(path, _headers(path)))]
    times = Counter(identity for identity, _ in found)
    return [locus if identity in _NO_ID or times[identity] > 1 else identity for identity, locus in found]


def _word(text: str) -> str:
    """The first one: a contig's name has no blanks."""
    return next(iter(text.split()), "")


def _headers(path: Path) -> Iterator[_Line]:
    """The lines that name each record, as records without sequence."""
    where, number = str(path), 0
    for number, line in read_lines(path, EXPECTED):
        if line.startswith(_LOCUS):
            yield from ((where, number, b"ORIGIN"), (where, number, b"//"))
        if line.startswith((_LOCUS, b"ACCESSION", b"VERSION")):
            yield where, number, line
    yield from ((where, number, b"ORIGIN"), (where, number, b"//"))


def _checked(path: Path, names: list[str], lines: Iterator[tuple[int, bytes]]) -> Iterator[_Line]:
    """The lines of names, descriptions and sequences; a damaged one among the others would stop Biopython.

    Checks what Biopython lets pass: the positions of a sequence, and the end of a record.
    """
    left = iter(names)
    for start, line in lines:
        if not line.startswith(_LOCUS):
            continue
        where = f"{path}, record {next(left)!r}"
        yield where, start, line
        record = _until_end(where, lines)
        keyword = b""
        for number, line in record:
            keyword = line[:12].strip() or keyword
            if keyword in _HEADER:
                yield where, number, line
            if keyword == b"ORIGIN":
                break
        count = 0  # of letters
        offset: int | None = None  # position of the first letter, as the file has it
        for number, line in record:
            if line[:1].isalpha():  # CONTIG and the like, behind the sequence
                continue
            position = line[:11].split()[0] if line[:10].strip() else b""
            if position:
                found = int(position) - count if position.isdigit() else None
                offset = found if offset is None else offset
                if found is None or found != offset:
                    raise InputError(
                        f"{where}, line {number}, column 1: position {as_text(position)!r}, expected "
                        f"{count + (1 if offset is None else offset)}; a line is damaged or missing"
                    )
            if not line.isascii():
                raise InputError(f"{where}, line {number}: a letter that is no nucleotide in {as_text(line.strip())!r}")
            count += len(line) - line.count(b" ") - len(position)
            yield where, number, line
        if not count:
            raise InputError(f"{where}, line {start}: a GenBank record without its sequence; fetch the full one")
        yield where, start, b"//"  # of which messages on the whole record name the line


def _until_end(where: str, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The lines of a record before its `//`. Raises `InputError` if there is none."""
    for number, line in lines:
        if line.rstrip() == b"//":
            return
        if line.startswith(_LOCUS):
            raise InputError(f"{where}, line {number}: truncated or damaged: the next record begins before `//`")
        yield number, line
    raise InputError(
        f"{where}: truncated or damaged: the file ends within it; compare its size with that of its source"
    )


class _Handle:
    """Lines as Biopython reads them."""

    def __init__(self, path: Path, lines: Iterator[_Line]) -> None:
        self._lines = lines
        self.where, self.line = str(path), 0
        """Of the line that was read last."""

    def read(self, size: int) -> str:
        """Biopython distinguishes text from bytes by reading nothing."""
        assert not size
        return ""

    def readline(self) -> str:
        """A line with its end; empty where there are no more."""
        if (item := next(self._lines, None)) is None:
            return ""
        self.where, self.line, line = item
        if line.startswith(_LOCUS):
            line = _LOCUS.ljust(12) + line[len(_LOCUS) :].lstrip()  # some programs do not keep to its columns
        return as_text(line) + "\n"


def _parse(handle: _Handle) -> Iterator[Any]:
    """The records as `SeqRecord`. Biopython is imported here, since only GenBank needs it."""
    try:
        from Bio import BiopythonParserWarning, SeqIO
    except ImportError:
        message = f"{handle.where}: reading GenBank needs Biopython: pip install biopython; or give FASTA"
        raise InputError(message) from None
    records = SeqIO.parse(handle, "genbank")
    while True:
        try:
            with warnings.catch_warnings():  # most are remarks on matters of form
                warnings.simplefilter("ignore", BiopythonParserWarning)
                warnings.filterwarnings("error", "Expected sequence length", BiopythonParserWarning)
                record = next(records, None)
        except InputError:
            raise
        except BiopythonParserWarning as warning:
            raise InputError(f"{handle.where}, line {handle.line}: truncated or damaged: {warning}") from None
        except ValueError as error:
            raise InputError(f"{handle.where}, line {handle.line}: no valid GenBank: {one_line(str(error))}") from None
        if record is None:
            return
        yield record
