"""Reads the values of a region from a bigWig: what `dnamamba likelihood` writes, and tracks of others (conservation).

The format is that of `dnamamba.pictures.bigwig`, in either byte order. Only the tree nodes and blocks of the region are
read, so that a track of a whole genome costs no more than one of the region.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dnamamba.errors import InputError
from dnamamba.pictures.bigwig import CHROM_TREE_MAGIC, INDEX_MAGIC, MAGIC

_HEADER = "IHHQQQHHQQIQ"
_DEEPEST = 32
"""Levels of a tree: with two children a node, 2^32 blocks; more is a damaged file"""
_LARGEST_BLOCK = 1 << 26
"""Bytes of a block, uncompressed: the most that 65,535 items take is 786 kB"""
_ITEMS = {
    1: [("start", "u4"), ("end", "u4"), ("value", "f4")],
    2: [("start", "u4"), ("value", "f4")],
    3: [("value", "f4")],
}
"""Section type -> its items: bedGraph, variable step, fixed step"""


class BigWig:
    """An open bigWig. Raises `InputError` for a file that is none, or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            self._size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        self.contigs: dict[str, tuple[int, int]]
        """Name -> number in the file and length"""
        try:
            self._read_header()
        except InputError:
            self._file.close()
            raise

    def __enter__(self) -> "BigWig":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def values(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) fp32: the values of [start, end), 0-based half-open; NaN where the file has none."""
        number, _ = self.contigs[contig]
        self._nodes = 0
        out = np.full(end - start, np.nan, np.float32)
        if self._unpack(self._index, "I")[0] != INDEX_MAGIC:
            raise self._damaged("its index is missing")
        for offset, size in self._blocks(self._index + 48, number, start, end, 0):
            self._fill(out, self._block(offset, size), number, start)
        return out

    def _read_header(self) -> None:
        start = self._file.read(4)
        self._nodes = 0
        self._order = ">" if start == struct.pack(">I", MAGIC) else "<"
        if start != struct.pack(f"{self._order}I", MAGIC):
            raise InputError(f"{self.path}: is no bigWig; `dnamamba likelihood --format bigwig` writes them (.bw)")
        fields = self._unpack(0, _HEADER)
        tree, self._index, self._compressed = fields[3], fields[5], fields[10] > 0
        self.contigs = dict(self._contigs(tree))

    def _contigs(self, offset: int) -> Iterator[tuple[str, tuple[int, int]]]:
        magic, _, key, value, _, _ = self._unpack(offset, "IIIIQQ")
        if magic != CHROM_TREE_MAGIC or value != 8 or not 0 < key <= 4096:
            raise self._damaged("its list of contigs is missing")
        yield from self._contigs_below(offset + 32, key, 0)

    def _contigs_below(self, offset: int, key: int, depth: int) -> Iterator[tuple[str, tuple[int, int]]]:
        is_leaf, count = self._node(offset, depth)
        form = f"{key}sII" if is_leaf else f"{key}sQ"
        for name, *rest in self._items(offset, form, count):
            if is_leaf:
                yield name.rstrip(b"\0").decode("utf-8", "replace"), (rest[0], rest[1])
            else:
                yield from self._contigs_below(rest[0], key, depth + 1)

    def _blocks(self, offset: int, contig: int, start: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
        """Offset and size of the blocks that reach into [start, end) of a contig."""
        is_leaf, count = self._node(offset, depth)
        for low_contig, low, high_contig, high, *rest in self._items(offset, "IIIIQQ" if is_leaf else "IIIIQ", count):
            if (low_contig, low) < (contig, end) and (high_contig, high) > (contig, start):
                if is_leaf:
                    yield rest[0], rest[1]
                else:
                    yield from self._blocks(rest[0], contig, start, end, depth + 1)

    def _fill(self, out: np.ndarray, block: bytes, contig: int, start: int) -> None:
        head = struct.Struct(self._order + "IIIIIBBH")
        if len(block) < head.size:
            raise self._damaged("a block is cut off")
        number, first, _, step, span, kind, _, count = head.unpack_from(block)
        if number != contig:
            return
        if kind not in _ITEMS:
            raise self._damaged(f"a block is of the unknown kind {kind}")
        form = np.dtype([(name, self._order + code) for name, code in _ITEMS[kind]])
        if len(block) < head.size + form.itemsize * count:
            raise self._damaged("a block is cut off")
        items = np.frombuffer(block, form, count, head.size)
        begins = first + step * np.arange(count, dtype=np.int64) if kind == 3 else items["start"].astype(np.int64)
        lengths = items["end"].astype(np.int64) - begins if kind == 1 else np.full(count, span, np.int64)
        ends = np.minimum(begins + lengths, start + out.size)
        begins = np.maximum(begins, start)
        inside = ends > begins
        if int((ends - begins)[inside].sum()) > out.size:
            raise self._damaged("values of a block overlap")
        begins, lengths, values = begins[inside], (ends - begins)[inside], items["value"][inside]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        out[np.repeat(begins - start, lengths) + within] = np.repeat(values, lengths)

    def _block(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if not self._compressed:
            return data
        packed = zlib.decompressobj()
        try:
            block = packed.decompress(data, _LARGEST_BLOCK)
        except zlib.error:
            block = b""
        if not packed.eof:  # else its checksum was right
            raise self._damaged("a block cannot be decompressed")
        return block

    def _node(self, offset: int, depth: int) -> tuple[bool, int]:
        self._nodes += 1
        if depth > _DEEPEST or 4 * self._nodes > self._size:  # a node has 4 bytes at least
            raise self._damaged("its index has no end")
        is_leaf, _, count = self._unpack(offset, "BBH")
        return bool(is_leaf), count

    def _items(self, offset: int, form: str, count: int) -> list[tuple[Any, ...]]:
        each = struct.Struct(self._order + form)
        return list(each.iter_unpack(self._read(offset + 4, each.size * count)))

    def _unpack(self, offset: int, form: str) -> tuple[Any, ...]:
        whole = struct.Struct(self._order + form)
        return whole.unpack(self._read(offset, whole.size))

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise self._damaged("it is cut off")
        self._file.seek(offset)
        return self._file.read(size)

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.path}: is a damaged bigWig: {why}; make or fetch it again")
