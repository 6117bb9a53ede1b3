"""The files of a token store: a genome tokenised once into a memory-mapped file, 1 byte a base.

A store is a folder, `hg38.fa.gz.dnamamba` next to `hg38.fa.gz`, of two files that are only ever written together:

    tokens.bin    4096 bytes of header (magic, version, bases, fingerprint), then one uint8 token a base, contig after
                  contig: A 0, C 1, G 2, T 3, N 4, bit 7 set where the source is soft-masked
    index.json    the SHA-256 of all that follows it; contigs, N runs, checksums of 16 MiB blocks, the sources' sizes,
                  times and SHA-256

Format 1 had no SHA-256 in its index; its stores are read as they are. In both, all that the index says is checked
against itself. This module knows the two files; `store` knows where they lie and when they are built.
"""

import hashlib
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS
from dnamamba.errors import InputError
from dnamamba.outputs import whole_file

FORMAT_VERSION = 2
"""Of the index."""
CHECKSUM_SINCE = 2
"""The first format whose index holds its own checksum."""
TOKENS_VERSION = 1
"""Of tokens.bin, the same in all formats."""
MAGIC = b"DNAMAMBA"
HEADER_BYTES = 4096
"""A page, so that tokens begin on one."""
HEADER = struct.Struct("<8sIIQ32s")
"""magic, TOKENS_VERSION, 0, bases, fingerprint."""
BLOCK_BYTES = 16 << 20
"""Tokens under one CRC-32."""
TOKENS_FILE, INDEX_FILE = "tokens.bin", "index.json"


class Contig(NamedTuple):
    """One contig of a store. Counts are bases."""

    name: str
    """The header up to its first white space."""
    length: int
    offset: int
    """Where it begins among the store's tokens."""
    n_count: int
    """N, ambiguous ones included."""
    soft_masked: int
    ambiguous: int
    """IUPAC codes of the source that were read as N."""
    digest: str
    """BLAKE2b-128 of its tokens without the soft mask: equal contigs have equal digests."""
    description: str
    """The header after the name."""


_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{64})", ')
_SHA256 = re.compile("[0-9a-f]{64}")


def read_raw_index(path: Path) -> dict[str, Any]:
    """The index as it is, of whatever format version; `InputError` if there is none or it is damaged."""
    file = path / INDEX_FILE
    try:
        data = file.read_bytes()
        index = json.loads(data)
    except FileNotFoundError:
        raise InputError(f"{path}: not a token store (it has no {INDEX_FILE})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "not valid JSON") from None
    if (
        not isinstance(index, dict)
        or index.get("format") != "dnamamba token store"
        or not _is_int(index.get("version"))
    ):
        raise InputError(f"{file}: not the index of a token store")
    match = _CHECKSUM.match(data)
    if match is None and CHECKSUM_SINCE <= index["version"] <= FORMAT_VERSION:
        raise _damaged(path, "its checksum is missing")
    if match and hashlib.sha256(data[match.end() :]).hexdigest().encode() != match[1]:
        raise _damaged(path, "its checksum is another")
    return index


def is_store(folder: Path) -> bool:
    """Whether a folder is a token store, whole or not."""
    return (folder / INDEX_FILE).exists()


def is_readable(index: dict[str, Any]) -> bool:
    """Whether an index is of a format that `read_index` reads."""
    return 1 <= index["version"] <= FORMAT_VERSION


def read_index(path: Path) -> dict[str, Any]:
    """The index of a store, checked as far as it goes by itself; `InputError` otherwise."""
    index = read_raw_index(path)
    if not is_readable(index):
        raise InputError(
            f"{path}: a token store of format {index['version']}, this program reads 1 to {FORMAT_VERSION}; "
            "delete it and build it again from its source"
        )
    missing = {"fingerprint", "bases", "source", "contigs", "n_runs", "block_crc32", "empty_records"} - index.keys()
    if missing:
        raise _damaged(path, f"{min(missing)} is missing")
    try:
        wrong = _what_is_wrong(index)
    except (TypeError, KeyError, AttributeError, OverflowError):
        wrong = "values of other types"
    if wrong:
        raise _damaged(path, wrong)
    return index


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path / INDEX_FILE}: damaged ({what}); delete the store to have it rebuilt")


