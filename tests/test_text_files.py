"""Input files as bytes and lines: compression, pipes, encodings, line ends and the limit on lines."""

import gzip
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dnamamba import cli, errors, text_files
from dnamamba.errors import InputError, one_line
from dnamamba.text_files import as_text, numbered_lines, open_bytes, read_lines, read_text_lines

END = text_files.BGZIP_END
TEXT = b"".join(b"line %d\n" % number for number in range(20_000))


def gzipped(data: bytes) -> bytes:
    """Without the time, so that all processes of a test run see tests of the same names."""
    return gzip.compress(data, mtime=0)


def bgzip(data: bytes, size: int = 60_000) -> bytes:
    """Blocks of bgzip, with the extra field BC, without the last one."""
    packed = b""
    for start in range(0, len(data), size):
        plain = gzipped(data[start : start + size])
        length = len(plain) + 8 - 1
        packed += plain[:3] + b"\x04" + plain[4:10] + b"\x06\0BC\x02\0" + length.to_bytes(2, "little") + plain[10:]
    return packed


@pytest.fixture(autouse=True)
def no_warning_yet():
    errors._warned.clear()


def content(path: Path) -> bytes:
    with open_bytes(path) as stream:
        return stream.read()


def write(folder: Path, data: bytes, name: str = "file.txt.gz") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


