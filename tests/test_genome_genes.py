"""Transcripts, their splice sites and starts, and reading frames, against sequences built to have them."""

from pathlib import Path

import numpy as np
import pytest

from dnamamba import demo
from dnamamba.alphabet import decode, encode, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.effects import effects_of_changes
from dnamamba.genome.genes import Gene, longest_transcripts, open_reading_frames, read_genes, repeats, sites
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import TokenStore, open_genome

#        0         1         2         3         4
#        01234567890123456789012345678901234567890123
PLUS = "ccATGGCAGTaaaaagAGGCAGTcccagTGGTAAcccccccccc"
"""Exons [2, 8), [16, 21), [28, 34): every intron from GT to AG, though the middle one's exon begins with AG"""
EXONS = [(2, 8), (16, 21), (28, 34)]


def write_genome(folder: Path) -> TokenStore:
    other = decode(reverse_complement(encode(PLUS)))
    (folder / "g.fa").write_text(f">chrP\n{PLUS}\n>chrM1\n{other}\n")
    return open_genome(folder / "g.fa")


def gff(contig: str, strand: str, pairs: list[tuple[int, int]], kind: str, attributes: str) -> str:
    return "".join(f"{contig}\tx\t{kind}\t{a + 1}\t{b}\t.\t{strand}\t.\t{attributes}\n" for a, b in pairs)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return write_genome(tmp_path)


def on_other_strand(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(len(PLUS) - b, len(PLUS) - a) for a, b in pairs]


@pytest.mark.parametrize("style", ["gff3", "gtf"])
def test_sites_are_where_the_sequence_has_them(store: TokenStore, tmp_path: Path, style: str) -> None:
    attributes = "ID=e;Parent=t1;gene=abc" if style == "gff3" else 'gene_id "g"; transcript_id "t1"; gene_name "abc";'
    text = ""
    for contig, strand, convert in (
        ("chrP", "+", list),
        ("M1", "-", on_other_strand),
    ):  # M1 is the file's name for chrM1
        text += gff(contig, strand, convert(EXONS), "exon", attributes) + gff(
            contig, strand, convert(EXONS), "CDS", attributes
        )
    path = tmp_path / f"a.{style}"
    path.write_text(text)
    genes = read_genes(path, store)
    assert [(gene.name, gene.contig, gene.reverse, len(gene.exons)) for gene in genes] == [
        ("abc", "chrM1", True, 3),
        ("abc", "chrP", False, 3),
    ]
    for kind, before, after in (("donor", 0, "GT"), ("acceptor", 2, "AG"), ("start codon", 0, "ATG")):
        found = sites(genes, kind)
        assert len(found.position) == (2 if kind == "start codon" else 4)
        for contig, position, reverse in zip(*found, strict=True):
            whole = store.read(contig, 0, len(PLUS)) & 0x7F
            offset = len(PLUS) - 1 - position if reverse else position
            read = decode(reverse_complement(whole) if reverse else whole)
            assert read[offset - before : offset - before + len(after)] == after, (kind, contig, position)
    assert [gene.contig for gene in read_genes(path, store, Interval("chrP", 20, 22))] == ["chrP"]
    assert read_genes(path, store, Interval("chrP", 8, 16)) == []


def test_sites_of_several_transcripts_count_once() -> None:
    one = Gene("a", "c", False, np.array([[0, 5], [10, 20], [30, 40]]), np.empty((0, 2), np.int64))
    two = Gene("a", "c", False, np.array([[0, 5], [10, 20]]), np.array([[2, 5], [10, 15]]))
    assert sites([one, two], "donor").position.tolist() == [5, 20]
    assert sites([one, two], "acceptor").position.tolist() == [10, 30]
    assert sites([one, two], "start codon").position.tolist() == [2]
    assert len(sites([], "donor").position) == 0
    assert longest_transcripts([two, one]) == [one]


def test_bad_annotation_is_reported_in_one_line(store: TokenStore, tmp_path: Path) -> None:
    path = tmp_path / "bad.gff3"
    path.write_text("chrP\tx\texon\t1\t500\t.\t+\t.\tID=e\n")
    with pytest.raises(InputError, match="line 1: end 500 is beyond contig chrP"):
        read_genes(path, store)


