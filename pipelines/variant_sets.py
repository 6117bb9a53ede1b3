"""Variants with known answers, for `variant_benchmarks.py`: saturation editing, ClinVar, 1000 Genomes, and random
changes of yeast's long open reading frames, whose answer is what they do to the protein.

Each set says which of its variants are compared with which. `Contrast`s within a consequence (missense alone, introns
alone) cannot be won by knowing the consequence; those between consequences show that a model has learnt it.
"""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.groups import joined_groups, names_in
from dnamamba.finetuning.tasks.variants import read_rows
from dnamamba.genome.effects import EFFECTS, changes_of_transcript
from dnamamba.genome.genes import open_reading_frames
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.genome.vcf import Records


@dataclass(frozen=True)
class Contrast:
    """One comparison: are the positives distinguished from the negatives?"""

    name: str
    used: np.ndarray
    """(variants,) bool"""
    positive: np.ndarray
    """(variants,) bool"""
    consequence: str = ""
    """Which all of its variants have; "" if several"""


@dataclass(frozen=True)
class VariantSet:
    """Variants with known answers."""

    name: str
    genomes: list[Path]
    records: Records
    contrasts: list[Contrast]
    group: np.ndarray
    """(variants,) what is resampled as a whole"""
    by_group: bool = False
    """Report the mean AUROC within groups too"""
    consequence: np.ndarray | None = None
    """(variants,) str: what each does, by the set's own annotation"""
    label: np.ndarray | None = None
    """(variants,) bool: harmful, where the set says so of all"""
    genes: tuple[str, ...] = ()
    """Whose variants a probe of this set may not have been fitted on"""
    others: dict[str, np.ndarray] = field(default_factory=dict)
    """(variants,) scores of others, higher is more harmful"""


def rows_of(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def records_of(contigs: list[str], start: list[int], ref: list[str], alt: list[str]) -> Records:
    names = list(dict.fromkeys(contigs))
    index = {name: number for number, name in enumerate(names)}
    return Records(
        tuple(names), np.array([index[c] for c in contigs], np.int32), np.array(start, np.int64), list(ref), list(alt)
    )


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def numbers(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) if row[name] not in ("", "NA", "nan") else np.nan for row in rows])


def within(name: str, consequence: np.ndarray, positive: np.ndarray) -> list[Contrast]:
    """A contrast in each consequence that has ten variants of both kinds; "" is none."""
    enough = [
        kind
        for kind in sorted(set(consequence.tolist()) - {""})
        if min(positive[consequence == kind].sum(), (~positive[consequence == kind]).sum()) >= 10
    ]
    return [Contrast(f"{name}, {kind}", consequence == kind, positive, kind) for kind in enough]


def between(name: str, used: np.ndarray, consequence: np.ndarray, positive: str, negative: str) -> Contrast:
    """A consequence against another, whatever is known of the variants."""
    return Contrast(name, used & np.isin(consequence, (positive, negative)), consequence == positive)


def brca1(data: Path) -> VariantSet:
    folder = data / "brca1_sge"
    rows = rows_of(folder / "brca1_sge.tsv")
    start = [int(row["region_offset0"]) for row in rows]
    records = records_of(["BRCA1_region"] * len(rows), start, [r["ref"] for r in rows], [r["alt"] for r in rows])
    kind, consequence = column(rows, "class"), column(rows, "consequence")
    everything = np.ones(len(rows), bool)
    return VariantSet(
        "brca1",
        [folder / "brca1_region_GRCh37.fa.gz"],
        records,
        [
            Contrast("LOF against the rest", everything, kind == "LOF"),
            Contrast("LOF against FUNC", kind != "INT", kind == "LOF"),
            *within("LOF against the rest", consequence, kind == "LOF"),
            between("nonsense against synonymous", everything, consequence, "Nonsense", "Synonymous"),
            between("splice site against intron", everything, consequence, "Canonical splice", "Intronic"),
        ],
        np.array(start).astype(str),
        consequence=consequence,
        genes=("BRCA1",),
        others={name: numbers(rows, name) for name in ("CADD", "phyloP")},
    )