HALF = len(TEXT) // 2
KINDS = {
    "plain": (TEXT, ""),
    "gzip": (gzipped(TEXT), ""),
    "members": (gzipped(TEXT[:HALF]) + gzipped(TEXT[HALF:]), ""),
    "padded": (gzipped(TEXT) + bytes(3000), ""),
    "bgzip": (bgzip(TEXT) + END, ""),
    "bgzip, then gzip": (bgzip(TEXT[:HALF]) + END + gzipped(TEXT[HALF:]), ""),
    "two of bgzip": (bgzip(TEXT[:HALF]) + END + bgzip(TEXT[HALF:]) + END, ""),
    "tail": (gzipped(TEXT) + b"garbage", f"from byte {len(gzipped(TEXT)):,} on, is ignored"),
    "long tail": (gzipped(TEXT) + bytes(9) + b"g" * 200_000, f"byte {len(gzipped(TEXT)) + 9:,} on"),
    "tail of bgzip": (bgzip(TEXT) + END + b"\x1f", "is ignored, as `gzip -dc` does"),
    "no end block": (bgzip(TEXT), "bgzip's last block is missing"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_gzip_reads_is_read(kind, tmp_path, capsys):
    data, warning = KINDS[kind]
    path = write(tmp_path, data)
    if data is not TEXT:
        assert subprocess.run(["gzip", "-dc", path], stdout=subprocess.PIPE, check=False).stdout == TEXT
    assert content(path) == TEXT == content(path)
    printed = capsys.readouterr().err
    assert printed.count("\n") == bool(warning)  # once for both readings
    assert warning in printed and (not warning or printed.startswith(f"warning: {path}: "))


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_any_sizes_of_reads_and_bombs(size, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_PACKED", size)
    monkeypatch.setattr(text_files, "_BUFFER", max(size, 8))
    data = bgzip(TEXT[:3000], 700) + END + gzipped(bytes(100_000) + TEXT[3000:9000])
    assert content(write(tmp_path, data)) == TEXT[:3000] + bytes(100_000) + TEXT[3000:9000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzipped(TEXT)[:-20], r"truncated: the file ends within them, at byte [\d,]+; compare its size"),
        (gzipped(TEXT)[:-3], "truncated"),
        (bgzip(TEXT)[:-500], "truncated"),
        (gzipped(TEXT) + gzipped(TEXT)[:30], "truncated"),
        (b"\x1f\x8b", "truncated"),
        (gzipped(TEXT) + b"\x1f", "truncated"),
        (bgzip(TEXT) + b"\x1f", "truncated"),
        (gzipped(TEXT)[:-8] + bytes(8), "damaged near byte .*`gzip -t`"),
        (gzipped(TEXT) + b"\x1f\x8b\x01garbage", "damaged"),
        ("x\n".encode("utf-16"), "text in UTF-16; expected a text file in UTF-8: convert it by `iconv -f UTF-16"),
        (gzipped("x\n".encode("utf-16-be").join([b"\xfe\xff", b""])), "text in UTF-16"),
        ("x\n".encode("utf-32"), "text in UTF-32"),
    ],
)
def test_what_cannot_be_read_is_refused(data, message, tmp_path):
    path = write(tmp_path, data)
    with pytest.raises(InputError, match=message) as refused:
        content(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_files_that_are_none(tmp_path):
    for path, message in ((tmp_path / "no", "no such file; expected BED"), (tmp_path, "a folder; expected BED")):
        with pytest.raises(InputError, match=message), open_bytes(path, "BED"):
            pass
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        content(tmp_path / ("x" * 300))


def test_lines_end_at_line_feed_and_carriage_return_alone(tmp_path):
    data = "\ufeffa\r\nb\rc\n\n\u2028 \x0b\x0c\x85 \u2029 \x1c\n\r\r\nlast".encode()
    expected = ["a", "b", "c", "", "\u2028 \x0b\x0c\x85 \u2029 \x1c", "", "", "last"]
    for block in (1, 2, 3, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_files, "BLOCK", block)
            assert list(read_text_lines(write(tmp_path, data))) == list(enumerate(expected, 1))
    assert list(read_lines(write(tmp_path, b"a\r"))) == [(1, b"a")]
    assert list(read_lines(write(tmp_path, b""))) == []


def test_bytes_that_are_not_utf_8_stay_distinguished():
    assert as_text("gène".encode()) == as_text("gène".encode("latin-1")) == "gène"
    assert len({as_text(bytes([byte])) for byte in range(256)}) == 256


def test_nul_bytes_and_endless_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK", 8)
    with pytest.raises(InputError, match=r"line 2, column 11: binary data \(a NUL byte\); expected BED"):
        list(read_lines(write(tmp_path, b"1\n0123456789\0\n"), "BED"))
    monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
    assert len(list(read_lines(write(tmp_path, b"x" * 100 + b"\n" + b"y" * 100)))) == 2
    with pytest.raises(InputError, match=r"line 2: more than 100 bytes; expected a text file"):
        list(read_lines(write(tmp_path, gzipped(b"x\n" + b"y" * 1000))))
    with pytest.raises(InputError, match=r"/dev/zero, line 1, column 1: binary data"):
        list(read_lines(Path("/dev/zero")))
    assert list(read_lines(Path("/dev/null"))) == []


@pytest.mark.parametrize("data", [TEXT, gzipped(TEXT)], ids=["plain", "gzip"])
def test_pipes_are_read_again_and_from_any_position(data, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(data,))
    feeder.start()
    first = next(read_lines(pipe))  # a reader that only looks at the start
    assert first == (1, b"line 0")
    assert content(pipe) == TEXT == content(pipe)
    with text_files.RawFile(pipe, "") as raw:
        assert raw.seek(-5, io.SEEK_END) == len(data) - 5
        assert raw.read() == data[-5:]
    feeder.join()


def test_standard_input_is_a_file_like_any_other():
    code = "import pathlib, dnamamba.text_files as t; print(*t.read_text_lines(pathlib.Path('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input=b"a\nb", capture_output=True, check=True)
    assert done.stdout == b"(1, 'a') (2, 'b')\n"


def test_progress_counts_the_file(tmp_path):
    path = write(tmp_path, gzipped(TEXT) + b"tail")
    read: list[int] = []
    with open_bytes(path, on_read=read.append) as stream:
        assert sum(1 for _ in numbered_lines(path, stream, "a text file")) == 20_000
    assert sum(read) == path.stat().st_size


def test_messages_are_one_line_that_a_terminal_shows(capsys):
    hostile = "\x1b[31mred\x07\n\u202e\x9b\udc80"
    assert one_line(f"f.bed, line 1: {hostile} is odd") == (r"f.bed, line 1: \x1b[31mred\x07 \u202e\x9b\udc80 is odd")
    assert len(one_line("\x1b" * 5000)) <= errors.LONGEST_MESSAGE >= len(one_line("x " * 5000))
    long = "A" * 5000
    for quoted in (repr(long), repr(long + "'"), repr(long + "'\"")):
        text = one_line(f"f.bed: {quoted} is no number; expected one")
        assert text.startswith(f"f.bed: {quoted[0]}{long[:199]}…{quoted[0]} is") and text.endswith("expected one")

    def main(_: object) -> None:
        raise InputError(f"f.csv: no column x among {', '.join(f'c{n}' for n in range(10**5))}; name it")

    assert cli.run(main) == cli.USER_ERROR
    printed = capsys.readouterr().err
    assert len(printed) < 1300 and printed.startswith("error: f.csv: no column") and printed.endswith("; name it\n")