@pytest.mark.parametrize("strand", "+-")
def test_effects_around_the_origin_of_a_circle_are_those_of_the_circle_turned(tmp_path: Path, strand: str) -> None:
    """Turned by 40 bases no exon runs over the origin: an independent answer for every change."""
    text = "".join(np.random.default_rng(3).choice(list("ACGT"), 120))
    (tmp_path / "g.fa").write_text(f">c\n{text}\n>t\n{text[40:] + text[:40]}\n")
    both = open_genome(tmp_path / "g.fa")
    circle = "".join(f"{c}\tx\tchromosome\t1\t120\t.\t+\t.\tID={c};Is_circular=true\n" for c in "ct")
    pairs = [(95, 104), (110, 131)]  # 30 bases, the second exon over the origin
    path = tmp_path / "a.gff3"
    path.write_text(
        gff("c", strand, pairs, "exon", "Parent=a")
        + gff("c", strand, pairs, "CDS", "Parent=a")
        + circle
        + gff("t", strand, [(a - 40, b - 40) for a, b in pairs], "exon", "Parent=b")
        + gff("t", strand, [(a - 40, b - 40) for a, b in pairs], "CDS", "Parent=b")
    )
    genes = read_genes(path, both)
    assert [(gene.contig, gene.start, gene.end) for gene in genes] == [("c", -25, 11), ("c", 95, 131), ("t", 55, 91)]
    assert longest_transcripts(genes) == genes
    assert [(gene.start, gene.end) for gene in read_genes(path, both, Interval("c", 5, 8))] == [(-10, 11)]
    assert [(gene.start, gene.end) for gene in read_genes(path, both, Interval("c", 115, 118))] == [(110, 131)]
    start = np.arange(120).repeat(4)
    alt = np.tile(np.arange(4, dtype=np.uint8), 120)
    found = effects_of_changes(both, genes, "c", start, alt)
    assert (found == effects_of_changes(both, genes, "t", (start - 40) % 120, alt)).all()
    assert {"missense", "splice site", "intron", "between genes"} < set(found.tolist())


def test_lines_on_other_contigs_may_be_odd(store: TokenStore, tmp_path: Path) -> None:
    path = tmp_path / "a.gff3"
    path.write_text("else\tx\texon\tone\ttwo\t.\t+\t.\tID=e\nchrP\tx\texon\t1\t5\t.\t+\t.\tID=e\n")
    assert [gene.contig for gene in read_genes(path, store)] == ["chrP"]


def test_repeats_are_the_lower_case(store: TokenStore) -> None:
    masked = repeats(store, Interval("chrP", 1, 30))
    assert masked.tolist() == [[1, 2], [10, 16], [23, 28]]
    assert len(repeats(store, Interval("chrP", 2, 8))) == 0


def test_reading_frames_of_both_strands(tmp_path: Path) -> None:
    coding = "ATG" + "GCTGAC" * 60 + "TAA"
    spacer = "TAACTAACTAAC" * 4  # stop codons in all frames of both strands
    other = decode(reverse_complement(encode(coding)))
    sequence = spacer + coding + spacer + other + spacer + "N" * 10
    (tmp_path / "orf.fa").write_text(f">c\n{sequence}\n")
    store = open_genome(tmp_path / "orf.fa")
    begin = len(spacer)
    expected = [(begin, begin + len(coding), False)]
    begin += len(coding) + len(spacer)
    expected.append((begin, begin + len(coding), True))
    for first in (0, 1, 2, 5):
        found = open_reading_frames(store, Interval("c", first, len(sequence)), least=300)
        assert [(gene.start, gene.end, gene.reverse) for gene in found] == expected
    assert open_reading_frames(store, Interval("c", 0, len(sequence)), least=400) == []
    assert open_reading_frames(store, Interval("c", 0, 2), least=3) == []


def test_genes_of_the_demo_are_where_a_bacterium_has_them() -> None:
    """About one gene a kilobase, nearly all of the sequence coding: a bacterium's density."""
    store = open_genome(demo.genome_path())
    contig = store.contigs[0].name
    genes = open_reading_frames(store, Interval(contig, 100_000, 200_000))
    assert 70 <= len(genes) <= 140
    assert 0.75 <= sum(gene.end - gene.start for gene in genes) / 100_000 <= 1.05
