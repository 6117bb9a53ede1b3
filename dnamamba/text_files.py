"""Input files as bytes and lines: plain, gzip or bgzip, regular files or pipes. Every reader of text opens them here.

- gzip: what `gzip -dc` reads, so members one after another, with a warning for bytes after the last one.
- Pipes, `<(…)`, `/dev/stdin`: what came through is kept in a temporary file, so that a file can be read twice.
- A UTF-8 byte order mark is skipped; UTF-16 and UTF-32 are refused by name.
- Lines end at LF, CR LF or CR, and nowhere else. They have at most `LONGEST_LINE` bytes.
- Text is UTF-8; bytes that are not are read as Latin-1, so that labels of any encoding stay distinguished.

Whatever is wrong with a file is an `InputError` raised by the read that meets it.
"""

import atexit
import codecs
import io
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dnamamba.errors import InputError, warn

BLOCK = 1 << 20
"""Decompressed bytes read at once."""
LONGEST_LINE = 1 << 27
"""Bytes of a line: beyond any sequence in a table, and short of any machine's memory."""

_BUFFER = 1 << 18
_GZIP = b"\x1f\x8b"
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every complete bgzip file (SAM specification, 4.1.2)."""
_PACKED = 1 << 16
"""Compressed bytes given to zlib at once. Small, since it copies what follows the end of a member."""
_LATIN_1 = "dnamamba.latin-1"


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error(_LATIN_1, _as_latin_1)


class DamagedGzip(InputError):
    """Gzip data that end too early, or whose checksum is wrong."""


@contextmanager
def open_bytes(
    path: Path, expected: str = "a text file", on_read: Callable[[int], None] | None = None
) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, without a byte order mark.

    Args:
        expected: what the file should be, for the messages.
        on_read: called with the number of bytes of the file, so compressed ones, that each read took.

    Raises:
        InputError: no such file, a folder, no permission, UTF-16; while it is read, damaged gzip.
    """
    with RawFile(path, expected, on_read) as raw:
        yield decompressed(raw)


def read_lines(path: Path, expected: str = "a text file") -> Iterator[tuple[int, bytes]]:
    """The lines of a file without their ends, and their numbers from 1.

    Raises `InputError` as `open_bytes`, and with the line for a NUL byte or more than `LONGEST_LINE` bytes.
    """
    with open_bytes(path, expected) as stream:
        yield from numbered_lines(path, stream, expected)


def read_text_lines(path: Path, expected: str = "a text file") -> Iterator[tuple[int, str]]:
    """As `read_lines`, each line as text."""
    for number, line in read_lines(path, expected):
        yield number, as_text(line)


def as_text(data: bytes) -> str:
    """Text of UTF-8; a byte that is none is the Latin-1 character. Equal bytes give equal text in all files."""
    return data.decode("utf-8", _LATIN_1)


def numbered_lines(path: Path, stream: IO[bytes], expected: str) -> Iterator[tuple[int, bytes]]:
    """The lines of what `open_bytes` gave, from where it stands. Raises as `read_lines`."""
    number, length = 1, 0
    begun: list[bytes] = []  # the parts of an unfinished line, of `length` bytes
    for block in blocks(stream, BLOCK):
        *lines, rest = block.split(b"\n")
        if b"\0" in block:
            before = block[: block.index(b"\0")]
            here, column = number + before.count(b"\n"), len(before) - before.rfind(b"\n")
            column += 0 if b"\n" in before else length
            raise InputError(f"{path}, line {here}, column {column}: binary data (a NUL byte); expected {expected}")
        for line in lines:
            if begun:
                line, begun, length = b"".join((*begun, line)), [], 0
            yield number, line
            number += 1
        if rest:
            begun.append(rest)
            length += len(rest)
            if length > LONGEST_LINE:
                raise InputError(f"{path}, line {number}: more than {LONGEST_LINE:,} bytes; expected {expected}")
    if begun:
        yield number, b"".join(begun)


