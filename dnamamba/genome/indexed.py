"""A FASTA read by its index (.fai, pyfaidx): for small queries, which need no token store of the whole genome.

Plain text and bgzip are read; gzip and GenBank have no positions to jump to. The index lies next to the FASTA, or in
the user's cache where that folder is read-only. It is built again when the FASTA is newer or of another
size than it says.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, UNK, N, encode
from dnamamba.errors import InputError
from dnamamba.genome.contig_names import ContigNames
from dnamamba.genome.progress import OnProgress
from dnamamba.genome.store import TokenStore, cache_name, current_store, is_writable, open_genome
from dnamamba.genome.view import GenomeView
from dnamamba.text_files import is_pipe

LITTLE = 1 << 26
"""Bases: for up to this many to read no token store is built."""
LINE_ENDS = 4
"""Bytes that may follow the last base of a FASTA: a line end, perhaps CRLF, and a blank line"""


class IndexedContig(NamedTuple):
    """A contig as the index has it."""

    name: str
    length: int


class IndexedGenome:
    """A FASTA file whose bases are read where they stand. Raises `InputError` for what cannot be indexed.

    Of the same use as a `TokenStore` for whoever reads some bases (`GenomeView`); pickling sends the path.
    """

    fingerprint = None
    """Not known: it is of all the bases."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = _state(path)
        if (kind := _kind(path)) is None:
            raise InputError(f"{path}: cannot be indexed: expected FASTA, plain or compressed with bgzip")
        self._index = _index_for(path, kind)
        self._fasta = _open(path, self._index)
        self.contigs: tuple[IndexedContig, ...] = tuple(
            IndexedContig(name, record.rlen) for name, record in self._fasta.faidx.index.items() if record.rlen
        )
        self._by_name = {contig.name: contig for contig in self.contigs}
        self.names = ContigNames(self._by_name)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexedGenome, (self.path,)

    def __repr__(self) -> str:
        return f"IndexedGenome({str(self.path)!r}: {len(self.contigs)} contigs, {self.bases} bases)"

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def bases(self) -> int:
        return sum(contig.length for contig in self.contigs)

    def contig(self, name: str) -> IndexedContig:
        """The contig of exactly that name; `InputError` if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise InputError(f"{self.path}: no contig {name!r}{self.names.suggestion()}") from None

    def read(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) uint8 tokens as a `TokenStore` has them, 0-based half-open.

        `InputError` outside of the contig, at a letter that is no nucleotide code, and when the file has changed.
        """
        length = self.contig(contig).length
        if not 0 <= start <= end <= length:
            raise InputError(f"{contig}:{start}-{end} lies outside of the contig, which has {length} bases")
        if _state(self.path) != self._state:
            raise InputError(f"{self.path}: was changed while it is in use; start again")
        try:
            text = self._fasta.faidx.fetch(contig, start + 1, end).seq if end > start else ""
        except UnicodeDecodeError:
            text = "?" * (end - start)
        tokens = encode(text)
        if len(tokens) != end - start or (tokens == UNK).any():
            raise InputError(
                f"{self.path}, record {contig!r}: {start}-{end} are not all nucleotides; expected FASTA with lines of "
                f"one length, and that the index {self._index} is its own: delete the index to have it rebuilt"
            )
        return tokens

    def read_sparse(self, contig: str, spans: np.ndarray) -> np.ndarray:
        """(length,) uint8 tokens of a contig, of which only those of `spans`, (k, 2) int64, are there."""
        tokens = np.zeros(self.contig(contig).length, np.uint8)  # memory that is not written takes no space
        for start, end in spans.tolist():
            tokens[start:end] = self.read(contig, start, end)
        return tokens

    def tokens_at(self, contig: np.ndarray, position: np.ndarray) -> np.ndarray:
        """(k,) uint8 tokens of single bases: `contig` (k,) indices into `contigs`, `position` (k,) int64 in them."""
        names = [self.contigs[index].name for index in contig.tolist()]
        pairs = zip(names, position.tolist(), strict=True)
        return np.array([self.read(name, start, start + 1)[0] for name, start in pairs], np.uint8)

    def n_count(self, contig: str, start: int, end: int) -> int:
        """How many of a contig's bases [start, end), 0-based half-open, are N."""
        return int((self.read(contig, start, end) & TOKEN_BITS == N).sum())


