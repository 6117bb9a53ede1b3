"""Genome files to tokens: FASTA (plain, gzip, bgzip) streamed at the speed of the decompressor, GenBank by Biopython.

A contig's name is its header up to the first white space (pipes stay: `gi|1|ref|NC_1.1|` is one name); the rest is its
description. Lower case is a base with the soft-mask bit; IUPAC codes become N and are counted. CRLF, blank lines and
blanks within lines are read over. Everything else is an `InputError` with file, record, line and column.
"""

import gzip
import hashlib
import io
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from dnamamba.alphabet import ASCII_TO_TOKEN, IUPAC_AMBIGUOUS, SOFT_MASK_BIT, N
from dnamamba.errors import InputError

READ_BYTES = 4 << 20
"""Decompressed bytes handled at once: large enough for numpy, small for any machine's memory."""
MAX_HEADER = 1 << 20
"""A longer header line is no FASTA header."""

_BLANKS = b"\r\n \t\v\f"
_AMBIGUOUS, _INVALID = 0x20, 0xFF
"""Marks that live within this module only: an IUPAC code (perhaps with the mask bit), and a byte that is no code."""
_MARKED = np.where(ASCII_TO_TOKEN <= N, ASCII_TO_TOKEN, _INVALID).astype(np.uint8)
for _byte in b"ACGTN":
    _MARKED[_byte | 0x20] = ASCII_TO_TOKEN[_byte | 0x20]
for _byte in IUPAC_AMBIGUOUS.encode():
    _MARKED[_byte], _MARKED[_byte | 0x20] = _AMBIGUOUS, _AMBIGUOUS | SOFT_MASK_BIT
_TO_MARKED = _MARKED.tobytes()
_AMBIGUOUS_MARKS = tuple(bytes([mark]) for mark in (_AMBIGUOUS, _AMBIGUOUS | SOFT_MASK_BIT))
_TO_N = bytearray(range(256))
_TO_N[_AMBIGUOUS], _TO_N[_AMBIGUOUS | SOFT_MASK_BIT] = N, N | SOFT_MASK_BIT

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
_BGZIP_EOF = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class SequenceBlock(NamedTuple):
    """A part of one record, in file order. Every record begins with a block whose `first` is set, perhaps empty."""

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


