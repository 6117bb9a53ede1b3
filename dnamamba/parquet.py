"""What a Parquet file says of its own pages and values, compared with them: polars reads damaged pages as values.

Pages have sizes, numbers of values and perhaps checksums; columns have a number of nulls, a least and a greatest value
(apache/parquet-format). Most writers leave checksums out, and a change between the least and the greatest value of an
uncompressed page is then beyond any reader.
"""

import io
import struct
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import polars

MAGIC = b"PAR1"

_DEEPEST = 32
"""Structures of Thrift within each other: Parquet's have less than ten"""
_LONGEST = 1 << 26
"""Bytes of a text in a header"""
_NUMBERS = {
    **dict.fromkeys(("Int8", "Int16", "Int32", "UInt8", "UInt16"), "<i"),
    **{"UInt32": "<I", "Int64": "<q", "UInt64": "<Q", "Float32": "<f", "Float64": "<d", "Boolean": "<?"},
}
"""Types of polars, and how statistics hold their values; those of other types are not compared."""


class Damage(Exception):
    """Raised where a file contradicts itself; says in which way."""


class ColumnChunk(NamedTuple):
    """A column of a row group."""

    path: tuple[str, ...]
    """Of the column in the schema: one name, unless it is nested"""
    statistics: dict[int, Any]


class RowGroup(NamedTuple):
    rows: int
    chunks: list[ColumnChunk]


def read_groups(file: IO[bytes]) -> list[RowGroup]:
    """The row groups by the footer of an open file, whose pages are those that it says. Raises `Damage`."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 12:
        raise Damage("the end of the file is missing")
    file.seek(size - 8 - length)
    footer = _Thrift(io.BytesIO(file.read(length))).structure()
    groups = []
    try:
        for group in footer[4]:
            for column in group[1]:
                _check_pages(file, column[3], size - 8 - length)
            chunks = [ColumnChunk(tuple(map(bytes.decode, c[3][3])), c[3].get(12, {})) for c in group[1]]
            groups.append(RowGroup(group[3], chunks))
    except (LookupError, TypeError, AttributeError, ValueError):  # ValueError: no UTF-8, or an offset below 0
        raise Damage("its footer is none of Parquet") from None
    return groups


def check_values(table: "polars.DataFrame", groups: list[RowGroup]) -> None:
    """Raises `Damage` for a column of `table`, read from the file of `groups`, that is not as its statistics say."""
    row = 0
    for group in groups:
        part = table[row : row + group.rows]
        row += group.rows
        for chunk in group.chunks:
            if len(chunk.path) == 1:
                _check_column(part.get_column(chunk.path[0]), chunk.statistics)
    if row != len(table):
        raise Damage(f"{len(table)} rows, where its footer has {row}")


def _check_pages(file: IO[bytes], chunk: dict[int, Any], last: int) -> None:
    # The dictionary's offset, or else the first page's; neither where there are no pages.
    at = min((offset for offset in (chunk.get(11), chunk[9]) if offset), default=0)
    end, values = at + chunk[7], 0
    while at < end:
        file.seek(at)
        header = _Thrift(file).structure()
        size, body = header[3], file.tell()
        at = body + size
        if not body <= at <= min(end, last):
            raise Damage(f"a page at byte {body:,} ends beyond its column")
        if 4 in header and zlib.crc32(file.read(size)) != header[4] & 0xFFFFFFFF:
            raise Damage(f"the checksum of the page at byte {body:,} is wrong")
        values += header.get(5, header.get(8, {1: 0}))[1]
    if values != chunk[5]:
        raise Damage(f"{values} values in a column of {chunk[5]}")


def _check_column(column: "polars.Series", statistics: dict[int, Any]) -> None:
    if statistics.get(3, column.null_count()) != column.null_count():
        raise Damage(f"column {column.name!r} has {column.null_count()} nulls, by its statistics {statistics[3]}")
    for key, value in ((6, column.min()), (5, column.max())):
        said = _decoded(statistics.get(key), str(column.dtype))
        if said is None or value is None or said != said or (column.dtype.is_float() and column.is_nan().any()):
            continue
        if value != said and not (isinstance(value, str) and _is_cut(value, said, key == 6)):
            name = "least" if key == 6 else "greatest"
            raise Damage(f"the {name} value of column {column.name!r} is {value!r}, by its statistics {said!r}")


def _decoded(value: bytes | None, kind: str) -> Any:
    if value is None or kind not in {"String", *_NUMBERS}:
        return None
    try:
        return value.decode() if kind == "String" else struct.unpack(_NUMBERS[kind], value)[0]
    except (struct.error, UnicodeDecodeError, AttributeError):
        raise Damage("statistics of another type than their column") from None


def _is_cut(value: str, bound: str, least: bool) -> bool:
    """Whether a text is one that the writer of the statistics cut to a shorter bound."""
    return value.startswith(bound) if least else value < bound and len(value.encode()) > len(bound.encode())


class _Thrift:
    """Structures of Thrift's compact protocol, as their fields by number."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def structure(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise Damage("structures within structures")
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.structure(depth + 1)
        raise Damage("a value of no type of Thrift's")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, size: int) -> bytes:
        found = self._file.read(min(size, _LONGEST))
        if len(found) != size:
            raise Damage("it ends within a header")
        return found

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Damage("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
