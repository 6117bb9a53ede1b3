"""Damages to a file's bytes, as disks, networks, editors and spreadsheets make them; and as someone hostile would."""

import gzip
import re
from random import Random

FRAGMENTS = (
    b"\t", b",", b";", b" ", b"=", b":", b"|", b"/", b"-", b".", b"+", b">", b"#", b"*", b"$", b"@", b"%", b"\\",
    b'"', b"'", b'""', b"[", b"]", b"{", b"}", b"<", b"&a ", b"*a ", b"!!python/object ", b"<<: ", b"- ", b"? ",
    b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"\x0b", b"\x0c", b"\x1a", b"\x1b[31m", b"\x7f", b"\x80", b"\xff",
    b"\xef\xbb\xbf", b"\xff\xfe", "\x85".encode(), "\u2028".encode(), "\u202e".encode(), "\u00a0".encode(),
    "é".encode(), "\u0663".encode(), "²".encode(), "１".encode(), b"N", b"n", b"x", b"U", b"E", b"nan", b"NA",
    b"null", b"true", b"\x1f\x8b", b"PAR1", b"##FASTA\n", b"//\n", b"track ", b"LOCUS ", b"A" * 3000, b"[" * 3000,
    b'{"a":' * 1200, b"9" * 6000,
)  # fmt: skip
NUMBERS = (
    b"0", b"-1", b"1", b"2", b"+20", b"1_0", b"--5", b"1e3", b"1.0", b"0x10", b"007", b"2147483648", b"-0", b"1.5e308",
    b"9223372036854775808", b"18446744073709551616", b"100000000000000000000", b"1000000000", b"NaN", b"1e999", b"true",
    "1²".encode(), "\u0661\u0662".encode(), b"", b"4" * 5000,
)  # fmt: skip
_MOST = 4
"""Damages of one case"""


def mutate(data: bytes, random: Random) -> bytes:
    """`data` with one damage or a few."""
    for _ in range(min(1 + int(random.expovariate(1)), _MOST)):
        data = random.choice(_DAMAGES)(data, random)
    return data


def mutate_packed(data: bytes, random: Random) -> bytes:
    """As `mutate`, with what happens to gzip files, or to the text within it."""
    choice = random.randrange(6)
    if choice == 0:
        return data[: random.randrange(len(data))]
    if choice == 1:
        return data + random.choice((bytes(9), b"tail", random.randbytes(40), b"\x1f\x8b", data[: len(data) // 2]))
    if choice == 2:
        return data + gzip.compress(mutate(gzip.decompress(data)[:60], random), mtime=0)
    if choice == 3:
        return gzip.compress(mutate(gzip.decompress(data), random), mtime=0)
    return mutate(data, random)


def _interval(data: bytes, random: Random) -> tuple[int, int]:
    """Mostly short."""
    start = random.randrange(len(data) + 1)
    return start, min(start + 1 + int(random.expovariate(1 / 6)), len(data))


def _flip_bit(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) or 1)
    return data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def _other_byte(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) or 1)
    return data[:at] + random.randbytes(1) + data[at + 1 :]


def _insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randint(1, 4)) + data[at:]


def _insert_fragment(data: bytes, random: Random) -> bytes:
    at = random.choice((0, len(data), *[random.randrange(len(data) + 1)] * 6))
    return data[:at] + random.choice(FRAGMENTS) + data[at:]


def _replace_by_fragment(data: bytes, random: Random) -> bytes:
    start, end = _interval(data, random)
    return data[:start] + random.choice(FRAGMENTS) + data[end:]


def _delete(data: bytes, random: Random) -> bytes:
    start, end = _interval(data, random)
    return data[:start] + data[end:]


def _duplicate(data: bytes, random: Random) -> bytes:
    start, end = _interval(data, random)
    return data[:end] + data[start:]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _copy_elsewhere(data: bytes, random: Random) -> bytes:
    start, end = _interval(data, random)
    at = random.randrange(len(data) + 1)
    return data[:at] + data[start:end] + data[at + end - start :]


def _other_number(data: bytes, random: Random) -> bytes:
    if not (found := list(re.finditer(rb"-?\d[\d.]*", data))):
        return _flip_bit(data, random)
    number = random.choice(found)
    return data[: number.start()] + random.choice(NUMBERS) + data[number.end() :]


def _lines(data: bytes, random: Random) -> bytes:
    """A line dropped, doubled, or swapped with another."""
    lines = data.splitlines(keepends=True) or [b""]
    first, second = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(3)
    if kind == 0:
        del lines[first]
    elif kind == 1:
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def _other_line_ends(data: bytes, random: Random) -> bytes:
    return data.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b" \n")))


_DAMAGES = (
    _flip_bit, _flip_bit, _other_byte, _insert, _insert_fragment, _insert_fragment, _replace_by_fragment, _delete,
    _delete, _duplicate, _truncate, _copy_elsewhere, _other_number, _other_number, _lines, _lines, _other_line_ends,
)  # fmt: skip
