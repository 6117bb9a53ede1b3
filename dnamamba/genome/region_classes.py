"""Which class of region each base of a genome is in: CDS, splice, UTR, promoter …, or whatever a BED file calls it.

A base has one class. Where regions overlap, the first of `CLASSES` counts; classes of other names come before them, in
the order in which the files name them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import SOFT_MASK_BIT
from dnamamba.errors import InputError
from dnamamba.genome.annotation import read_annotation
from dnamamba.genome.bed import SUFFIXES as BED
from dnamamba.genome.bed import read_bed
from dnamamba.genome.genes import Gene, read_genes
from dnamamba.genome.intervals import merge, subtract
from dnamamba.genome.store import TokenStore
from dnamamba.tables import suffix

CLASSES = ("CDS", "splice", "5UTR", "3UTR", "exon", "promoter", "repeat", "intron", "intergenic")
"""In order of precedence. `splice` lies within `SPLICE_REACH` of a junction; `promoter` is `PROMOTER` bases before a
transcript; `exon` is of transcripts without CDS; `repeat` is what is soft-masked of introns and between genes."""
BACKGROUND = ("repeat", "intron", "intergenic")
UNCLASSED = "no class"
SPLICE_REACH = 20
PROMOTER = 1000
ANNOTATIONS = (".gtf", ".gff", ".gff3")
_MOST_CLASSES = 250
_Pairs = dict[str, dict[str, list[np.ndarray]]]
"""Class → contig → arrays (k, 2) of intervals"""


class RegionClasses(NamedTuple):
    """The class of every base of a token store, as runs of one class each."""

    names: tuple[str, ...]
    """Of the classes, in order of precedence; a class's number is its index, and `len(names)` is no class."""
    edges: np.ndarray
    """(runs + 1,) int64, ascending: run i is the bases [edges[i], edges[i + 1]) of the store. No run goes over the end
    of a contig."""
    classes: np.ndarray
    """(runs,) uint8: each run's class"""

    @property
    def none(self) -> int:
        """The number of bases without a class."""
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with the classes of the genome."""
        content = "\n".join(self.names).encode() + self.edges.tobytes() + self.classes.tobytes()
        return hashlib.sha256(content).hexdigest()

    def _met(self, start: int, end: int) -> tuple[int, int]:
        """The runs [first, last) that have some of the store's bases [start, end)."""
        first = int(np.searchsorted(self.edges, start, side="right")) - 1
        return first, int(np.searchsorted(self.edges, end, side="left"))

    def at(self, start: int, end: int) -> np.ndarray:
        """(end − start,) uint8: the class of each of the store's bases [start, end)."""
        first, last = self._met(start, end)
        edges = np.clip(self.edges[first : last + 1], start, end)
        return np.repeat(self.classes[first:last], np.diff(edges))

    def runs(self, name: str, start: int, end: int) -> np.ndarray:
        """(k, 2) int64: the intervals of a class within the store's bases [start, end), ascending."""
        first, last = self._met(start, end)
        own = first + np.flatnonzero(self.classes[first:last] == self.names.index(name))
        return np.clip(np.column_stack((self.edges[own], self.edges[own + 1])), start, end)

    def bases(self, start: int, end: int) -> np.ndarray:
        """(classes + 1,) int64: how many of the store's bases [start, end) are of each class, at last of none."""
        first, last = self._met(start, end)
        lengths = np.diff(np.clip(self.edges[first : last + 1], start, end))
        return np.bincount(self.classes[first:last], lengths, minlength=self.none + 1).astype(np.int64)


def read_region_classes(paths: Sequence[Path], store: TokenStore) -> RegionClasses:
    """The classes that BED files name in their fourth column, and that GTF and GFF3 files of genes imply.

    Of genes, as `read_genes` finds them: `CDS`; `splice`, `SPLICE_REACH` bases on both sides of each junction of exon
    and intron; `5UTR` and `3UTR`, the exons before and behind the CDS; `promoter`, `PROMOTER` bases before the
    transcript's first; `exon`, of transcripts without CDS; `intron`; `intergenic`, what else there is of the contigs
    that the file knows; of the last two, soft-masked bases are `repeat`. Contigs that no file knows have no class.

    Raises `InputError` for files of other names, a BED line without a name, and as `read_bed` and `read_genes`.
    """
    found: _Pairs = {}
    annotated: set[str] = set()
    for path in paths:
        if suffix(path) in BED:
            _add_bed(found, path, store)
        elif suffix(path) in ANNOTATIONS:
            annotated |= read_annotation(path, store).contigs
            _add_genes(found, read_genes(path, store), store)
        else:
            raise InputError(f"{path}: regions are BED files or annotations, called {' '.join(('.bed', *ANNOTATIONS))}")
    implied = [name for name in BACKGROUND if annotated]
    names = [name for name in found if name not in CLASSES]
    names += [name for name in CLASSES if name in found or name in implied]
    if len(names) > _MOST_CLASSES:
        raise InputError(f"{paths[0]}: {len(names)} classes of regions; {_MOST_CLASSES} is the most")
    return _painted(names, found, annotated, store)