def open_for(
    paths: Sequence[Path] | Path,
    store: Path | None = None,
    bases: Callable[[GenomeView], int] | None = None,
    progress: OnProgress | None = None,
) -> TokenStore | IndexedGenome:
    """A genome of which `bases` are to be read: its token store if there is a current one, else a FASTA's index if
    they are `LITTLE`, else a token store that is built.

    Args:
        bases: says how many bases are to be read of a genome whose contigs are known; may raise `InputError`.
        paths, store, progress: as in `open_genome`, which raises all that can be wrong with them.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if (opened := current_store(files, store)) is not None:
        return opened
    indexed = index_of(files[0]) if store is None and len(files) == 1 else None
    if indexed is not None and (bases is None or bases(indexed) <= LITTLE):
        return indexed
    return open_genome(files, store, progress=progress)


def index_of(path: Path) -> IndexedGenome | None:
    """A file as its index shows it, None if it is of no kind that can be indexed."""
    try:
        return IndexedGenome(path)
    except InputError:
        return None


def described(genome: GenomeView) -> str:
    """How a genome is read, for a job's header."""
    return "token store" if isinstance(genome, TokenStore) else "read by its index"


def _state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns, status.st_ino


def _kind(path: Path) -> str | None:
    """`fasta` or `bgzip`, None for what has no index: binary data, and lines that end in CR alone."""
    if is_pipe(path):
        return None
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError:
        return None
    named_packed = path.name.lower().endswith((".gz", ".bgz"))  # by which pyfaidx distinguishes them
    if start[:1] == b">" and not named_packed:
        return None if re.search(rb"\r[^\n]|\0", start) else "fasta"
    return "bgzip" if start[:2] == b"\x1f\x8b" and start[12:14] == b"BC" and named_packed else None


def _open(path: Path, index: Path) -> Any:
    """Opened by pyfaidx, which builds the index where there is none. `InputError` for a file that has none."""
    import pyfaidx

    is_new = not index.exists()
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        fasta = pyfaidx.Fasta(str(path), indexname=str(index), gzi_indexname=_gzi(index))
        for name in fasta.keys() if is_new else ():  # which end for it at characters that are no white space of FASTA
            if fasta.faidx.get_long_name(name).encode().lstrip(b"\r\n>").split()[:1] != [name.encode()]:
                raise ValueError(f"the name {name!r} is not all of its own")
        return fasta
    except Exception as error:  # of many kinds, for all that an index cannot describe
        raise InputError(f"{path}: cannot be indexed: {error}") from None


def _index_for(path: Path, kind: str) -> Path:
    """Where the index is, or is to be built. What is there and not current is removed."""
    candidates = [path.with_name(f"{path.name}.fai"), cache_name([path]).with_suffix(".fai")]
    for index in candidates:
        if _is_current(index, path, kind):
            return index
    index = next((path for path in candidates if is_writable(path.parent)), candidates[-1])
    with contextlib.suppress(OSError):
        for stale in (index, Path(_gzi(index))):
            stale.unlink(missing_ok=True)
    return index


def _gzi(index: Path) -> str:
    return f"{str(index).removesuffix('.fai')}.gzi"


def _is_current(index: Path, path: Path, kind: str) -> bool:
    """Whether an index is not older than its FASTA and, in plain text, ends where the file ends."""
    try:
        newest = path.stat().st_mtime_ns
        files = (index, Path(_gzi(index))) if kind == "bgzip" else (index,)
        if any(file.stat().st_mtime_ns < newest for file in files):
            return False
        if kind == "bgzip":
            return True
        *_, last = index.read_bytes().split(b"\n")[:-1]
        length, offset, bases, width = map(int, last.split(b"\t")[1:5])
    except (OSError, ValueError, IndexError):
        return False
    end = offset + length // bases * width + length % bases if bases else offset
    return end - (width - bases) <= path.stat().st_size <= end + LINE_ENDS
