"""Percentiles among random variants of the same kind and length: how they are drawn, counted, kept and written."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from dnamamba import bundled, cli, score
from dnamamba.analysis.variants import neutral
from dnamamba.analysis.variants.neutral import KINDS, LONGEST, Neutral, classes_of, neutral_scores, random_alleles
from dnamamba.analysis.variants.plan import plan_for
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "two.fa"
    letters = np.random.default_rng(0).choice(list("ACGT"), 6000)
    letters[2000:2050] = "N"
    path.write_text(f">chr1\n{''.join(letters[:4000])}\n>chr2\n{''.join(letters[4000:])}\n>short\nACGTACGT\n")
    return path


def alleles_of(*pairs: tuple[int, str]) -> Alleles:
    count = len(pairs)
    lengths = np.array([length for length, _ in pairs], np.int64)
    zeros = np.zeros(count, np.int64)
    alts = [alt for _, alt in pairs]
    return Alleles(np.arange(count + 1), zeros.astype(np.int32), zeros, lengths, alts, zeros.astype(np.uint8))


def test_random_variants_are_of_every_kind_and_length_and_away_from_unknown_bases(genome: Path) -> None:
    store = open_genome(genome)
    found = random_alleles(store, 5, seed=1)
    names = classes_of(found)
    expected = {f"{kind} {longest}" for kind in KINDS[1:] for longest in LONGEST} | {"substitution 1"}
    assert set(names) == expected and all(names.count(name) == 5 for name in expected)
    for contig, start, length, alt in zip(found.contig, found.start, found.ref_length, found.alt, strict=True):
        record = store.contigs[contig]
        assert record.name != "short" and start >= 100 and start + length + 100 <= record.length
        ref = store.read(record.name, start - 100, start + length + 100)
        assert (ref & 127 < 4).all() and set(alt) <= set("ACGT")
        if length == len(alt) == 1:
            assert "ACGT"[ref[100]] != alt
    again, other = random_alleles(store, 5, seed=1), random_alleles(store, 5, seed=2)
    assert again.start.tolist() == found.start.tolist() != other.start.tolist()


def test_a_genome_of_unknown_bases_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.fa"
    path.write_text(f">chr1\n{'ACGTN' * 400}\n")
    with pytest.raises(InputError, match="too few intervals without N"):
        random_alleles(open_genome(path), 1, seed=0)


def test_classes_are_by_kind_and_length() -> None:
    cases = [(1, "A"), (3, ""), (0, "ACGTA"), (50, ""), (51, ""), (2, "A"), (0, ""), (1, "")]
    expected = ["substitution 1", "deletion 3", "insertion 6", "deletion 50", "", "", "", "deletion 1"]
    assert classes_of(alleles_of(*cases)) == expected


def test_percentiles_are_shares_of_the_random_ones() -> None:
    scores = np.array([-3.0, -1.0, -1.0, 0.0, 2.0])
    kept = Neutral({"deletion 3": scores}, {})
    llr = np.array([-9.0, -1.0, 0.5, 9.0, np.nan, 0.0])
    alleles = alleles_of(*[(3, "")] * 5, (9, ""))
    found = kept.percentile(alleles, llr)
    for value, percentile in zip(llr[:4], found[:4], strict=True):
        below, equal = (scores < value).sum(), (scores == value).sum()
        assert percentile == pytest.approx((below + equal / 2 + 0.5) / 6)
    assert np.isnan(found[4:]).all()


def test_score_writes_them_and_keeps_the_random_scores(
    genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neutral, "DRAWS", 4)
    monkeypatch.setattr(neutral, "LONGEST", (1, 3))
    torch.manual_seed(0)
    save_checkpoint(LanguageModel(ModelConfig(d_model=8, n_layer=1, d_state=4)), tmp_path / "model", {})
    store = open_genome(genome)
    refs = ["".join("ACGT"[token] for token in store.read("chr1", at, at + 4)) for at in (500, 700, 900)]
    rows = [(501, refs[0], refs[0][0]), (701, refs[1][0], refs[1][0] + "AC"), (901, refs[2], refs[2][0] + "TTTTTTT")]
    rows.append((501, refs[0][0], "<DEL>"))
    header = "##fileformat=VCFv4.4\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf = tmp_path / "some.vcf"
    vcf.write_text(header + "".join(f"chr1\t{at}\t.\t{ref}\t{alt}\t.\t.\tEND=504\n" for at, ref, alt in rows))
    flags = ["--checkpoint", tmp_path / "model", "--genome", genome, "--vcf", vcf, "--context", 256, "--percentile"]

    def run(out: str) -> int:
        return cli.run(score.main, [str(each) for each in (*flags, "--accelerator", "cpu", "--out", tmp_path / out)])

    assert run("first.tsv") == 0
    kept = json.loads((tmp_path / "model" / neutral.NAME).read_text())
    assert set(kept["scores"]) == {"substitution 1", "deletion 1", "deletion 3", "insertion 1", "insertion 3"}

    def again(*_: object) -> Neutral:
        raise AssertionError("measured once a model")

    monkeypatch.setattr(neutral, "measure", again)
    assert run("second.tsv") == 0
    tables = [pl.read_csv(tmp_path / name, separator="\t") for name in ("first.tsv", "second.tsv")]
    assert tables[0].equals(tables[1])
    percentile, llr = tables[0]["percentile"].to_list(), tables[0]["llr"].to_list()
    assert percentile[2] is None and percentile[0] == percentile[3] and llr[0] == llr[3], "<DEL> as it is written out"
    for row, name in ((0, "deletion 3"), (1, "insertion 3")):
        scores = np.array(kept["scores"][name])
        assert len(scores) == 4
        assert percentile[row] == pytest.approx(((scores < llr[row]).sum() + 0.5) / 5)


def test_they_are_kept_with_the_weights_that_gave_them(
    genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's in its checkpoint, which changes when it is resumed; a bundled model's in the user's cache."""
    monkeypatch.setattr(neutral, "DRAWS", 2)
    monkeypatch.setattr(neutral, "LONGEST", (1,))
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(d_model=8, n_layer=1, d_state=4)
    best = tmp_path / "run" / "checkpoints" / "best"
    bundled_folder = tmp_path / "package"
    monkeypatch.setattr(bundled, "FOLDER", bundled_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_checkpoint(LanguageModel(config), bundled_folder / "small", {})
    store, found = open_genome(genome), []

    def scores_of(checkpoint: Path) -> list[float]:
        inference = load_for_inference(checkpoint, "cpu")
        kept = neutral_scores(inference, store, plan_for(inference, context=256))
        return kept.scores["deletion 1"].tolist()

    for seed in (0, 1):
        torch.manual_seed(seed)
        save_checkpoint(LanguageModel(config), best, {}, overwrite=True)
        if found:  # as if another run's had been copied there
            (best / neutral.NAME).write_text(json.dumps(found[0]))
        scores = scores_of(tmp_path / "run")
        found.append(json.loads((best / neutral.NAME).read_text()))
        assert scores == found[-1]["scores"]["deletion 1"]
    assert found[0]["scores"] != found[1]["scores"]
    scores_of(Path("small"))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    assert not (bundled_folder / "small" / neutral.NAME).exists()
    assert (tmp_path / "cache" / "dnamamba" / "neutral_scores" / "small" / neutral.NAME).is_file()