def blocks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The bytes of a stream, about `size` at a time, with every line end as LF."""
    held = b""  # a CR whose LF may come with the next block
    while block := stream.read(size):
        block = held + block if held else block
        held = b""
        if b"\r" in block:
            if block.endswith(b"\r"):
                block, held = block[:-1], b"\r"
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if block:
            yield block
    if held:
        yield b"\n"


def is_pipe(path: Path) -> bool:
    """Whether a path is a pipe or device: without size, and with nothing to jump to."""
    try:
        return not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode))
    except (OSError, ValueError):  # ValueError: a NUL byte
        return False


def folder_of(path: Path) -> Path:
    """Where the names of files in `path` begin: its own folder, or the current one if it is a pipe."""
    return Path() if is_pipe(path) else path.parent


class RawFile(io.RawIOBase):
    """A file's bytes as they are, seekable even if it is a pipe. Reads fill the buffer unless the file ends.

    Raises `InputError` for a file that cannot be opened or read.
    """

    def __init__(self, path: Path, expected: str, on_read: Callable[[int], None] | None = None) -> None:
        self.path, self.expected = path, expected
        self._on_read = on_read
        self._position = 0
        self._pipe: _Pipe | None = None
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"{path}: a folder; expected {expected}")
            if stat.S_ISREG(status.st_mode):
                self._file: IO[bytes] = path.open("rb", buffering=0)
            else:
                key = (str(path), status.st_dev, status.st_ino)
                self._pipe = _pipes.get(key) or _pipes.setdefault(key, _Pipe(path))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; expected {expected}") from None
        except OSError as error:
            raise _unreadable(path, error) from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer), 0
        while filled < len(view) and (count := self._read(view[filled:])):
            filled += count
            self._position += count
        if self._on_read is not None and filled:
            self._on_read(filled)
        return filled

    def _read(self, view: memoryview) -> int:
        if self._pipe is not None:
            return self._pipe.readinto(view, self._position)
        try:
            return self._file.readinto(view) or 0  # type: ignore[attr-defined]
        except OSError as error:
            raise _unreadable(self.path, error) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._pipe is None:
            self._position = self._file.seek(offset, whence)
        else:
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
            self._position = offset + (self._pipe.size_at_end() if base is None else base)
        return self._position

    def close(self) -> None:
        if self._pipe is None and not self.closed:
            self._file.close()
        super().close()


class _Pipe:
    """What has come through a pipe, kept in a temporary file, which ends with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._source = path.open("rb", buffering=0)
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115
        self._size = 0

    def readinto(self, view: memoryview, position: int) -> int:
        """Bytes from a position, of what is kept or else of what comes next."""
        if position < self._size:
            self._kept.seek(position)
            return self._kept.readinto(view)  # type: ignore[attr-defined]
        try:
            count = self._source.readinto(view) or 0  # type: ignore[attr-defined]
        except OSError as error:
            raise _unreadable(self._path, error) from None
        try:
            self._kept.seek(self._size)
            self._kept.write(view[:count])
        except OSError as error:
            raise InputError(
                f"{self._path}: what comes through this pipe is kept in {tempfile.gettempdir()}, which cannot be "
                f"written ({error.strerror}); give a file, or another folder by TMPDIR"
            ) from None
        self._size += count
        return count

    def size_at_end(self) -> int:
        """Bytes of all that comes, which is waited for."""
        while self.readinto(memoryview(bytearray(BLOCK)), self._size):
            pass
        return self._size

    def close(self) -> None:
        self._source.close()
        self._kept.close()


_pipes: dict[tuple[str, int, int], _Pipe] = {}


@atexit.register
def _close_pipes() -> None:
    for pipe in _pipes.values():
        pipe.close()


def decompressed(raw: RawFile) -> io.BufferedReader:
    """The bytes of a file, decompressed if they are gzip, from behind a byte order mark. Raises as `open_bytes`."""
    buffered = io.BufferedReader(raw, _BUFFER)
    stream: Any = io.BufferedReader(_Gunzip(raw.path, buffered), _BUFFER) if buffered.peek(2)[:2] == _GZIP else buffered
    head = stream.peek(4)[:4]
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE):
        if head.startswith(mark):
            wide = mark == codecs.BOM_UTF32_BE or head == codecs.BOM_UTF32_LE
            name = "UTF-32" if wide else "UTF-16"
            raise InputError(
                f"{raw.path}: text in {name}; expected {raw.expected} in UTF-8: "
                f"convert it by `iconv -f {name} -t UTF-8`"
            )
    return stream


class _Gunzip(io.RawIOBase):
    """Gzip members, decompressed one after another."""

    def __init__(self, path: Path, packed: IO[bytes]) -> None:
        self._path, self._file = path, packed
        self._packed = b""  # read from the file, not yet decompressed
        self._used = 0  # bytes of the file before those
        self._member: Any = zlib.decompressobj(31)
        self._start = b""  # of the member, to know bgzip's last one
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view, filled = memoryview(buffer), 0
        while filled < len(view) and not self._ended:
            data = self._decompressed(len(view) - filled)
            view[filled : filled + len(data)] = data
            filled += len(data)
        return filled

    def _decompressed(self, most: int) -> bytes:
        if not self._packed and not self._fill():
            raise DamagedGzip(
                f"{self._path}: the gzip data are truncated: the file ends within them, at byte {self._used:,}; "
                "compare its size with that of its source, and copy or make it again"
            )
        before = len(self._packed)
        if not self._start:
            self._start = self._packed[: len(BGZIP_END)]
        try:
            data = self._member.decompress(self._packed, most)
        except zlib.error as error:
            raise DamagedGzip(
                f"{self._path}: the gzip data are damaged near byte {self._used:,} ({error}); "
                "`gzip -t` checks a file: copy or make it again"
            ) from None
        self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        self._used += before - len(self._packed)
        if self._member.eof:
            self._next_member()
        return data

    def _next_member(self) -> None:
        """Stands at the next member, or at the end, of which it says what is odd."""
        start, self._start = self._start, b""
        while len(self._packed) < len(BGZIP_END) and self._fill():
            pass
        is_cut = self._packed == _GZIP[:1] and start != BGZIP_END  # within the first two bytes of a member
        if self._packed.startswith(_GZIP) or is_cut:
            self._member = zlib.decompressobj(31)
            return
        self._ended = True
        if start[12:14] == b"BC" and start != BGZIP_END:
            warn(
                f"{self._path}: bgzip's last block is missing: if the file was cut between two blocks, what came after "
                "them is lost; compare its size with that of its source"
            )
        while not (rest := self._packed.lstrip(b"\0")):  # padding, as of tapes
            self._used += len(self._packed)
            self._packed = b""
            if not self._fill():
                return
        at = self._used + len(self._packed) - len(rest)
        warn(f"{self._path}: what follows the gzip data, from byte {at:,} on, is ignored, as `gzip -dc` does")

    def _fill(self) -> bool:
        more = self._file.read(_PACKED)
        self._packed += more
        return bool(more)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read: {error.strerror or error}")
