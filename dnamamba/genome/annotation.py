"""Which bases are exons: GFF3 and GTF files, plain or gzipped, read for their `exon` and `CDS` features.

The files count bases from 1 and include the last one; inside, intervals are 0-based and half-open as everywhere.
Contigs are matched by `contig_names`, so that `1` and MT are found in a genome that says chr1 and chrM.
"""

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.intervals import ByContig, merge, total
from dnamamba.genome.view import GenomeView
from dnamamba.tables import whole_number
from dnamamba.text_files import as_text, read_lines

FEATURES = (b"exon", b"CDS")
"""Both, since annotations of bacteria have no exon for a coding gene, and others no CDS for a transcript."""


STRANDS = (b"+", b"-", b".", b"?")
COLUMNS = 9
EXPECTED = "an annotation of genes as GFF3 or GTF"
_CIRCULAR = re.compile(rb"(?:^|;)\s*Is_circular=true\s*(?:;|$)", re.IGNORECASE)


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


def read_annotation(path: Path, store: GenomeView) -> Annotation:
    """The exons of a GFF3 or GTF file.

    On contigs that GFF3 declares circular, by an attribute of any of their lines, features may run over the origin and
    continue at the contig's start. Raises `InputError` with file and line for
    other than nine columns, coordinates that are no numbers or not in order, ends beyond the contig, strands other than
    + - . ?, and features behind the sequences; and for a file that cannot be read, has no exon or CDS, or none on a
    contig of this genome.
    """
    pairs: dict[str, array] = {}
    names: dict[bytes, str | None] = {}
    contigs: set[str] = set()
    circular: set[str] = set()
    beyond: dict[str, tuple[int, int]] = {}
    unknown: dict[str, int] = {}
    features = 0
    for number, columns in feature_rows(path):
        contig, _, kind, first, last, _, strand, _, attributes = columns
        features += kind in FEATURES
        if contig not in names:
            names[contig] = store.names.find(as_text(contig))
        name = names[contig]
        if name is None:
            shown = as_text(contig)
            unknown[shown] = unknown.get(shown, 0) + 1
            continue
        contigs.add(name)
        if _CIRCULAR.search(attributes):
            circular.add(name)
        if kind not in FEATURES:
            continue
        where = f"{path}, line {number}"
        first_base, end = whole_number(as_text(first)), whole_number(as_text(last))
        if first_base is None or end is None:
            shown = f"start {as_text(first)!r} and end {as_text(last)!r}"
            raise InputError(f"{where}: {shown} must be whole numbers, below 10^18")
        if not 1 <= first_base <= end:
            raise InputError(
                f"{where}: {name}, start {first_base}, end {end}: must have 1 <= start <= end (both are included)"
            )
        if strand not in STRANDS:
            raise InputError(f"{where}: the strand (column 7) is {as_text(strand)!r}; expected + - . or ?")
        length = store.contig(name).length
        if end > length:  # whether the contig is circular may be said further down
            beyond.setdefault(name, (number, end))
            if end > 2 * length:
                raise InputError(f"{where}: end {end} is beyond contig {name}, which has {length} bases")
            pairs.setdefault(name, array("q")).extend((max(first_base - 1 - length, 0), end - length))
        pairs.setdefault(name, array("q")).extend((min(first_base - 1, length), min(end, length)))
    for name, (number, end) in beyond.items():
        if name not in circular:
            length = store.contig(name).length
            raise InputError(
                f"{path}, line {number}: end {end} is beyond contig {name}, which has {length} bases and is nowhere "
                "called circular (Is_circular=true)"
            )
    if not features:
        raise InputError(f"{path}: no exon or CDS in it; expected an annotation of genes as GFF3 or GTF")
    if not contigs:
        raise InputError(f"{path}: no line is on a contig of the genome{store.names.suggestion()}")
    exons = {name: merge(np.frombuffer(flat, np.int64).reshape(-1, 2)) for name, flat in pairs.items()}
    return Annotation(exons, frozenset(contigs), unknown)


def feature_rows(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(line number, its nine columns) of the rows of features: no comments, no blank lines, no sequence after ##FASTA.

    Raises `InputError` for a row with other columns, one behind the sequences, and as `text_files.read_lines`.
    """
    sequences = False
    for number, line in read_lines(path, EXPECTED):
        if line.startswith((b"##FASTA", b">")):
            sequences = True
        elif sequences and b"\t" in line:
            raise InputError(
                f"{path}, line {number}: columns behind a line ##FASTA or one that begins with '>', where sequences "
                "begin; is that line damaged?"
            )
        elif not sequences and line.strip() and not line.startswith(b"#"):
            columns = line.split(b"\t")
            if len(columns) < COLUMNS or any(columns[COLUMNS:]):
                raise InputError(f"{path}, line {number}: {len(columns)} tab-separated columns; GFF3 and GTF have 9")
            yield number, columns[:COLUMNS]
