"""Transcripts with their exons and strand, and the sites where their sequence says something: splice sites, starts.

`read_genes` reads GFF3 and GTF; `open_reading_frames` finds candidates where there is no annotation, as in a bacterium.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dnamamba.alphabet import SOFT_MASK_BIT, TOKEN_BITS, encode, reverse_complement
from dnamamba.genome.annotation import FEATURES, feature_rows, read_annotation
from dnamamba.genome.intervals import Interval, merge
from dnamamba.genome.view import GenomeView
from dnamamba.text_files import as_text

SiteKind = Literal["donor", "acceptor", "start codon"]
CODON = 3
STOP_CODONS = ("TAA", "TAG", "TGA")
START_CODONS = ("ATG", "GTG", "TTG")
"""Those of bacteria, nearly all"""


class Gene(NamedTuple):
    """A transcript. Coordinates are 0-based and half-open, on the forward strand, ascending on both strands.

    One that runs over the origin of a circular contig is there twice, from before its end to behind it, and from before
    its start (below 0): so each of its bases lies in a transcript that is whole.
    """

    name: str
    contig: str
    reverse: bool
    exons: np.ndarray
    """(k, 2) int64"""
    coding: np.ndarray
    """(m, 2) int64: the exons' coding part; (0, 2) where there is none"""

    @property
    def start(self) -> int:
        return int(self.exons[0, 0])

    @property
    def end(self) -> int:
        return int(self.exons[-1, 1])


class Sites(NamedTuple):
    """Sites of one kind; each counts once, however many transcripts have it."""

    contig: np.ndarray
    """(k,) str"""
    position: np.ndarray
    """(k,) int64, 0-based: of a donor the intron's first base (the G of GT), of an acceptor the exon's first base (the
    one after AG), of a start codon the A of ATG"""
    reverse: np.ndarray
    """(k,) bool: positions after it have lower coordinates"""


def sites(genes: Iterable[Gene], kind: SiteKind) -> Sites:
    """All sites of a kind, sorted."""
    found = set()
    for gene in genes:
        pairs = (gene.coding[-1:] if gene.reverse else gene.coding[:1]) if kind == "start codon" else gene.exons
        if kind != "start codon":
            # In the transcript's order every exon but the first has an acceptor, every one but the last a donor.
            pairs = pairs[1:] if (kind == "donor") == gene.reverse else pairs[:-1]
        ends_exon = kind == "donor"
        for start, end in pairs.tolist():
            position = (start - 1 if ends_exon else end - 1) if gene.reverse else (end if ends_exon else start)
            found.add((gene.contig, position, gene.reverse))
    columns = list(zip(*sorted(found), strict=True)) or [(), (), ()]
    return Sites(np.array(columns[0], str), np.array(columns[1], np.int64), np.array(columns[2], bool))


def read_genes(path: Path, store: GenomeView, within: Interval | None = None) -> list[Gene]:
    """The transcripts of a GFF3 or GTF file on contigs of this genome, from their `exon` and `CDS` lines, sorted.

    Lines belong together by GTF's transcript_id or GFF3's Parent. A transcript is called by its gene where the line
    says it (gene_name, gene, gene_id), else by itself. A CDS without exons, as in bacteria, is its own exon. With
    `within` only exons that reach into it are taken. Raises `InputError` as `read_annotation` does.
    """
    read_annotation(path, store)  # all that can be wrong with the file
    lengths = {contig.name: contig.length for contig in store.contigs}
    names: dict[bytes, str | None] = {}
    parts: dict[tuple[str, str, bool], dict[bytes, list[tuple[int, int]]]] = {}
    called: dict[tuple[str, str, bool], str] = {}
    for number, (contig, _, kind, first, last, _, strand, _, attributes) in feature_rows(path):
        if kind not in FEATURES:
            continue
        if contig not in names:
            names[contig] = store.names.find(as_text(contig))
        if (name := names[contig]) is None:
            continue
        start, end = int(first) - 1, int(last)
        if not _reaches(name, start, end, within) and not _reaches(name, 0, end - lengths[name], within):
            continue
        text = as_text(attributes)
        transcript = _attribute(text, "transcript_id", "Parent", "ID") or f"line {number}"
        key = (name, transcript, strand == b"-")
        parts.setdefault(key, {feature: [] for feature in FEATURES})[kind].append((start, end))
        called.setdefault(key, _attribute(text, "gene_name", "gene", "gene_id", "Name") or transcript)
    genes = []
    for key, features in parts.items():
        exons, coding = (merge(np.array(features[kind], np.int64).reshape(-1, 2)) for kind in FEATURES)
        gene = Gene(called[key], key[0], key[2], exons if len(exons) else coding, coding)
        if gene.end <= lengths[gene.contig]:
            genes.append(gene)
            continue
        for by in (0, lengths[gene.contig]):
            copy = gene._replace(exons=gene.exons - by, coding=gene.coding - by)
            if any(_reaches(copy.contig, start, end, within) for start, end in copy.exons.tolist()):
                genes.append(copy)
    return sorted(genes, key=lambda gene: (gene.contig, gene.start, gene.end, gene.name))


