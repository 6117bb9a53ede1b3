"""Genome files to tokens: FASTA (plain, gzip, bgzip) streamed at the speed of the decompressor; GenBank by Biopython.

A contig's name is its header up to the first white space (pipes stay: `gi|1|ref|NC_1.1|` is one name); the rest is its
description. Lower case is a base with the soft-mask bit; U is T; IUPAC codes, X too, become N and are counted. Blank
lines and blanks within lines are read over. Everything else is an `InputError` with file, record, line and column.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import ASCII_TO_TOKEN, IUPAC_AMBIGUOUS, SOFT_MASK_BIT, N
from dnamamba.errors import InputError
from dnamamba.genome.genbank import is_genbank, read_genbank
from dnamamba.text_files import DamagedGzip, RawFile, as_text, blocks, decompressed, is_pipe

EXPECTED = "FASTA (plain, gzip, bgzip) or GenBank"
READ_BYTES = 4 << 20
"""Decompressed bytes handled at once: large enough for numpy, small for any machine's memory."""
MAX_HEADER = 1 << 20
"""A longer header line is no FASTA header."""

_BLANKS = b"\n \t\v\f"
_AMBIGUOUS, _MASKED, _INVALID = 0x20, 0x21, 0xFF
"""Marks that live within this module only: an IUPAC code and X (perhaps with the mask bit), and a byte that is no code.
"""
_MARKED = np.where(ASCII_TO_TOKEN <= N, ASCII_TO_TOKEN, _INVALID).astype(np.uint8)
for _byte in b"ACGTUN":
    _MARKED[_byte | 0x20] = ASCII_TO_TOKEN[_byte | 0x20]
_TO_N = bytearray(range(256))
for _byte in IUPAC_AMBIGUOUS.encode():
    _mark = _MASKED if _byte == ord("X") else _AMBIGUOUS
    _MARKED[_byte], _MARKED[_byte | 0x20] = _mark, _mark | SOFT_MASK_BIT
    _TO_N[_mark], _TO_N[_mark | SOFT_MASK_BIT] = N, N | SOFT_MASK_BIT
_TO_MARKED = _MARKED.tobytes()

_FOREIGN = (
    (b"\x1a\x41\x27\x43", "a 2bit file: convert it with `twoBitToFa`"),
    (b"\x43\x27\x41\x1a", "a 2bit file: convert it with `twoBitToFa`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: decompress it first"),
    (b"BZh", "compressed with bzip2: decompress it first"),
    (b"\xfd7zXZ", "compressed with xz: decompress it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BAM\x01", "a BAM file, not a genome"),
    (b"CRAM", "a CRAM file, not a genome"),
)


class SequenceBlock(NamedTuple):
    """A part of one record, in file order. Every record begins with a block without bases, whose `first` is set."""

    name: str
    description: str
    """The header after the name."""
    line: int
    """Line of the header in its file, 1-based."""
    first: bool
    tokens: np.ndarray
    """(bases,) uint8, soft mask in bit 7."""
    ambiguous: int
    """How many of these N were IUPAC codes in the file."""


class SourceFile(NamedTuple):
    """What identifies a file that was read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class HashingFile(RawFile):
    """A file read from its start to its end, of which the SHA-256 is taken."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        super().__init__(path, EXPECTED, on_read)
        self._hash = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    def hash_to_end(self) -> str:
        """SHA-256 of the whole file, what has not been read included, as 64 hexadecimal digits."""
        while self.read(READ_BYTES):
            pass
        return self._hash.hexdigest()


def read_genome(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[SequenceBlock | SourceFile]:
    """Streams the blocks of one genome file, and as the last item the `SourceFile` that identifies what was read.

    `on_read` gets the number of bytes (of the file, so compressed ones) that each read took.
    Raises `InputError` if the file is missing, empty, truncated, binary, or no nucleotide FASTA or GenBank.
    """
    with HashingFile(path, on_read) as raw:
        status = path.stat()
        name = ""
        try:
            stream = decompressed(raw)
            for block in _read_stream(path, stream):
                name = block.name
                yield block
        except DamagedGzip as error:
            raise InputError(f"{error} (the last record read is {name!r})" if name else str(error)) from None
        digest = raw.hash_to_end()
        if is_pipe(path):
            yield SourceFile(str(path), raw.tell(), 0, digest)
        else:
            yield SourceFile(str(path.resolve()), status.st_size, status.st_mtime_ns, digest)


def _read_stream(path: Path, stream: io.BufferedReader) -> Iterator[SequenceBlock]:
    head = stream.peek(1)
    stripped = head.lstrip()
    if is_genbank(stripped):
        yield from _read_genbank(path, stream)
    else:
        _check_kind(path, head, stripped)
        yield from _read_fasta(path, stream)


def _check_kind(path: Path, head: bytes, stripped: bytes) -> None:
    if not stripped:
        raise InputError(f"{path}: empty; expected FASTA or GenBank")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"{path}: this is {what}")
    if b"\0" in head or stripped[0] >= 0x80:
        raise InputError(f"{path}: binary data, not FASTA or GenBank")
    if not stripped.startswith(b">"):
        line = b"".join(blocks(io.BytesIO(head[: len(head) - len(stripped)]), READ_BYTES)).count(b"\n") + 1
        shown = stripped.splitlines()[0][:20].decode("ascii", "backslashreplace")
        raise InputError(f"{path}, line {line}: no FASTA header: the first record must begin with '>', found {shown!r}")