def clinvar(data: Path) -> VariantSet:
    rows = rows_of(data / "clinvar_2017" / "clinvar_labelled_snv.tsv.gz")
    records = records_of(
        [row["seq_source"] for row in rows],
        [int(row["seq_offset0"]) for row in rows],
        [row["ref"] for row in rows],
        [row["alt"] for row in rows],
    )
    positive, effect = column(rows, "binary") == "1", column(rows, "effect")
    everything = np.ones(len(rows), bool)
    genomes = [data / "genomes" / name for name in CLINVAR_GENOMES]
    return VariantSet(
        "clinvar",
        genomes,
        records,
        [
            Contrast("pathogenic against benign", everything, positive),
            *within("pathogenic against benign", effect, positive),
            between("nonsense against synonymous", everything, effect, "nonsense", "synonymous"),
            between("splice site against intron", everything, effect, "splice_site", "intron"),
        ],
        column(rows, "gene_filled"),
        consequence=effect,
        by_group=True,
        label=positive,
    )


CLINVAR_GENOMES = ("human_LRG_disease_genes_GRCh37.fa.gz", "human_chr20_GRCh37.fa.gz")


def bard1(data: Path) -> VariantSet:
    """On exon segments of at most 777 bases; a deletion's first base is the one before it."""
    folder = data / "bard1_sge"
    rows = [row for row in rows_of(folder / "BARD1_sge_on_segments.tsv.gz") if row["class"] != "indeterminate"]
    start = [int(row["pos_1based"]) - 1 for row in rows]
    segments = [row["segment"] for row in rows]
    records = records_of(segments, start, [r["ref"] for r in rows], [r["alt"] for r in rows])
    abnormal, kind = column(rows, "class") == "functionally_abnormal", column(rows, "consequence")
    snv = column(rows, "type") == "snv"
    return VariantSet(
        "bard1",
        [folder / "BARD1_sge_segments_hg38.fa"],
        records,
        [
            Contrast("abnormal against normal, SNV", snv, abnormal),
            Contrast("abnormal against normal, deletions of 3", ~snv, abnormal),
            *within("abnormal against normal", np.where(snv, kind, ""), abnormal),
            between("nonsense against synonymous", snv, kind, "stop_gained", "synonymous_variant"),
            between("splice site against intron", snv, kind, "splice_site_variant", "intron_variant"),
        ],
        np.array([f"{segment}:{position}" for segment, position in zip(segments, start, strict=True)]),
        consequence=np.where(snv, kind, "deletion of 3"),
        genes=("BARD1",),
    )