class HashingFile(io.RawIOBase):
    """A binary file that takes the SHA-256 of what is read; `on_read` gets the number of bytes of each read."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:count])
        if self._on_read is not None and count:
            self._on_read(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

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
    try:
        status = path.stat()
        if path.is_dir():
            raise InputError(f"{path}: a folder that is no token store; give a FASTA or GenBank file")
        raw = HashingFile(path, on_read)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a FASTA (plain, gzip, bgzip) or GenBank file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    with raw:
        yield from _read_stream(path, raw)
        yield SourceFile(str(path.resolve()), status.st_size, status.st_mtime_ns, raw.hash_to_end())


def _read_stream(path: Path, raw: HashingFile) -> Iterator[SequenceBlock]:
    buffered = io.BufferedReader(raw, 1 << 20)
    magic = buffered.peek(18)[:18]
    stream: IO[bytes] = buffered
    if magic[:2] == b"\x1f\x8b":
        if magic[12:14] == b"BC":
            _check_bgzip_end(path)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
    position = "at its start"
    try:
        head = stream.read(READ_BYTES)
        stripped = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        _check_kind(path, head, stripped)
        if stripped.startswith(b"LOCUS "):
            yield from _read_genbank(path, head, stream)
            return
        for block in _read_fasta(path, head.removeprefix(b"\xef\xbb\xbf"), stream):
            position = f"in record {block.name!r}"
            yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        kind = "truncated" if isinstance(error, EOFError) else "damaged"
        raise InputError(f"{path}: the gzip data are {kind} {position}; fetch the file again") from None
    finally:
        buffered.detach()  # or its end would close `raw`, whose hash is still to be taken


def _check_bgzip_end(path: Path) -> None:
    """A bgzip file cut between two of its blocks is valid gzip: only the missing end mark shows it."""
    with path.open("rb") as file:
        file.seek(-min(len(_BGZIP_EOF), path.stat().st_size), io.SEEK_END)
        if file.read() != _BGZIP_EOF:
            raise InputError(f"{path}: truncated: bgzip's end mark is missing; fetch the file again")


def _check_kind(path: Path, head: bytes, stripped: bytes) -> None:
    if not stripped:
        raise InputError(f"{path}: empty; expected FASTA or GenBank")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"{path}: this is {what}")
    if b"\0" in head or stripped[0] >= 0x80:
        raise InputError(f"{path}: binary data, not FASTA or GenBank")
    if not stripped.startswith((b">", b"LOCUS ")):
        line = head[: len(head) - len(stripped)].count(b"\n") + 1
        shown = stripped.split(b"\n", 1)[0][:20].decode("ascii", "backslashreplace")
        raise InputError(f"{path}, line {line}: no FASTA header: the first record must begin with '>', found {shown!r}")


def _read_fasta(path: Path, block: bytes, stream: IO[bytes]) -> Iterator[SequenceBlock]:
    name, description, header_line = "", "", 0
    header: bytes | None = None  # the part of an unfinished header line that earlier blocks held
    line, column = 1, 0  # line of the next byte, and how many bytes of that line earlier blocks held
    bases = ambiguous = 0
    while block:
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
                    header, header_line, bases, ambiguous = None, line, 0, 0
                    line, column = line + 1, 0
                    yield SequenceBlock(name, description, header_line, True, np.empty(0, np.uint8), 0)
                continue
            mark = block.find(b">", position)
            end = mark if mark >= 0 else len(block)
            text = block[position:end]
            marked = text.translate(_TO_MARKED, _BLANKS)
            if _INVALID in marked:
                raise _bad_byte(path, name, line, column, text)
            codes = sum(marked.count(mark_byte) for mark_byte in _AMBIGUOUS_MARKS)
            bases, ambiguous = bases + len(marked), ambiguous + codes
            if marked:
                tokens = marked.translate(_TO_N) if codes else marked
                yield SequenceBlock(name, description, header_line, False, np.frombuffer(tokens, np.uint8), codes)
            newlines = text.count(b"\n")
            line += newlines
            column = len(text) - text.rfind(b"\n") - 1 if newlines else column + len(text)
            if mark >= 0:
                if column:
                    raise InputError(
                        f"{path}, record {name!r}, line {line}, column {column + 1}: '>' within a line of sequence; "
                        "a header must begin its line"
                    )
                _check_composition(path, name, header_line, bases, ambiguous)
                header, end = b"", end + 1
            position = end
        block = stream.read(READ_BYTES)
    if header is not None:  # the file ends within a header line, which so has no sequence
        name, description = _parse_header(path, line, header)
        yield SequenceBlock(name, description, line, True, np.empty(0, np.uint8), 0)
    else:
        _check_composition(path, name, header_line, bases, ambiguous)


def _parse_header(path: Path, line: int, header: bytes) -> tuple[str, str]:
    text = header.rstrip()
    if b"\r" in text:
        raise InputError(f"{path}, line {line}: lines end in CR alone (old Mac); convert them to LF")
    words = text.decode("utf-8", "backslashreplace").split(maxsplit=1)
    if not words:
        raise InputError(f"{path}, line {line}: a header without a name; expected '>name'")
    return words[0], words[1] if len(words) > 1 else ""


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
    """Protein can be spelled in IUPAC letters alone; no genome has more codes than bases."""
    if bases >= 10 and 2 * ambiguous > bases:
        raise InputError(
            f"{path}, record {name!r}, line {line}: {ambiguous} of {bases} letters are IUPAC ambiguity codes; "
            "this looks like protein, expected nucleotides"
        )


class _Joined(io.RawIOBase):
    """Bytes already read, then the rest of their stream."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if self._head else self._stream.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _complete_records(records: Iterator[Any], kind: type[Warning]) -> Iterator[Any]:
    """Biopython only warns of a record that is cut short; its other remarks are on matters of form."""
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kind)
            warnings.filterwarnings("error", "Premature end of file|Expected sequence length", kind)
            if (record := next(records, None)) is None:
                return
        yield record


def _read_genbank(path: Path, head: bytes, stream: IO[bytes]) -> Iterator[SequenceBlock]:
    """A record is one contig, named by its accession and version. GenBank is lower case by custom: no soft mask."""
    try:
        from Bio import BiopythonParserWarning, SeqIO
        from Bio.Seq import UndefinedSequenceError
    except ImportError:
        raise InputError(f"{path}: reading GenBank needs Biopython: pip install biopython; or give FASTA") from None
    text = io.TextIOWrapper(io.BufferedReader(_Joined(head, stream)), encoding="utf-8", errors="replace")
    name = ""
    try:
        for record in _complete_records(SeqIO.parse(text, "genbank"), BiopythonParserWarning):
            name = record.id
            sequence = bytes(record.seq).upper()
            marked = sequence.translate(_TO_MARKED)
            if _INVALID in marked:
                at = marked.index(_INVALID)
                raise InputError(f"{path}, record {name!r}, position {at + 1}: {chr(sequence[at])!r} is no nucleotide")
            codes = marked.count(_AMBIGUOUS_MARKS[0])
            _check_composition(path, name, 0, len(marked), codes)
            yield SequenceBlock(name, record.description, 0, True, np.empty(0, np.uint8), 0)
            yield SequenceBlock(
                name, record.description, 0, False, np.frombuffer(marked.translate(_TO_N), np.uint8), codes
            )
    except UndefinedSequenceError:
        raise InputError(
            f"{path}, record {name!r}: a GenBank record without its sequence; fetch the full one"
        ) from None
    except BiopythonParserWarning as warning:
        raise InputError(
            f"{path}, after record {name!r}: truncated or damaged ({warning}); fetch the file again"
        ) from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}, after record {name!r}: not valid GenBank: {error}") from None