def _read_fasta(path: Path, stream: io.BufferedReader) -> Iterator[SequenceBlock]:
    name, description, header_line = "", "", 0
    header: bytes | None = None  # the part of an unfinished header line that earlier blocks held
    line, column = 1, 0  # line of the next byte, and how many bytes of that line earlier blocks held
    bases = ambiguous = masked = 0
    for block in blocks(stream, READ_BYTES):
        position = 0
        while position < len(block):
            if header is not None:
                end = block.find(b"\n", position)
                header += block[position : end if end >= 0 else len(block)]
                if len(header) > MAX_HEADER:
                    raise InputError(f"{path}, line {line}: a header of more than {MAX_HEADER} bytes; not a FASTA file")
                position = end + 1 if end >= 0 else len(block)
                if end >= 0:
                    name, description = _parse_header(path, line, header)
                    header, header_line, bases, ambiguous, masked = None, line, 0, 0, 0
                    line, column = line + 1, 0
                    yield SequenceBlock(name, description, header_line, True, np.empty(0, np.uint8), 0)
                continue
            mark = block.find(b">", position)
            end = mark if mark >= 0 else len(block)
            text = block[position:end]
            marked = text.translate(_TO_MARKED, _BLANKS)
            if _INVALID in marked:
                raise _bad_byte(path, name, line, column, text)
            codes, masks = _count_codes(marked)
            bases, ambiguous, masked = bases + len(marked), ambiguous + codes, masked + masks
            if marked:
                yield SequenceBlock(name, description, header_line, False, _tokens(marked), codes + masks)
            newlines = text.count(b"\n")
            line += newlines
            column = len(text) - text.rfind(b"\n") - 1 if newlines else column + len(text)
            if mark >= 0:
                if column:
                    raise InputError(
                        f"{path}, record {name!r}, line {line}, column {column + 1}: '>' within a line of sequence; "
                        "a header must begin its line"
                    )
                _check_composition(path, name, header_line, bases - masked, ambiguous)
                header, end = b"", end + 1
            position = end
    if header is not None:  # the file ends within a header line, which so has no sequence
        name, description = _parse_header(path, line, header)
        yield SequenceBlock(name, description, line, True, np.empty(0, np.uint8), 0)
    else:
        _check_composition(path, name, header_line, bases - masked, ambiguous)


def _count_codes(marked: bytes) -> tuple[int, int]:
    """How many letters are IUPAC codes, X left out, and how many are X."""
    codes, masks = (marked.count(mark) + marked.count(mark | SOFT_MASK_BIT) for mark in (_AMBIGUOUS, _MASKED))
    return codes, masks


def _tokens(marked: bytes) -> np.ndarray:
    return np.frombuffer(marked.translate(_TO_N), np.uint8)


def _parse_header(path: Path, line: int, header: bytes) -> tuple[str, str]:
    words = header.split(maxsplit=1)
    if not words:
        raise InputError(f"{path}, line {line}: a header without a name; expected '>name'")
    return as_text(words[0]), as_text(words[1].strip()) if len(words) > 1 else ""


def _bad_byte(path: Path, name: str, line: int, column: int, text: bytes) -> InputError:
    at = int(np.argmax((_MARKED[data := np.frombuffer(text, np.uint8)] == _INVALID) & ~np.isin(data, list(_BLANKS))))
    before = text[:at]
    line += before.count(b"\n")
    column = at - before.rfind(b"\n") if b"\n" in before else column + at + 1
    byte = text[at]
    shown = repr(chr(byte)) if 0x20 < byte < 0x7F else f"byte 0x{byte:02x}"
    if byte in b"EFILPQJOZefilpqjoz*":
        hint = "an amino-acid code: this looks like protein; give nucleotides"
    elif byte in b"-.":
        hint = "a gap: give sequences without alignment gaps"
    else:
        hint = "not a nucleotide code"
    return InputError(f"{path}, record {name!r}, line {line}, column {column}: {shown} is {hint}")


def _check_composition(path: Path, name: str, line: int, bases: int, ambiguous: int) -> None:
    """Protein can be spelled in IUPAC letters alone; no genome has more codes than bases, masks (X) left out."""
    if bases >= 10 and 2 * ambiguous > bases:
        raise InputError(
            f"{path}, record {name!r}, line {line}: {ambiguous} of {bases} letters are IUPAC ambiguity codes; "
            "this looks like protein, expected nucleotides"
        )


def _read_genbank(path: Path, stream: io.BufferedReader) -> Iterator[SequenceBlock]:
    """A record is one contig. GenBank is lower case by custom: no soft mask."""
    for name, description, line, letters in read_genbank(path, stream):
        marked = letters.translate(_TO_MARKED)
        if _INVALID in marked:
            at = marked.index(_INVALID)
            raise InputError(f"{path}, record {name!r}, position {at + 1}: {chr(letters[at])!r} is no nucleotide")
        codes, masks = _count_codes(marked)
        _check_composition(path, name, line, len(marked) - masks, codes)
        yield SequenceBlock(name, description, line, True, np.empty(0, np.uint8), 0)
        yield SequenceBlock(name, description, line, False, _tokens(marked), codes + masks)
