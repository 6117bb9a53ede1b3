"""The token store of a genome: opened in milliseconds, built from its FASTA when there is none or the source changed.

The store (its files: `store_format`) lies next to the first genome file, in the user's cache folder where that is
read-only, or where the user says; that of a pipe lasts as long as the process. It is written under a temporary name
and renamed when complete, by one builder at a time, so that a store that exists is a whole one. Index, header and sizes
are checked at opening, the blocks by `verify`.
"""

import atexit
import contextlib
import errno
import functools
import glob
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.contig_names import ContigNames
from dnamamba.genome.progress import OnProgress
from dnamamba.genome.reader import HashingFile, SourceFile, read_genome
from dnamamba.genome.store_format import (
    BLOCK_BYTES,
    HEADER,
    HEADER_BYTES,
    INDEX_FILE,
    MAGIC,
    TOKENS_FILE,
    TOKENS_VERSION,
    Contig,
    TokenSummary,
    TokenWriter,
    is_readable,
    is_store,
    read_index,
    read_raw_index,
    write_index,
)
from dnamamba.text_files import is_pipe

__all__ = ["Contig", "TokenStore", "open_genome"]


class TokenStore:
    """A genome as tokens. Opening reads the index alone; the tokens are mapped on first use, in each process anew.

    Pickling sends the path, so no handle is shared with another process. Use `open_genome` to get one from a FASTA.
    """

    def __init__(self, path: Path) -> None:
        """Opens the store at `path`; `InputError` if it is none, damaged, or of another format version."""
        self.path = path
        index = read_index(path)
        self.fingerprint: str = index["fingerprint"]
        """SHA-256 (64 hexadecimal digits) of names, sequences and masks: the key of whatever is derived from them."""
        self.bases: int = index["bases"]
        self.source: list[dict[str, Any]] = index["source"]
        """The files it was built from: path, size, mtime_ns and sha256 of each."""
        self.empty_records: list[str] = index["empty_records"]
        """Records of the source without a single base: no contigs."""
        columns = index["contigs"]
        self.contigs: tuple[Contig, ...] = tuple(
            map(Contig._make, zip(*(columns[f] for f in Contig._fields), strict=True))
        )
        self._block_crcs: list[int] = index["block_crc32"]
        self.all_n_runs = np.asarray(index["n_runs"], np.int64).reshape(-1, 2)
        """(k, 2) int64: the runs of N of all contigs, [start, end) among `tokens`, ascending."""
        self._n_cumulative = np.concatenate(([0], np.cumsum(self.all_n_runs[:, 1] - self.all_n_runs[:, 0])))
        self._by_name = {contig.name: contig for contig in self.contigs}
        self.names = ContigNames(self._by_name)
        """Which contig is meant by a name of another style."""
        self._tokens: np.ndarray | None = None
        self._process = -1
        self._check_file()

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path,)

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r}: {len(self.contigs)} contigs, {self.bases} bases)"

    @property
    def tokens(self) -> np.ndarray:
        """(bases,) uint8, read-only: all contigs one after another, mapped by the process that reads."""
        if self._tokens is None or self._process != os.getpid():
            self._check_file()
            file = self.path / TOKENS_FILE
            mapped = np.memmap(file, np.uint8, "r", HEADER_BYTES, self.bases) if self.bases else np.empty(0, np.uint8)
            self._tokens, self._process = np.asarray(mapped), os.getpid()
        return self._tokens

    def contig(self, name: str) -> Contig:
        """The contig of exactly that name; `InputError` if there is none. Names in files go through `names.find`."""
        try:
            return self._by_name[name]
        except KeyError:
            raise InputError(f"{self.path}: no contig {name!r}{self.names.suggestion()}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def read(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) uint8 view of a contig's tokens, 0-based half-open; `InputError` outside of the contig."""
        record = self.contig(contig)
        if not 0 <= start <= end <= record.length:
            raise InputError(f"{contig}:{start}-{end} lies outside of the contig, which has {record.length} bases")
        return self.tokens[record.offset + start : record.offset + end]

    def read_sparse(self, contig: str, spans: np.ndarray) -> np.ndarray:
        """(length,) uint8 view of a contig: all of it, whatever the `spans`."""
        return self.read(contig, 0, self.contig(contig).length)

    def tokens_at(self, contig: np.ndarray, position: np.ndarray) -> np.ndarray:
        """(k,) uint8 tokens of single bases: `contig` (k,) indices into `contigs`, `position` (k,) int64 in them."""
        offsets = np.array([record.offset for record in self.contigs], np.int64)
        return self.tokens[offsets[contig] + position]

    def n_runs(self, contig: str) -> np.ndarray:
        """(k, 2) int64: the contig's maximal runs of N, 0-based half-open, ascending."""
        record = self.contig(contig)
        first, last = np.searchsorted(self.all_n_runs[:, 0], (record.offset, record.offset + record.length))
        return self.all_n_runs[first:last] - record.offset

    def n_count(self, contig: str, start: int, end: int) -> int:
        """How many of a contig's bases [start, end), 0-based half-open, are N."""
        before = self.n_before(np.array([start, end]) + self.contig(contig).offset)
        return int(before[1] - before[0])

    def n_before(self, positions: np.ndarray) -> np.ndarray:
        """N before each position of `tokens` (any shape, int64): a window has n_before(end) − n_before(start)."""
        starts, ends = self.all_n_runs[:, 0], self.all_n_runs[:, 1]
        run = np.searchsorted(starts, positions, side="right")
        inside = ends[run - 1] - positions if len(ends) else np.zeros_like(positions)
        return self._n_cumulative[run] - np.where(run > 0, np.maximum(inside, 0), 0)

    def verify(self) -> None:
        """Reads all tokens against the checksums of their blocks and all that the index counts of them.

        Raises `InputError` that names the contig of the first damaged block, or what of the index is another.
        """
        found = TokenSummary()
        for contig in self.contigs:
            found.begin(contig.name, contig.description)
            for start in range(0, contig.length, BLOCK_BYTES):
                found.append(self.read(contig.name, start, min(start + BLOCK_BYTES, contig.length)), 0)
        found.end()
        for block, (crc, stored) in enumerate(zip(found.block_crcs, self._block_crcs, strict=True)):
            if crc != stored:
                hit = next(c.name for c in self.contigs if c.offset + c.length > block * BLOCK_BYTES)
                raise InputError(
                    f"{self.path / TOKENS_FILE}: block {block} is damaged (at contig {hit}); "
                    "delete the store to have it rebuilt"
                )
        for contig, now in zip(self.contigs, found.contigs, strict=True):
            if contig != now._replace(ambiguous=contig.ambiguous):
                raise InputError(
                    f"{self.path / INDEX_FILE}: damaged (what it says of contig {contig.name} is not what its tokens "
                    "are); delete the store to have it rebuilt"
                )
        if found.runs != self.all_n_runs.tolist():
            raise InputError(f"{self.path / INDEX_FILE}: damaged (n_runs); delete the store to have it rebuilt")

    def _check_file(self) -> None:
        file = self.path / TOKENS_FILE
        try:
            with file.open("rb") as handle:
                header = handle.read(HEADER.size)
                size = os.fstat(handle.fileno()).st_size
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}; delete the store to have it rebuilt") from None
        expected = HEADER.pack(MAGIC, TOKENS_VERSION, 0, self.bases, bytes.fromhex(self.fingerprint))
        if header != expected or size != HEADER_BYTES + self.bases:
            raise InputError(
                f"{file}: damaged, or replaced while in use (header or size, {size} bytes, do not fit the index); "
                "start again, or delete the store to have it rebuilt"
            )


