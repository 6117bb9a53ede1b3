"""Parquet by its specification (apache/parquet-format), as far as the seeds go: flat columns, not compressed."""

import struct
from pathlib import Path
from typing import Any

from harness import Damaged

INT64, DOUBLE, BYTE_ARRAY = 2, 5, 6
PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY = 0, 2, 8


def parquet(path: Path) -> tuple[list[str], list[list[str | None]]]:
    """Header and rows, numbers as Python writes them."""
    data = path.read_bytes()
    try:
        return _table(data)
    except (KeyError, IndexError, ValueError, TypeError, struct.error, OverflowError, AttributeError) as error:
        raise Damaged(repr(error)) from None


def _table(data: bytes) -> tuple[list[str], list[list[str | None]]]:
    if data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise Damaged("no PAR1")
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = _Thrift(data, start).struct()
    root, *leaves = footer[2]
    if root[5] != len(leaves) or any(leaf.get(5) for leaf in leaves):
        raise Damaged("columns within columns")
    columns: list[list[str | None]] = [[] for _ in leaves]
    for group in footer[4]:
        for leaf, chunk, into in zip(leaves, group[1], columns, strict=True):
            values = _chunk(data, chunk[3], leaf.get(3) == 1)
            if len(values) != group[3]:
                raise Damaged("another number of values")
            into += values
    if any(len(column) != footer[3] for column in columns):
        raise Damaged("another number of rows")
    return [leaf[4].decode() for leaf in leaves], [list(row) for row in zip(*columns, strict=True)]


def _chunk(data: bytes, said: dict[int, Any], optional: bool) -> list[str | None]:
    if said[4] != 0:
        raise Damaged("compressed")
    at, values, dictionary = said.get(11) or said[9], [], []
    while len(values) < said[5]:
        page = _Thrift(data, at)
        header = page.struct()
        body, at = data[page.at : page.at + header[3]], page.at + header[3]
        if header[1] == 2:
            dictionary = _plain(body, said[1], header[7][1])
            continue
        count, encoding = header[5][1], header[5][2]
        present = [1] * count
        if optional:
            size = int.from_bytes(body[:4], "little")
            present, body = _hybrid(body[4 : 4 + size], 1, count), body[4 + size :]
        if encoding == PLAIN:
            some = iter(_plain(body, said[1], sum(present)))
        elif encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            some = iter([dictionary[key] for key in _hybrid(body[1:], body[0], sum(present))])
        else:
            raise Damaged("another encoding")
        values += [next(some) if is_there else None for is_there in present]
    return values


def _plain(body: bytes, kind: int, count: int) -> list[str]:
    if kind in (INT64, DOUBLE):
        return [str(value) for value in struct.unpack(f"<{count}{'q' if kind == INT64 else 'd'}", body[: 8 * count])]
    found = []
    for _ in range(count if kind == BYTE_ARRAY else 0):
        size = struct.unpack("<I", body[:4])[0]
        if len(body) < 4 + size:
            raise Damaged("a text that is cut")
        found.append(body[4 : 4 + size].decode())
        body = body[4 + size :]
    return found


def _hybrid(body: bytes, width: int, count: int) -> list[int]:
    """Runs, and groups of eight packed numbers."""
    found: list[int] = []
    reader = _Thrift(body, 0)
    while len(found) < count:
        head = reader.varint()
        size = (head >> 1) * width if head & 1 else (width + 7) // 8
        number = int.from_bytes(body[reader.at : reader.at + size], "little")
        reader.at += size
        if head & 1:
            found += [number >> width * at & (1 << width) - 1 for at in range(min(8 * (head >> 1), count))]
        else:
            found += [number] * min(head >> 1, count)
        if not head >> 1:
            raise Damaged("an empty run")
    return found[:count]


class _Thrift:
    """The compact protocol of Thrift."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def signed(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (3, 7):
            self.at += 1 if kind == 3 else 8
            return None
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 8:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind in (9, 10):
            head = self.data[self.at]
            self.at += 1
            count = self.varint() if head >> 4 == 15 else head >> 4
            return [self.value(head & 15) for _ in range(min(count, len(self.data)))]
        if kind == 12:
            return self.struct()
        raise Damaged("a type that Thrift does not have")

    def struct(self) -> dict[int, Any]:
        found, field = {}, 0
        while head := self.data[self.at]:
            self.at += 1
            field = field + (head >> 4) if head >> 4 else self.signed()
            found[field] = self.value(head & 15)
        self.at += 1
        return found
