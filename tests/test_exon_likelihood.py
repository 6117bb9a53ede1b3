"""The pipeline of exons against introns: its reading of the LRG genes, and the whole of it on made records."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from dnamamba.alphabet import TOKEN_BITS, decode, reverse_complement
from dnamamba.genome.genes import sites
from dnamamba.genome.store import TokenStore, open_genome

ROOT = Path(__file__).resolve().parent.parent
HEADER = "lrg gene transcript feature number lrg_start lrg_end GRCh37_chrom GRCh37_start GRCh37_end GRCh37_strand\n"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    specification = importlib.util.spec_from_file_location("exon_likelihood", ROOT / "pipelines" / "exon_likelihood.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def read_at(store: TokenStore, contig: str, position: int, reverse: bool, offset: int, length: int) -> str:
    """`length` bases from `offset` of a site on, in the direction of the gene."""
    first = position - offset - length + 1 if reverse else position + offset
    tokens = store.read(contig, first, first + length) & np.uint8(TOKEN_BITS)
    return decode(reverse_complement(tokens) if reverse else tokens)


@pytest.mark.skipif("DNAMAMBA_TEST_DATA" not in os.environ, reason="DNAMAMBA_TEST_DATA names no folder with genomes/")
def test_sites_of_real_genes_are_gt_ag_and_atg(pipeline: ModuleType, tmp_path: Path) -> None:
    genomes = Path(os.environ["DNAMAMBA_TEST_DATA"]) / "genomes"
    store = open_genome([genomes / "human_LRG_disease_genes_GRCh37.fa.gz"], tmp_path / "lrg.dnamamba")
    genes = pipeline.read_lrg(genomes / "human_LRG_exons_GRCh37.tsv", store.contigs)
    assert len({gene.contig for gene in genes}) > 450
    for kind, offset, expected, least in (("donor", 0, "GT", 0.97), ("acceptor", -2, "AG", 0.98)):
        found = [read_at(store, *site, offset, 2) for site in zip(*sites(genes, kind), strict=True)]
        assert len(found) > 6_000
        assert np.mean([text == expected for text in found]) > least
    starts = [read_at(store, *site, 0, 3) for site in zip(*sites(genes, "start codon"), strict=True)]
    assert len(starts) > 450 and np.mean([text == "ATG" for text in starts]) > 0.95


def test_whole_on_made_records(pipeline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a table of likelihoods that is −1 nat in exons, −2 in introns and missing elsewhere."""
    rng = np.random.default_rng(0)
    names = ["LRG_1|AAA|x|y|gene_strand=+", "LRG_2|BBB|x|y|gene_strand=-"]
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{''.join(rng.choice(list('ACGT'), 1000))}\n" for name in names))
    rows = [f"LRG_{n}\t{gene}\tt1\texon\t{i}\t{start}\t{end}\t1\t0\t0\t+\n" for n, gene in ((1, "AAA"), (2, "BBB"))
            for i, (start, end) in enumerate([(101, 200), (401, 450), (601, 700)])]  # fmt: skip
    rows += ["LRG_1\tAAA\tt1\tcoding_span\t\t151\t650\t1\t0\t0\t+\n"]
    (tmp_path / "exons.tsv").write_text(HEADER.replace(" ", "\t") + "".join(rows))
    tables = []
    for name, is_reverse in zip(names, (False, True), strict=True):
        value = np.full(1000, np.nan)
        value[100:700] = -2
        for start, end in ((100, 200), (400, 450), (600, 700)):
            value[start:end] = -1
        value = value[::-1] if is_reverse else value
        tables.append(
            pl.DataFrame({"contig": [name] * 1000, "position": np.arange(1000), "mean_log_likelihood": value.copy()})
        )
    table = pl.concat(tables).with_columns(mean_entropy=pl.lit(1.0))
    table.write_parquet(tmp_path / "l.parquet")
    where = ["--genome", f"{tmp_path}/g.fa", "--exons", f"{tmp_path}/exons.tsv", "--out", f"{tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["exon_likelihood.py", *where, "--likelihoods", f"{tmp_path}/l.parquet"])
    pipeline.main()
    found = {row[0]: row[1:] for row in pl.read_csv(tmp_path / "out" / "classes.csv").iter_rows()}
    assert found["coding"] == (50 + 50 + 50, pytest.approx(1 / np.log(2)))
    assert found["exon, not coding"] == (500 - 150, pytest.approx(1 / np.log(2)))
    assert found["intron"] == (2 * 350, pytest.approx(2 / np.log(2)))
    genes = pl.read_csv(tmp_path / "out" / "genes.csv")
    assert genes["gene"].to_list() == ["AAA", "BBB"]
    assert genes["bases_exon"].to_list() == [250, 250] and genes["bits_intron"].to_list() == pytest.approx(
        [2 / np.log(2)] * 2
    )
    profiles = pl.read_csv(tmp_path / "out" / "profiles.csv")
    donor = profiles.filter((pl.col("site") == "donor") & pl.col("measure").str.starts_with("gain"))
    assert donor["count"].max() == 4
    assert donor.filter(pl.col("offset") < 0)["mean"].to_list() == pytest.approx([2 - 1 / np.log(2)] * 25)
    assert donor.filter(pl.col("offset") >= 0)["mean"].to_list() == pytest.approx([2 - 2 / np.log(2)] * 25)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "classes.csv", "genes.csv", "profiles.csv", "exon_against_intron.png", "splice_sites.png", "locus.png"
    }  # fmt: skip


def test_more_genes_contain_fewer(pipeline: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text("".join(f">LRG_{number}|x\nACGT\n" for number in range(20)))
    contigs = open_genome(tmp_path / "g.fa").contigs
    few, many = (pipeline.choose(contigs, count, 0, None) for count in (5, 9))
    assert many[:5] == few
    assert {contig.name for contig in few} != {contig.name for contig in pipeline.choose(contigs, 5, 1, None)}
    (tmp_path / "keep").write_text("LRG_3\nLRG_4\n")
    assert {c.name for c in pipeline.choose(contigs, None, 0, tmp_path / "keep")} == {"LRG_3|x", "LRG_4|x"}