def open_genome(
    paths: Sequence[Path] | Path, store: Path | None = None, verify: bool = False, progress: OnProgress | None = None
) -> TokenStore:
    """The token store of one or several genome files, or the one given by its own path. The files may be gone where
    their store is there: a line on stderr says so.

    Built, and built again when a source has changed: its size or time differ, and then its SHA-256. `store` is where it
    lies; without it the first of: next to the first file, the user's cache folder. Raises `InputError` for unusable
    files, duplicate contigs (over all files), a damaged store, and where a store cannot be written.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise InputError("no genome file was given")
    given_stores = [path for path in files if is_store(path)]
    if given_stores:
        if len(files) > 1 or store is not None:
            raise InputError(
                f"{given_stores[0]}: a token store stands alone: no other genome files, no --store with it"
            )
        opened = TokenStore(files[0])
    else:
        opened = _open_or_build(files, store, progress)
    if verify:
        opened.verify()
    return opened


def current_store(files: Sequence[Path], store: Path | None = None) -> TokenStore | None:
    """The token store that `open_genome` would open, None where it would have to build one or to complain."""
    paths = [Path(path) for path in files]
    if paths and all(path.is_file() for path in paths):
        folders = [store] if store is not None else [_store_name(paths), cache_name(paths)]
        return next((opened for folder in folders if (opened := _open_current(folder, paths)) is not None), None)
    return open_genome(paths, store) if len(paths) == 1 and is_store(paths[0]) else None


def _open_or_build(files: list[Path], explicit: Path | None, progress: OnProgress | None) -> TokenStore:
    for path in files:
        if path.is_dir():
            raise InputError(f"{path}: a folder that is no token store; give a FASTA or GenBank file")
    gone = next((path for path in files if not path.exists()), None)
    if explicit is not None:
        folders = [explicit]
    elif any(map(is_pipe, files)):
        folders = [_temporary_folder() / cache_name(files).name]
    else:
        folders = [_store_name(files), cache_name(files)]
    for folder in folders:
        if (opened := _open_current(folder, files)) is not None:
            if gone is not None:
                if explicit is not None:
                    _check_same_genome(folder, files)
                print(f"{gone}: no such file; using its token store {folder}", file=sys.stderr)
            return opened
    if gone is not None:
        raise InputError(f"{gone}: no such file; give a FASTA (plain, gzip, bgzip) or GenBank file")
    folder = next((folder for folder in folders if is_writable(folder.parent)), folders[0])
    return _build(folder, files, explicit is not None, progress)


def _store_name(files: list[Path]) -> Path:
    """Next to the first file: FILE.dnamamba, or for several files FILE.and-K-more-HASH.dnamamba."""
    if len(files) == 1:
        return files[0].with_name(f"{files[0].name}.dnamamba")
    names = "\0".join(str(path.resolve()) for path in files)
    key = hashlib.sha256(names.encode()).hexdigest()[:8]
    return files[0].with_name(f"{files[0].name}.and-{len(files) - 1}-more-{key}.dnamamba")


def user_cache() -> Path:
    """The user's cache folder of dnamamba; for a user without a home, as in some containers, one of this process."""
    from platformdirs import user_cache_path

    with contextlib.suppress(RuntimeError):  # from recent versions; others leave `~` as it is
        if (folder := user_cache_path("dnamamba")).is_absolute():
            return folder
    return _temporary_folder()