def kg1000(data: Path) -> VariantSet:
    rows = rows_of(data / "kg1000_chr20" / "kg_chr20_1-2Mb_snv.tsv.gz")
    start = np.array([int(row["pos_hg19"]) - 1 for row in rows])
    frequency, count = numbers(rows, "AF"), numbers(rows, "AC")
    singleton, common = count == 1, (frequency >= 0.05) & (frequency <= 0.95)
    ancestral = column(rows, "ancestral")
    known = np.char.upper(ancestral) == column(rows, "ref")
    return VariantSet(
        "kg1000",
        [data / "genomes" / "human_chr20_GRCh37.fa.gz"],
        records_of(["20"] * len(rows), start.tolist(), [r["ref"] for r in rows], [r["alt"] for r in rows]),
        [
            Contrast("singleton against common", singleton | common, singleton),
            Contrast("singleton against common, REF ancestral", (singleton | common) & known, singleton),
        ],
        (start // 10_000).astype(str),
    )


YEAST_CHANGES = 30


def yeast(data: Path) -> VariantSet:
    """Random changes in open reading frames of 300 codons and more, `YEAST_CHANGES` in each."""
    genome = data / "genomes" / "yeast_sacCer3.fa.gz"
    store = open_genome([genome])
    rng = np.random.default_rng(0)
    contigs: list[str] = []
    start: list[int] = []
    alt: list[int] = []
    effect: list[int] = []
    for contig in store.contigs:
        for gene in open_reading_frames(store, Interval(contig.name, 0, contig.length), least=900):
            there = np.sort(rng.choice(np.arange(gene.start, gene.end), YEAST_CHANGES, replace=False))
            tokens = store.read(contig.name, gene.start, gene.end)[there - gene.start] & TOKEN_BITS
            changed = ((tokens + rng.integers(1, 4, there.size)) % 4).astype(np.uint8)
            contigs += [contig.name] * there.size
            start += there.tolist()
            alt += changed.tolist()
            effect += changes_of_transcript(store, gene, there, changed).effect.tolist()
    ref = [decode(store.read(name, at, at + 1) & TOKEN_BITS) for name, at in zip(contigs, start, strict=True)]
    consequence = np.array(EFFECTS)[effect]
    everything = np.ones(len(start), bool)
    return VariantSet(
        "yeast",
        [genome],
        records_of(contigs, start, ref, ["ACGT"[base] for base in alt]),
        [
            between(f"{kind} against synonymous", everything, consequence, kind, "synonymous")
            for kind in ("nonsense", "missense")
        ],
        np.repeat(np.arange(len(start) // YEAST_CHANGES), YEAST_CHANGES).astype(str),
        consequence=consequence,
    )


OWN = "own"
"""The name of the set that `own` reads"""
BLOCK = 10_000
"""Bases that are resampled as a whole where no genes are named"""


def own(
    path: Path, genomes: list[Path], label: str, positive: Sequence[str], effect: str | None, genes: str | None
) -> VariantSet:
    """The variants of a VCF, TSV or CSV that have the INFO field or column `label`; `positive` are its values of the
    harmful ones. Each effect is a consequence; genes stay together, else blocks of `BLOCK` bases do."""
    names = {"label": label.lower(), "effect": effect and effect.lower(), "genes": genes and genes.lower()}
    rows = [row for row in read_rows(path) if names["label"] in row.columns]
    harmful = np.array([row.columns[names["label"]] in positive for row in rows])
    if not rows or harmful.all() or not harmful.any():
        what = f"{int(harmful.sum())} of {len(rows)} variants have {label} {' or '.join(positive)}"
        raise InputError(f"{path}: {what}; both harmful and other ones are needed: see --label and --positive")
    kind = np.array([row.columns.get(names["effect"] or "", "") for row in rows])
    blocks = [[f"{row.contig}:{row.start // BLOCK}"] for row in rows]
    named = [names_in(row.columns.get(names["genes"] or "", "")) for row in rows]
    groups = joined_groups([own or other for own, other in zip(named, blocks, strict=True)],
                           [(row.contig, row.start) for row in rows])  # fmt: skip
    return VariantSet(
        OWN,
        genomes,
        records_of([r.contig for r in rows], [r.start for r in rows], [r.ref for r in rows], [r.alt for r in rows]),
        [Contrast("harmful against the rest", np.ones(len(rows), bool), harmful),
         *within("harmful against the rest", kind, harmful)],
        np.array(groups),
        consequence=kind,
        label=harmful,
    )  # fmt: skip


SETS = {"brca1": brca1, "clinvar": clinvar, "bard1": bard1, "kg1000": kg1000, "yeast": yeast}


def chosen(
    variants: VariantSet, limit: int | None, without: Sequence[str] = (), inside: Path | None = None
) -> VariantSet:
    """Those on other contigs than `without`, in intervals of the BED file, and of these `limit`, spread evenly."""
    names = np.array(variants.records.contigs)[variants.records.contig]
    wanted = ~np.isin(np.char.replace(names, "chr", ""), [name.removeprefix("chr") for name in without])
    if inside is not None:
        there = np.zeros_like(wanted)
        for contig, first, end, *_ in (line.split("\t") for line in inside.read_text().splitlines()):
            there |= (names == contig) & (variants.records.start >= int(first)) & (variants.records.start < int(end))
        wanted &= there
    rows = np.flatnonzero(wanted)
    if limit is not None and limit < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]
    if len(rows) == len(names):
        return variants
    old = variants.records
    return replace(
        variants,
        records=Records(
            old.contigs,
            old.contig[rows],
            old.start[rows],
            [old.ref[r] for r in rows.tolist()],
            [old.alt[r] for r in rows.tolist()],
        ),
        contrasts=[replace(c, used=c.used[rows], positive=c.positive[rows]) for c in variants.contrasts],
        group=variants.group[rows],
        consequence=None if variants.consequence is None else variants.consequence[rows],
        label=None if variants.label is None else variants.label[rows],
        others={name: values[rows] for name, values in variants.others.items()},
    )
