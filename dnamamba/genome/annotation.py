"""Which bases are exons: GFF3 and GTF files, plain or gzipped, read for their `exon` and `CDS` features.

The files count bases from 1 and include the last one; inside, intervals are 0-based and half-open as everywhere.
Contigs are matched by `contig_names`, so that `1` and MT are found in a genome that says chr1 and chrM.
"""

import gzip
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.intervals import ByContig, merge, total
from dnamamba.genome.store import TokenStore

FEATURES = (b"exon", b"CDS")
"""Both, since annotations of bacteria have no exon for a coding gene, and others no CDS for a transcript."""


COLUMNS = 9
_DIGITS = re.compile(rb"[0-9]{1,18}")


class Annotation(NamedTuple):
    """The exons of a genome."""

    exons: ByContig
    """Merged intervals of exons on either strand, a (k, 2) int64 array for each contig that has any."""
    contigs: frozenset[str]
    """Contigs of the genome with at least one line in the file, whatever its feature."""
    unknown: dict[str, int]
    """Lines on contigs that the genome lacks, by the file's name for them."""

    def exon_mask(self, contig: str, start: int, end: int) -> np.ndarray:
        """(end − start,) bool: which bases [start, end) of a contig are in an exon."""
        mask = np.zeros(end - start, bool)
        pairs = self.exons.get(contig, np.empty((0, 2), np.int64))
        first = np.searchsorted(pairs[:, 1], start, side="right")
        last = np.searchsorted(pairs[:, 0], end, side="left")
        for exon_start, exon_end in pairs[first:last].tolist():
            mask[max(exon_start - start, 0) : exon_end - start] = True
        return mask

    def summary(self) -> str:
        """One line: how much is exon, and what of the file found no contig."""
        count = sum(map(len, self.exons.values()))
        parts = [f"{count:,} exons (merged) of {total(self.exons):,} bases on {len(self.exons)} contigs"]
        if self.unknown:
            names = ", ".join(list(self.unknown)[:3])
            lines = sum(self.unknown.values())
            more = ", …" if len(self.unknown) > 3 else ""
            parts.append(
                f"{lines:,} lines on {len(self.unknown)} contigs that the genome lacks were passed over ({names}{more})"
            )
        return "; ".join(parts)


def read_annotation(path: Path, store: TokenStore) -> Annotation:
    """The exons of a GFF3 or GTF file.

    On contigs that GFF3 declares circular, features may run over the origin. Raises `InputError` with file and line for
    fewer than nine columns, coordinates that are no numbers or not in order, and ends beyond the contig; and for a file
    that cannot be read, has no exon or CDS, or none on a contig of this genome.
    """
    pairs: dict[str, array] = {}
    names: dict[bytes, str | None] = {}
    contigs: set[str] = set()
    circular: set[str] = set()
    unknown: dict[str, int] = {}
    features = 0
    for number, columns in feature_rows(path):
        contig, _, kind, first, last, *_, attributes = columns
        features += kind in FEATURES
        if contig not in names:
            names[contig] = store.names.find(contig.decode("utf-8", "backslashreplace"))
        name = names[contig]
        if name is None:
            shown = contig.decode("utf-8", "backslashreplace")
            unknown[shown] = unknown.get(shown, 0) + 1
            continue
        contigs.add(name)
        if kind == b"region" and b"Is_circular=true" in attributes:
            circular.add(name)
        if kind not in FEATURES:
            continue
        where = f"{path}, line {number}"
        try:
            start, end = int(_DIGITS.fullmatch(first)[0]) - 1, int(_DIGITS.fullmatch(last)[0])  # type: ignore[index]
        except TypeError:
            shown_first, shown_last = (text.decode("utf-8", "backslashreplace") for text in (first, last))
            raise InputError(f"{where}: start {shown_first!r} and end {shown_last!r} must be whole numbers") from None
        if not 0 <= start < end:
            raise InputError(
                f"{where}: {name}, start {start + 1}, end {end}: must have 1 <= start <= end (both are included)"
            )
        length = store.contig(name).length
        into = pairs.setdefault(name, array("q"))
        if end > length:
            if name not in circular:
                raise InputError(f"{where}: end {end} is beyond contig {name}, which has {length} bases")
            into.extend((0, min(end - length, length)))
        into.extend((min(start, length), min(end, length)))
    if not features:
        raise InputError(f"{path}: no exon or CDS in it; expected an annotation of genes as GFF3 or GTF")
    if not contigs:
        raise InputError(f"{path}: no line is on a contig of the genome{store.names.suggestion()}")
    exons = {name: merge(np.frombuffer(flat, np.int64).reshape(-1, 2)) for name, flat in pairs.items()}
    return Annotation(exons, frozenset(contigs), unknown)


def feature_rows(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(line number, its nine columns) of the rows of features: no comments, no blank lines, no sequence after ##FASTA.

    Raises `InputError` for a row with fewer columns, and for a file that cannot be read.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as file:
                for number, line in enumerate(file, 1):
                    if line.startswith((b"##FASTA", b">")):
                        return
                    if line.strip() and not line.startswith(b"#"):
                        columns = line.rstrip(b"\r\n").split(b"\t")
                        if len(columns) < COLUMNS:
                            raise InputError(
                                f"{path}, line {number}: {len(columns)} tab-separated columns; GFF3 and GTF have 9"
                            )
                        yield number, columns[:COLUMNS]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an annotation as GFF3 or GTF, plain or gzipped") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError(f"{path}: the gzip data are truncated or damaged; fetch the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