def cache_name(files: list[Path]) -> Path:
    key = hashlib.sha256("\0".join(str(path.resolve()) for path in files).encode()).hexdigest()[:16]
    return user_cache() / "genomes" / f"{files[0].name}-{key}.dnamamba"


@functools.cache
def _temporary_folder() -> Path:
    """Of this process: for the stores of pipes, and for the cache of a user without a home."""
    folder = tempfile.mkdtemp(prefix="dnamamba-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written or created. One without any write permission counts as read-only for root too."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    anyone = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and bool(folder.stat().st_mode & anyone)


def _open_current(folder: Path, files: list[Path]) -> TokenStore | None:
    """The store at `folder` if it is the one of these files as they are now, but for those that are gone; None if it
    has to be built."""
    if not is_store(folder) or not is_readable(read_raw_index(folder)):
        return None
    store = TokenStore(folder)
    if len(store.source) != len(files):
        return None
    renewed = []
    for recorded, path in zip(store.source, files, strict=True):
        if not path.exists():
            renewed.append(recorded)
            continue
        now = path.stat()
        has_time = not is_pipe(path)  # nor has a pipe a size
        if has_time and now.st_size != recorded["size"]:
            return None
        if not has_time or now.st_mtime_ns != recorded["mtime_ns"]:
            with HashingFile(path) as file:
                if file.hash_to_end() != recorded["sha256"]:
                    return None
        renewed.append({**recorded, "mtime_ns": now.st_mtime_ns if has_time else 0})
    if renewed != store.source:
        with contextlib.suppress(OSError):  # where the store is read-only, the next opening hashes again
            write_index(folder, {**read_index(folder), "source": renewed})
    return store


def _build(folder: Path, files: list[Path], is_explicit: bool, progress: OnProgress | None) -> TokenStore:
    from filelock import FileLock

    if folder.exists() and not is_store(folder):
        raise InputError(f"{folder}: exists and is no token store; move it away, or give another --store")
    lock = folder.with_name(f"{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                # Whoever held the lock before may have built it.
                return _open_current(folder, files) or _build_locked(folder, files, is_explicit, progress)
            finally:
                lock.unlink(missing_ok=True)  # under the lock: whoever waits for it sees that its file is gone
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(path.stat().st_size for path in files)
            raise InputError(
                f"{folder}: the disk is full; a token store takes 1 byte a base (the source has {size / 1e6:.0f} MB, "
                "about 4 times as many bases if compressed); free space, or give another --store"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise InputError(f"{folder}: cannot be written: {error.strerror}; give another --store") from None
        raise


def _build_locked(folder: Path, files: list[Path], is_explicit: bool, progress: OnProgress | None) -> TokenStore:
    for left_over in folder.parent.glob(f"{glob.escape(folder.name)}.tmp-*"):  # of a builder that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    if is_explicit and folder.exists():
        _check_same_genome(folder, files)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    complete = temporary / "store"
    try:
        complete.mkdir()
        with TokenWriter(complete) as writer:
            sources = _copy(files, writer, progress)
            writer.finish([source._asdict() for source in sources])
        if folder.exists():
            folder.rename(temporary / "replaced")  # readers keep what they have mapped
        complete.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return TokenStore(folder)


def _check_same_genome(folder: Path, files: list[Path]) -> None:
    """A store given by --store is replaced when its source changed, never by another genome's."""
    recorded = [Path(source["path"]).name for source in read_index(folder)["source"]]
    if recorded != [path.name for path in files]:
        raise InputError(f"{folder}: the token store of another genome ({', '.join(recorded)}); give another --store")


def _copy(files: list[Path], writer: TokenWriter, progress: OnProgress | None) -> list[SourceFile]:
    """Streams the files into the writer; `InputError` where two records have one name."""
    total = sum(path.stat().st_size for path in files)
    done = 0

    def on_read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    seen: dict[str, str] = {}
    sources = []
    for path in files:
        for item in read_genome(path, on_read):
            if isinstance(item, SourceFile):
                sources.append(item)
            elif item.first:
                here = f"{path}, line {item.line}"
                if item.name in seen:
                    raise InputError(
                        f"{here}: duplicate contig {item.name!r} (first in {seen[item.name]}); rename or remove one"
                    )
                seen[item.name] = here
                writer.begin(item.name, item.description)
            else:
                writer.append(item.tokens, item.ambiguous)
    return sources
