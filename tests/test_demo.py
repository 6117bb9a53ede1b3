"""The demo genome: there, whole, and what data/ says about it."""

import fnmatch
import gzip
import hashlib
import itertools
import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from dnamamba import demo, examples
from dnamamba.alphabet import SOFT_MASK_BIT, TOKEN_BITS, decode, encode
from dnamamba.formats import read_card
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.effects import effects_of_changes
from dnamamba.genome.genes import read_genes
from dnamamba.genome.regions import parse_region
from dnamamba.genome.splits import make_splits
from dnamamba.genome.store import open_genome

ROOT = Path(__file__).resolve().parent.parent
RECORD = json.loads((ROOT / "data" / "demo_genome.json").read_text())
LOCUS = json.loads((ROOT / "data" / "human_locus.json").read_text())
CODE = {
    "".join(codon): amino
    for codon, amino in zip(
        itertools.product("TCAG", repeat=3),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
}


def test_the_shipped_file_is_the_recorded_one():
    compressed = demo.genome_path().read_bytes()
    assert (ROOT / RECORD["path"]).name == demo.FILE_NAME
    assert len(compressed) == RECORD["bytes"] < 2_000_000
    assert hashlib.sha256(compressed).hexdigest() == RECORD["sha256"]


def test_it_holds_one_complete_chromosome_of_bases_alone():
    header, *lines = gzip.decompress(demo.genome_path().read_bytes()).splitlines()
    bases = b"".join(lines)
    assert header.decode() == f">{RECORD['contig']}"
    assert {base: bases.count(base.encode()) for base in "ACGT"} == RECORD["bases"]
    assert len(bases) == sum(RECORD["bases"].values()) == 4_639_675
    assert hashlib.sha256(bases).hexdigest() == RECORD["bases_sha256"]


def test_data_readme_quotes_the_same_sums():
    reported = (ROOT / "data" / "README.md").read_text()
    source = RECORD["source"]
    for value in (RECORD["sha256"], RECORD["bases_sha256"], source["deb_sha256"], source["version"], source["member"]):
        assert value in reported


def test_an_installation_without_it_says_so(monkeypatch):
    monkeypatch.setattr(demo, "FILE_NAME", "lost.fa.gz")
    with pytest.raises(FileNotFoundError, match="reinstall dnamamba"):
        demo.genome_path()


def test_the_human_locus_is_the_recorded_one():
    """And data/README.md quotes where it comes from."""
    fasta, genes = gzip.decompress(demo.locus_path().read_bytes()), demo.locus_genes_path().read_bytes()
    assert hashlib.sha256(fasta).hexdigest() == LOCUS["fasta_sha256"]
    assert hashlib.sha256(genes).hexdigest() == LOCUS["genes_sha256"]
    assert demo.locus_path().stat().st_size < 40_000
    reported = (ROOT / "data" / "README.md").read_text()
    for key in ("deb_sha256", "wheel_sha256", "fasta_sha256", "genes_sha256", "member"):
        assert LOCUS[key] in reported


def test_its_genes_are_genes():
    """Frames without a stop before their end, as long as the proteins; GT-AG introns; repeats in lower case."""
    store = open_genome(demo.locus_path())
    (contig,) = store.contigs
    assert (contig.name, contig.length) == (examples.HUMAN_CONTIG, LOCUS["end"] - LOCUS["start"])
    tokens = store.read(contig.name, 0, contig.length)
    assert 0.2 < (tokens >= SOFT_MASK_BIT).mean() < 0.5
    genes = {gene.name: gene for gene in read_genes(demo.locus_genes_path(), store)}
    amino_acids = {name: count for name, _, count in LOCUS["genes"]}
    assert genes.keys() == amino_acids.keys()

    def spliced(gene, intervals):
        parts = [decode(store.read(contig.name, start, end) & TOKEN_BITS) for start, end in intervals]
        return reverse("".join(parts)) if gene.reverse else "".join(parts)

    def reverse(letters):
        return letters.translate(str.maketrans("ACGT", "TGCA"))[::-1]

    ends = []
    for name, gene in genes.items():
        coding = spliced(gene, gene.coding.tolist())
        protein = "".join(CODE[coding[at : at + 3]] for at in range(0, len(coding), 3))
        assert protein.index("*") == len(protein) - 1 == amino_acids[name] and protein[0] == "M", name
        for (_, start), (end, _) in itertools.pairwise(gene.exons.tolist()):
            ends.append(tuple(spliced(gene, [pair]) for pair in ((start, start + 2), (end - 2, end))))
            ends[-1] = ends[-1][::-1] if gene.reverse else ends[-1]
    assert len(ends) > 25 and ends.count(("GT", "AG")) >= len(ends) - 1, ends
    region = parse_region(examples.HUMAN_LOCUS, store)
    inside = [pair for gene in genes.values() for pair in gene.coding.tolist() if region.start <= pair[0] < region.end]
    assert len(inside) == 27 and "27 coding exons" in (ROOT / "dnamamba" / "examples.py").read_text()


def test_the_variants_of_the_locus_do_what_they_say(tmp_path):
    """They are what the script draws; each REF is the genome's, and deletions keep the frame."""
    sys.path.insert(0, str(ROOT / "data"))
    import make_human_variants

    make_human_variants.main(tmp_path / "again.vcf")
    text = demo.locus_variants_path().read_text()
    assert (tmp_path / "again.vcf").read_text() == text
    store = open_genome(demo.locus_path(), store=tmp_path / "locus.dnamamba")
    genes = read_genes(demo.locus_genes_path(), store)
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    assert len(rows) == 18
    for contig, position, name, ref, alt, *_, info in rows:
        start = int(position) - 1
        assert decode(store.read(contig, start, start + len(ref)) & TOKEN_BITS) == ref
        if len(ref) == 1:
            [effect] = effects_of_changes(store, genes, contig, np.array([start]), encode(alt))
            assert info == f"EFFECT={effect.replace(' ', '_')}"
        else:
            coding = next(gene.coding for gene in genes if name.startswith(gene.name))
            assert len(ref) - len(alt) == 3 and any(a <= start + 1 and start + 4 <= b for a, b in coding.tolist())


@pytest.mark.skipif("DNAMAMBA_TEST_DATA" not in os.environ, reason="DNAMAMBA_TEST_DATA names no folder of genomes")
def test_the_human_locus_was_not_trained_on(tmp_path):
    """It is what chromosome 20 has there, and lies in the test split of the model that comes with the package."""
    path = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "genomes" / "human_chr20_GRCh37.fa.gz"
    store, locus = open_genome(path, store=tmp_path / "chr20.dnamamba"), open_genome(demo.locus_path())
    start, end = LOCUS["start"], LOCUS["end"]
    there, here = (each & TOKEN_BITS for each in (store.read("20", start, end), locus.tokens[: end - start]))
    assert np.array_equal(there, here)
    card = read_card(examples.HUMAN_CHECKPOINT)["provenance"]
    length = card["settings"]["length"]
    splits = make_splits(store, select_contigs(store, None), context_length=length, validation_length=length)
    assert splits.fingerprint == card["splits"]
    assert any(interval.start <= start and end <= interval.end for interval in splits.test)


def test_a_wheel_holds_every_file_of_the_package():
    """By the patterns in pyproject.toml, as setuptools reads them: relative to each package."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for folder in ("demo", "bundled", "pages"):
        root = ROOT / "dnamamba" / folder
        wanted = [*patterns["*"], *patterns.get(f"dnamamba.{folder}", [])]
        for path in (each.relative_to(root) for each in root.rglob("*") if each.is_file()):
            if path.suffix not in (".py", ".pyc") and path.name != "NOTICE" and ".dnamamba" not in str(path):
                assert any(fnmatch.fnmatch(str(path), pattern) for pattern in wanted), path