def region_classes(genes: Sequence[Gene], contigs: Iterable[str], store: TokenStore) -> RegionClasses:
    """Those that genes imply on these contigs, as `read_region_classes` finds them."""
    found: _Pairs = {}
    _add_genes(found, genes, store)
    names = [name for name in CLASSES if name in found or name in BACKGROUND]
    return _painted(names, found, set(contigs), store)


def _add_bed(found: _Pairs, path: Path, store: TokenStore) -> None:
    by_name: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for row in read_bed(path, store, known_contigs_only=True):
        if not row.name or any(letter.isspace() or letter == "=" for letter in row.name):
            raise InputError(
                f"{path}, line {row.line}: {row.interval} has the name {row.name!r}; column 4 is to name its class, "
                "without blanks and ="
            )
        contig, start, end = row.interval
        by_name.setdefault(row.name, {}).setdefault(contig, []).append((start, end))
    for name, contigs in by_name.items():
        for contig, pairs in contigs.items():
            found.setdefault(name, {}).setdefault(contig, []).append(merge(np.array(pairs, np.int64)))


def _add_genes(found: _Pairs, genes: Sequence[Gene], store: TokenStore) -> None:
    for gene in genes:
        length = store.contig(gene.contig).length
        for name, pairs in _of_gene(gene).items():
            inside = np.clip(pairs, 0, length)
            inside = inside[inside[:, 1] > inside[:, 0]]
            if len(inside):
                found.setdefault(name, {}).setdefault(gene.contig, []).append(inside)


def _of_gene(gene: Gene) -> dict[str, np.ndarray]:
    """The regions of a transcript, (k, 2) each; they may overlap and reach over the contig's ends."""
    exons, coding = gene.exons, gene.coding
    introns = np.column_stack((exons[:-1, 1], exons[1:, 0]))
    junctions = introns.ravel()
    regions = {"intron": introns, "splice": np.column_stack((junctions - SPLICE_REACH, junctions + SPLICE_REACH))}
    start, end = gene.start, gene.end
    regions["promoter"] = np.array([[end, end + PROMOTER] if gene.reverse else [start - PROMOTER, start]], np.int64)
    if len(coding):
        rest = subtract(exons, coding)
        before, behind = rest[rest[:, 1] <= coding[0, 0]], rest[rest[:, 0] >= coding[-1, 1]]
        left, right = ("3UTR", "5UTR") if gene.reverse else ("5UTR", "3UTR")
        regions |= {"CDS": coding, left: before, right: behind}
    else:
        regions["exon"] = exons
    return regions


def _painted(names: list[str], found: _Pairs, annotated: set[str], store: TokenStore) -> RegionClasses:
    """Contig by contig: classes that come first are painted last."""
    none = len(names)
    edges, classes = [np.zeros(1, np.int64)], []
    for contig in store.contigs:
        painted = np.full(contig.length, none, np.uint8)
        if contig.name in annotated:
            painted[:] = names.index("intergenic")
        for name in reversed(names):
            if name == "repeat" and contig.name in annotated:
                painted[store.read(contig.name, 0, contig.length) >= SOFT_MASK_BIT] = names.index(name)
            for pairs in found.get(name, {}).get(contig.name, ()):
                for start, end in pairs.tolist():
                    painted[start:end] = names.index(name)
        changes = np.append(np.flatnonzero(np.diff(painted)) + 1, contig.length)
        edges.append(changes + contig.offset)
        classes.append(painted[changes - 1])
    return RegionClasses(tuple(names), np.concatenate(edges), np.concatenate(classes))
