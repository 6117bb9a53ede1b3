"""The classes of human chr20 (GRCh37) as BED, from the annotation in the test data; validation is its first 10 Mb.

CDS comes from canonical transcripts, exons, genes and starts of transcripts from RefSeq (without strand, so that a
promoter is 1 kb on both sides, and UTRs are called exon), repeats from WindowMasker. Within validation, coding bases
are codon1, codon2 and codon3, and the introns' ends between them are donor and acceptor.
"""

import gzip
import itertools
from pathlib import Path

import numpy as np

from dnamamba.genome.intervals import merge, subtract, widen

CHROMOSOME = "20"
VALIDATION = 10_000_000
"""The first bases of chr20"""
SPLICE, PROMOTER = 20, 1000


def chr20_regions(folder: Path) -> str:
    """BED lines of all classes; where they overlap, `dnamamba.genome.region_classes` says which counts."""
    exons = [row for row in rows_of(folder / "chr20_GRCh37_cds_from_spliceai_orf.bed.gz") if row[0] == CHROMOSOME]
    refseq = {kind: pairs_of(folder / f"chr20_hg19_RefSeq{kind}.bed.gz") for kind in ("Exon", "Gene", "TSS")}
    codons: dict[str, list[tuple[int, int]]] = {name: [] for name in ("codon1", "codon2", "codon3")}
    genes: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for _, first, last, gene, _, strand, before, *_ in exons:
        start, end = int(first), int(last)
        genes.setdefault((gene, strand), []).append((start, end))
        for base in range(start, min(end, VALIDATION)):
            along = base - start if strand == "+" else end - 1 - base
            codons[f"codon{(int(before) + along) % 3 + 1}"].append((base, base + 1))
    ends: dict[str, list[tuple[int, int]]] = {"donor": [], "acceptor": []}
    junctions = []
    for (_, strand), found in genes.items():
        pairs = sorted(found)
        for (_, left), (right, _) in itertools.pairwise(pairs):
            junctions += [left, right]
            if right < VALIDATION:
                two = ((left, left + 2), (right - 2, right))
                for name, pair in zip(("donor", "acceptor"), two if strand == "+" else two[::-1], strict=True):
                    ends[name].append(pair)
    coding = merge(np.array([pair for found in genes.values() for pair in found], np.int64))
    contig = int(max(coding[-1, 1], *(pairs[-1, 1] for pairs in refseq.values()))) + PROMOTER
    classes = {
        **{name: np.array(pairs, np.int64) for name, pairs in (codons | ends).items()},
        "CDS": coding,
        "splice": widen(np.column_stack((junctions, junctions)).astype(np.int64), SPLICE, contig),
        "exon": subtract(refseq["Exon"], coding),
        "promoter": widen(refseq["TSS"], PROMOTER, contig),
        "repeat": pairs_of(folder / "chr20_GRCh37_windowmasker_repeats.bed.gz"),
        "intron": refseq["Gene"],
        "intergenic": np.array([[0, contig]], np.int64),
    }
    return "".join(
        f"{CHROMOSOME}\t{start}\t{end}\t{name}\n" for name, pairs in classes.items() for start, end in pairs.tolist()
    )


def rows_of(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt") as file:
        return [line.rstrip("\n").split("\t") for line in file if not line.startswith("#")]


def pairs_of(path: Path) -> np.ndarray:
    return merge(np.array([[int(row[1]), int(row[2])] for row in rows_of(path)], np.int64))
