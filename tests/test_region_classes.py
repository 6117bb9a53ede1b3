"""Classes of regions from genes and BED files, and the windows that show a class, against plain loops over bases."""

import csv
import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnamamba.errors import InputError
from dnamamba.genome.genes import read_genes
from dnamamba.genome.intervals import Interval
from dnamamba.genome.region_classes import UNCLASSED, read_region_classes
from dnamamba.genome.region_windows import RegionPlan, cut
from dnamamba.genome.store import TokenStore, open_genome

LENGTH = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Two contigs with a gap of N and lower case; the second is in no file."""
    chance = np.random.default_rng(1)
    letters = ["".join(chance.choice(list("ACGT"), size)) for size in (6000, 500)]
    first = f"{letters[0][:900]}{'N' * 200}{letters[0][1100:2400]}{letters[0][2400:2700].lower()}{letters[0][2700:]}"
    path = tmp_path_factory.mktemp("genome") / "two.fa"
    path.write_text(f">chr1\n{first}\n>chr2\n{letters[1]}\n")
    return open_genome(path)


GENES = [
    ("+", "coding", [(2001, 2100), (2301, 2500), (2601, 2900)], [(2051, 2100), (2301, 2500), (2601, 2700)]),
    ("-", "back", [(4501, 4600), (4901, 5000)], [(4551, 4600), (4901, 4950)]),
    ("-", "silent", [(5501, 5700)], []),
]
"""Strand, name, exons and CDS, from 1 with the end"""


@pytest.fixture(scope="module")
def gtf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genes") / "genes.gtf"
    lines = [
        f'1\tx\t{kind}\t{first}\t{last}\t.\t{strand}\t.\tgene_id "{name}"; transcript_id "{name}";\n'
        for strand, name, exons, coding in GENES
        for kind, pairs in (("exon", exons), ("CDS", coding))
        for first, last in pairs
    ]
    path.write_text("".join(lines))
    return path


def by_base(store: TokenStore) -> list[str]:
    """The class of each base of chr1, by asking every rule in the order of precedence."""

    def inside(base: int, pairs: list[tuple[int, int]]) -> bool:
        return any(first - 1 <= base < last for first, last in pairs)

    masked = store.read("chr1", 0, 6000) >= 128
    found = []
    for base in range(6000):
        classes = set()
        for strand, _, exons, coding in GENES:
            start, end = exons[0][0] - 1, exons[-1][1]
            if inside(base, coding):
                classes.add("CDS")
            for (_, left), (right, _) in itertools.pairwise(exons):
                if abs(base + 0.5 - left) < 20 or abs(base + 0.5 - (right - 1)) < 20:
                    classes.add("splice")
            if inside(base, exons) and coding and not inside(base, coding):
                is_left = base < coding[0][0] - 1
                classes.add("5UTR" if is_left == (strand == "+") else "3UTR")
            if inside(base, exons) and not coding:
                classes.add("exon")
            if (end <= base < end + 1000) if strand == "-" else (start - 1000 <= base < start):
                classes.add("promoter")
            if start <= base < end and not inside(base, exons):
                classes.add("intron")
        order = ("CDS", "splice", "5UTR", "3UTR", "exon", "promoter")
        rest = "repeat" if masked[base] else "intron" if "intron" in classes else "intergenic"
        found.append(next((name for name in order if name in classes), rest))
    return found


def test_classes_of_genes_are_those_of_every_base(store: TokenStore, gtf: Path) -> None:
    classes = read_region_classes([gtf], store)
    names = (*classes.names, UNCLASSED)
    expected = by_base(store) + [UNCLASSED] * 500
    assert set(expected) == set(names)
    assert [names[number] for number in classes.at(0, store.bases).tolist()] == expected
    for start, end in ((0, 6500), (2040, 2060), (2060, 2061), (5990, 6010)):
        part = expected[start:end]
        assert [names[number] for number in classes.at(start, end).tolist()] == part
        assert classes.bases(start, end).tolist() == [part.count(name) for name in names]
        runs = classes.runs("CDS", start, end).tolist()
        assert [base for first, last in runs for base in range(first, last)] == [
            start + at for at, name in enumerate(part) if name == "CDS"
        ]


def test_names_of_bed_files_come_first_and_known_ones_in_their_order(store: TokenStore, tmp_path: Path) -> None:
    bed = tmp_path / "classes.bed"
    bed.write_text("1\t10\t40\trepeat\nchr1\t20\t30\tenhancer\n1\t25\t50\tCDS\n1\t28\t35\tsilencer\n")
    classes = read_region_classes([bed], store)
    assert classes.names == ("enhancer", "silencer", "CDS", "repeat")
    edges = [(10, 20, "repeat"), (20, 30, "enhancer"), (30, 35, "silencer"), (35, 50, "CDS")]
    for start, end, name in edges:
        assert set(classes.at(start, end).tolist()) == {classes.names.index(name)}
    assert set(classes.at(50, store.bases).tolist()) == {classes.none}


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("bare.bed", "chr1\t1\t2\n", "line 1: chr1:1-2 has the name ''"),
    ("blank.bed", "chr1\t1\t2\tmy class\n", "the name 'my class'"),
    ("genes.txt", "chr1\t1\t2\tCDS\n", "called .bed .gtf .gff .gff3"),
])  # fmt: skip
def test_bad_files(name: str, text: str, expected: str, store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_region_classes([tmp_path / name], store)
    assert expected in str(error.value) and name in str(error.value)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 90)), max_size=20), st.integers(1, 40))
def test_spans_hold_every_base_once(gaps: list[tuple[int, int]], most: int) -> None:
    at, pairs = 0, []
    for gap, length in gaps:
        pairs.append((at + gap, at + gap + length))
        at += gap + length
    wanted = {base for start, end in pairs for base in range(start, end)}
    spans = cut(np.array(pairs, np.int64).reshape(-1, 2), most).tolist()
    assert all(0 < end - start <= most for start, end in spans)
    assert all(start in wanted and end - 1 in wanted for start, end in spans)
    seen = [base for start, end in spans for base in range(start, end) if base in wanted]
    assert sorted(seen) == sorted(wanted)


def test_an_epoch_shows_every_base_of_the_class_at_any_position(store: TokenStore, gtf: Path) -> None:
    classes = read_region_classes([gtf], store)
    intervals = (Interval("chr1", 0, 4520), Interval("chr1", 4530, 6000))
    plan = RegionPlan(store, intervals, classes, "CDS", LENGTH, seed=3, reverse_complement=True)
    wanted = {base for i in intervals for base in range(i.start, i.end) if classes.at(base, base + 1) == 0}
    offsets = set()
    for epoch in range(3):
        indices = np.arange(plan.epoch_size(epoch))
        starts = plan.positions(epoch, indices)
        assert all(any(i.start <= s and s + LENGTH + 1 <= i.end for i in intervals) for s in starts.tolist())
        targets = {base for start in starts.tolist() for base in range(start + 1, start + LENGTH + 1)}
        assert wanted <= targets
        tokens, flags = plan.batch(epoch, indices)
        assert 0 < flags.sum() < len(flags)
        for index in indices.tolist():  # one by one as all at once: nothing is drawn in passing
            one, flag = plan.batch(epoch, np.array([index]))
            assert (one[0] == tokens[index]).all() and flag[0] == flags[index]
            [window] = plan.windows(epoch, index)
            assert window[1:] == (starts[index], starts[index] + LENGTH + 1, flags[index])
            assert (store.read("chr1", window.start, window.end) == one[0]).all()
            offsets.add(min(wanted, key=lambda base, w=window: (base < w.start, base)) - window.start)
    assert len(offsets) > LENGTH // 8, "the class lies at many positions of a window"


def test_windows_keep_away_from_gaps(store: TokenStore, tmp_path: Path) -> None:
    bed = tmp_path / "near.bed"
    bed.write_text("chr1\t850\t1150\tnear\nchr1\t920\t960\tgap\n")
    classes = read_region_classes([bed], store)
    intervals = (Interval("chr1", 0, 6000),)
    plan = RegionPlan(store, intervals, classes, "near", LENGTH, seed=0, max_n_fraction=0.1)
    tokens, _ = plan.batch(0, np.arange(plan.epoch_size(0)))
    assert ((tokens & 127) == 4).mean(1).max() <= 0.1
    with pytest.raises(InputError, match="no gap region"):
        RegionPlan(store, intervals, classes, "gap", LENGTH, seed=0, max_n_fraction=0.1)


@pytest.mark.skipif("DNAMAMBA_TEST_DATA" not in os.environ, reason="DNAMAMBA_TEST_DATA names no folder with genomes/")
def test_real_genes(tmp_path: Path) -> None:
    """The exons and junctions of four disease genes, and the windows of their splice sites."""
    genomes = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "genomes"
    fasta, gtf = tmp_path / "four.fa", tmp_path / "four.gtf"
    with gzip.open(genomes / "human_LRG_disease_genes_GRCh37.fa.gz", "rt") as file:
        records = file.read(2_000_000).split(">")[1:5]
    fasta.write_text("".join(f">{record}" for record in records))
    begins = {record.partition("|")[0]: int(record.split(":")[2].partition("-")[0]) for record in records}
    with (genomes / "human_LRG_exons_GRCh37.tsv").open() as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t") if row["lrg"] in begins and row["feature"] == "exon"
        ]
    lines = []
    for row in rows:
        name, first = row["lrg"], begins[row["lrg"]] - 1
        where = f"{int(row['GRCh37_start']) - first}\t{int(row['GRCh37_end']) - first}\t.\t{row['GRCh37_strand']}"
        lines.append(f'{name}\tx\texon\t{where}\t.\ttranscript_id "{name}{row["transcript"]}";\n')
    gtf.write_text("".join(lines))
    store = open_genome(fasta)
    classes = read_region_classes([gtf], store)
    bases = dict(zip((*classes.names, UNCLASSED), classes.bases(0, store.bases).tolist(), strict=True))
    junctions = sum(2 * (len(gene.exons) - 1) for gene in read_genes(gtf, store))
    assert junctions > 40 and 20 * junctions < bases["splice"] <= 40 * junctions
    assert bases["intron"] > 5 * bases["exon"] > 0 and bases["intergenic"] > 0 and bases[UNCLASSED] == 0
    intervals = tuple(Interval(contig.name, 0, contig.length) for contig in store.contigs)
    plan = RegionPlan(store, intervals, classes, "splice", 512, seed=0)
    starts = plan.positions(0, np.arange(plan.epoch_size(0)))
    shown = sum(classes.bases(start, start + 513)[classes.names.index("splice")] for start in starts.tolist())
    assert shown >= bases["splice"], "each at least once"
    assert shown / (513 * len(starts)) > 4 * bases["splice"] / store.bases
