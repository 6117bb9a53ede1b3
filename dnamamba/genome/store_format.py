"""The files of a token store: a genome tokenised once into a memory-mapped file, 1 byte a base.

A store is a folder, `hg38.fa.gz.dnamamba` next to `hg38.fa.gz`, of two files that are only ever written together:

    tokens.bin    4096 bytes of header (magic, version, bases, fingerprint), then one uint8 token a base, contig after
                  contig: A 0, C 1, G 2, T 3, N 4, bit 7 set where the source is soft-masked
    index.json    contigs, N runs, checksums of 16 MiB blocks, the sources' sizes, times and SHA-256

This module knows the two files; `store` knows where they lie and when they are built.
"""

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS
from dnamamba.errors import InputError

FORMAT_VERSION = 1
MAGIC = b"DNAMAMBA"
HEADER_BYTES = 4096
"""A page, so that tokens begin on one."""
HEADER = struct.Struct("<8sIIQ32s")
"""magic, format version, 0, bases, fingerprint."""
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


def read_json(path: Path) -> dict[str, Any]:
    """The index as it is, of whatever format version; `InputError` if there is none or it is damaged."""
    file = path / INDEX_FILE
    try:
        index = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: not a token store (it has no {INDEX_FILE})") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{file}: damaged (not valid JSON); delete the store to have it rebuilt") from None
    if not isinstance(index, dict) or index.get("format") != "dnamamba token store" or "version" not in index:
        raise InputError(f"{file}: not the index of a token store")
    return index


def read_index(path: Path) -> dict[str, Any]:
    """The index of a store of this format version; `InputError` otherwise."""
    index = read_json(path)
    if index["version"] != FORMAT_VERSION:
        raise InputError(
            f"{path}: a token store of format {index['version']}, this program reads {FORMAT_VERSION}; "
            "delete it and build it again from its source"
        )
    missing = {"fingerprint", "bases", "source", "contigs", "n_runs", "block_crc32", "empty_records"} - index.keys()
    if missing:
        raise InputError(
            f"{path / INDEX_FILE}: damaged ({min(missing)} is missing); delete the store to have it rebuilt"
        )
    return index


class TokenWriter:
    """Writes the two files of a store into an existing empty folder. Nothing but `finish` makes them valid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / TOKENS_FILE).open("wb", buffering=1 << 20)
        self._file.write(bytes(HEADER_BYTES))
        self._contigs: list[Contig] = []
        self._empty: list[str] = []
        self._runs: list[list[int]] = []
        self._crcs: list[int] = []
        self._bases = self._offset = self._crc = 0  # all bases, those before the contig, CRC of the unfinished block
        self._name, self._description = "", ""
        self._counts = [0, 0, 0]
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
        self._write(tokens.data)

    def _append_runs(self, is_n: np.ndarray) -> None:
        edges = np.flatnonzero(np.diff(is_n.view(np.int8), prepend=0, append=0)) + self._bases
        runs = edges.reshape(-1, 2).tolist()
        if self._runs and runs[0][0] == self._runs[-1][1] and runs[0][0] > self._offset:
            self._runs[-1][1] = runs.pop(0)[1]
        self._runs += runs

    def _write(self, data: memoryview) -> None:
        while data:
            part = data[: BLOCK_BYTES - self._bases % BLOCK_BYTES]
            self._crc = zlib.crc32(part, self._crc)
            self._file.write(part)
            self._bases += len(part)
            data = data[len(part) :]
            if self._bases % BLOCK_BYTES == 0:
                self._crcs.append(self._crc)
                self._crc = 0

    def _end_contig(self) -> None:
        if not self._name:
            return
        length = self._bases - self._offset
        if length:
            digest = self._digest.hexdigest()
            self._contigs.append(
                Contig._make((self._name, length, self._offset, *self._counts, digest, self._description))
            )
        else:
            self._empty.append(self._name)
        self._offset = self._bases
        self._name, self._counts, self._digest = "", [0, 0, 0], hashlib.blake2b(digest_size=16)

    def finish(self, source: list[dict[str, Any]]) -> None:
        """Completes header and index and brings both to the disk. `InputError` if there was not a single base."""
        self._end_contig()
        if not self._contigs:
            raise InputError(f"{source[0]['path']}: no sequence: {len(self._empty)} headers without a base")
        if self._bases % BLOCK_BYTES:
            self._crcs.append(self._crc)
        content = [FORMAT_VERSION, [(c.name, c.length, c.digest) for c in self._contigs], self._crcs]
        fingerprint = hashlib.sha256(json.dumps(content).encode())
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, FORMAT_VERSION, 0, self._bases, fingerprint.digest()))
        self._file.flush()
        os.fsync(self._file.fileno())
        index = {
            "format": "dnamamba token store",
            "version": FORMAT_VERSION,
            "bases": self._bases,
            "fingerprint": fingerprint.hexdigest(),
            "source": source,
            "contigs": {field: [getattr(c, field) for c in self._contigs] for field in Contig._fields},
            "empty_records": self._empty,
            "n_runs": [position for run in self._runs for position in run],
            "block_crc32": self._crcs,
        }
        write_index(self.folder, index)


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Writes index.json whole or not at all."""
    temporary = folder / f"{INDEX_FILE}.tmp-{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(index, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / INDEX_FILE)
    finally:
        temporary.unlink(missing_ok=True)