def open_reading_frames(store: GenomeView, interval: Interval, least: int = 300) -> list[Gene]:
    """Intervals of at least `least` bases from a start codon to the first stop codon in frame, on both strands, the
    longest for each stop codon; of those that overlap by more than half of the shorter the longer one stays. Candidates
    for genes of a bacterium, not an annotation.
    """
    stored = store.read(interval.contig, interval.start, interval.end) & np.uint8(TOKEN_BITS)
    found = []
    for reverse in (False, True):
        tokens = reverse_complement(stored) if reverse else stored
        codon = _codons(tokens)
        is_start, is_stop = (np.isin(codon, [_code(text) for text in texts]) for texts in (START_CODONS, STOP_CODONS))
        for frame in range(CODON):
            starts = frame + CODON * np.flatnonzero(is_start[frame::CODON])
            stops = frame + CODON * np.flatnonzero(is_stop[frame::CODON])
            before = np.concatenate(([frame - CODON], stops[:-1])) if stops.size else stops
            first = np.searchsorted(starts, before, side="right")
            for stop, number in zip(stops.tolist(), first.tolist(), strict=True):
                if number < starts.size and stop + CODON - starts[number] >= least:
                    begin, end = int(starts[number]), stop + CODON
                    pair = (stored.size - end, stored.size - begin) if reverse else (begin, end)
                    found.append((pair[0] + interval.start, pair[1] + interval.start, reverse))
    kept: list[tuple[int, int, bool]] = []
    for start, end, reverse in sorted(found, key=lambda orf: (orf[0] - orf[1], orf)):
        if all(min(end, other[1]) - max(start, other[0]) <= (end - start) / 2 for other in kept):
            kept.append((start, end, reverse))
    genes = []
    for start, end, reverse in sorted(kept):
        pair_array = np.array([[start, end]], np.int64)
        genes.append(Gene(f"ORF {start + 1:,}", interval.contig, reverse, pair_array, pair_array))
    return genes


def repeats(store: GenomeView, interval: Interval) -> np.ndarray:
    """(k, 2) int64: the soft-masked parts of an interval (lower case in the FASTA), 0-based half-open."""
    masked = store.read(interval.contig, interval.start, interval.end) >= SOFT_MASK_BIT
    changes = np.flatnonzero(np.diff(np.concatenate(([False], masked, [False])).astype(np.int8)))
    return changes.reshape(-1, 2).astype(np.int64) + interval.start


def longest_transcripts(genes: Sequence[Gene]) -> list[Gene]:
    """One transcript a gene, the one with the most bases in exons; in the order of the genes given."""
    best: dict[tuple[str, str, bool], Gene] = {}
    for gene in genes:
        key = (gene.contig, gene.name, gene.start < 0)
        if key not in best or np.diff(gene.exons).sum() > np.diff(best[key].exons).sum():
            best[key] = gene
    return list(best.values())


def _reaches(contig: str, start: int, end: int, within: Interval | None) -> bool:
    return within is None or (contig == within.contig and start < within.end and end > within.start and start < end)


def _attribute(text: str, *names: str) -> str | None:
    """The first of these attributes in column 9 of a GFF3 (key=value) or GTF (key "value") line."""
    for name in names:
        if found := re.search(rf'(?:^|;)\s*{name}(?:=| ")([^;"]+)', text):
            return found[1].strip()
    return None


def _codons(tokens: np.ndarray) -> np.ndarray:
    """(length,) int64: the codon that begins at each base as a number, −1 where it has an N or the end comes first."""
    wide = np.full(tokens.size, -1, np.int64)
    if tokens.size >= CODON:
        parts = [tokens[phase : tokens.size - CODON + 1 + phase].astype(np.int64) for phase in range(CODON)]
        code = parts[0] * 16 + parts[1] * 4 + parts[2]
        wide[: code.size] = np.where(np.max(parts, axis=0) < 4, code, -1)
    return wide


def _code(text: str) -> int:
    return int(_codons(encode(text))[0])