def _is_int(value: object) -> bool:
    return type(value) is int


def _what_is_wrong(index: dict[str, Any]) -> str:
    """What in an index does not fit the rest; "" if all does. Raises `TypeError` and the like for other types."""
    bases, contigs = index["bases"], index["contigs"]
    if not (_is_int(bases) and 0 < bases < 1 << 60 and _SHA256.fullmatch(index["fingerprint"])):
        return "bases or fingerprint"
    columns = [contigs[field] for field in Contig._fields]
    lists = [*columns, *(index[name] for name in ("source", "empty_records", "n_runs", "block_crc32"))]
    if not all(type(values) is list for values in lists):
        return "values of other types"
    kinds = {"path": str, "size": int, "mtime_ns": int, "sha256": str}
    if not index["source"] or not all(
        type(file[key]) is kind for file in index["source"] for key, kind in kinds.items()
    ):
        return "source"
    if not all(isinstance(name, str) for name in index["empty_records"]):
        return "empty_records"
    if len({len(column) for column in columns}) != 1:
        return "contigs"
    rows = [Contig._make(row) for row in zip(*columns, strict=True)]
    offset = 0
    for row in rows:
        numbers = row.length, row.offset, row.n_count, row.soft_masked, row.ambiguous
        if not all(map(_is_int, numbers)) or not all(isinstance(text, str) for text in (row.name, row.description)):
            return "contigs"
        counts = 0 <= row.ambiguous <= row.n_count <= row.length and 0 <= row.soft_masked <= row.length
        if row.offset != offset or row.length < 1 or not counts:
            return f"contig {row.name!r}"
        offset += row.length
    if offset != bases or len({row.name for row in rows}) != len(rows):
        return "contigs"
    crcs = index["block_crc32"]
    if len(crcs) != -(-bases // BLOCK_BYTES) or not all(_is_int(crc) and 0 <= crc < 1 << 32 for crc in crcs):
        return "block_crc32"
    if fingerprint_of(rows, crcs).hexdigest() != index["fingerprint"]:
        return "the fingerprint is not that of its contigs and blocks"
    return "" if _fit(rows, index["n_runs"], bases) else "n_runs"


def _fit(contigs: list[Contig], n_runs: list[int], bases: int) -> bool:
    """Whether the runs of N are some: ascending, within the contigs, and as many N as these count."""
    if len(n_runs) % 2 or not all(_is_int(position) and 0 <= position <= bases for position in n_runs):
        return False
    starts, ends = np.array(n_runs, np.int64).reshape(-1, 2).T
    offsets = np.array([contig.offset for contig in contigs], np.int64)
    of_start, of_end = (np.searchsorted(offsets, at, side="right") - 1 for at in (starts, ends - 1))
    if (starts >= ends).any() or (starts[1:] < ends[:-1]).any() or (of_start != of_end).any():
        return False
    counts = np.zeros(len(contigs), np.int64)
    np.add.at(counts, of_start, ends - starts)
    return counts.tolist() == [contig.n_count for contig in contigs]


def fingerprint_of(contigs: list[Contig], block_crcs: list[int]) -> Any:
    """SHA-256 of names, sequences and masks. The same in all formats: the 1 stands for the first one's."""
    content = [1, [(c.name, c.length, c.digest) for c in contigs], block_crcs]
    return hashlib.sha256(json.dumps(content).encode())


class TokenSummary:
    """What an index says of tokens, counted contig by contig."""

    def __init__(self) -> None:
        self.contigs: list[Contig] = []
        self.empty: list[str] = []
        self.runs: list[list[int]] = []
        self.block_crcs: list[int] = []
        self.bases = 0
        self._offset = self._crc = 0  # bases before the contig, CRC of the unfinished block
        self._name, self._description = "", ""
        self._counts = [0, 0, 0]
        self._digest = hashlib.blake2b(digest_size=16)

    def begin(self, name: str, description: str) -> None:
        """Begins a contig; the one before it is complete."""
        self._end_contig()
        self._name, self._description = name, description

    def append(self, tokens: np.ndarray, ambiguous: int) -> None:
        """More tokens (bases,) uint8 of the contig, of which `ambiguous` were IUPAC codes."""
        soft_masked = int(np.count_nonzero(tokens & SOFT_MASK_BIT))
        bare = tokens & TOKEN_BITS if soft_masked else tokens
        self._digest.update(bare.data)
        is_n = bare >= BASES
        n_count = int(np.count_nonzero(is_n))
        if n_count:
            self._append_runs(is_n)
        self._counts = [a + b for a, b in zip(self._counts, (n_count, soft_masked, ambiguous), strict=True)]
        self._append_crcs(tokens.data)

    def end(self) -> None:
        """All contigs are complete."""
        self._end_contig()
        if self.bases % BLOCK_BYTES:
            self.block_crcs.append(self._crc)

    def _append_runs(self, is_n: np.ndarray) -> None:
        edges = np.flatnonzero(np.diff(is_n.view(np.int8), prepend=0, append=0)) + self.bases
        runs = edges.reshape(-1, 2).tolist()
        if self.runs and runs[0][0] == self.runs[-1][1] and runs[0][0] > self._offset:
            self.runs[-1][1] = runs.pop(0)[1]
        self.runs += runs

    def _append_crcs(self, data: memoryview) -> None:
        while data:
            part = data[: BLOCK_BYTES - self.bases % BLOCK_BYTES]
            self._crc = zlib.crc32(part, self._crc)
            self.bases += len(part)
            data = data[len(part) :]
            if self.bases % BLOCK_BYTES == 0:
                self.block_crcs.append(self._crc)
                self._crc = 0

    def _end_contig(self) -> None:
        if not self._name:
            return
        length = self.bases - self._offset
        if length:
            digest = self._digest.hexdigest()
            self.contigs.append(
                Contig._make((self._name, length, self._offset, *self._counts, digest, self._description))
            )
        else:
            self.empty.append(self._name)
        self._offset = self.bases
        self._name, self._counts, self._digest = "", [0, 0, 0], hashlib.blake2b(digest_size=16)


class TokenWriter:
    """Writes the two files of a store into an existing empty folder. Nothing but `finish` makes them valid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / TOKENS_FILE).open("wb", buffering=1 << 20)
        self._file.write(bytes(HEADER_BYTES))
        self._summary = TokenSummary()

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def begin(self, name: str, description: str) -> None:
        """Begins a contig; the one before it is complete."""
        self._summary.begin(name, description)

    def append(self, tokens: np.ndarray, ambiguous: int) -> None:
        """More tokens (bases,) uint8 of the contig, of which `ambiguous` were IUPAC codes."""
        self._summary.append(tokens, ambiguous)
        self._file.write(tokens.data)

    def finish(self, source: list[dict[str, Any]]) -> None:
        """Completes header and index and brings both to the disk. `InputError` if there was not a single base."""
        found = self._summary
        found.end()
        if not found.contigs:
            raise InputError(f"{source[0]['path']}: no sequence: {len(found.empty)} headers without a base")
        fingerprint = fingerprint_of(found.contigs, found.block_crcs)
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, TOKENS_VERSION, 0, found.bases, fingerprint.digest()))
        self._file.flush()
        os.fsync(self._file.fileno())
        index = {
            "format": "dnamamba token store",
            "version": FORMAT_VERSION,
            "bases": found.bases,
            "fingerprint": fingerprint.hexdigest(),
            "source": source,
            "contigs": {field: [getattr(c, field) for c in found.contigs] for field in Contig._fields},
            "empty_records": found.empty,
            "n_runs": [position for run in found.runs for position in run],
            "block_crc32": found.block_crcs,
        }
        write_index(self.folder, index)


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes index.json whole or not at all, with its checksum."""
    unsigned = {key: value for key, value in index.items() if key != "checksum"}
    body = json.dumps(unsigned, ensure_ascii=False).encode()[1:]  # behind its brace
    with whole_file(folder / INDEX_FILE, overwrite=True) as partial:
        partial.write_bytes(b'{"checksum": "%s", ' % hashlib.sha256(body).hexdigest().encode() + body)
