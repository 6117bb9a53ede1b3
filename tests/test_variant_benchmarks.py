"""Scores of labelled variants are kept set by set, and what is there is not scored again."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

import variant_benchmarks
import variant_sets
from variant_sets import Contrast, VariantSet, records_of

from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from tests.tiny_models import random_bases, tiny_model

COUNT = 40


def labelled(name: str, contig: str):
    """A function from a folder to variants of its genome, every third one harmful, in genes of four."""

    def make(data: Path) -> VariantSet:
        bases = random_bases(400, 3)
        (data / f"{name}.fa").write_text(f">{contig}\n{bases}\n")
        start = list(range(40, 40 + 8 * COUNT, 8))
        alt = ["ACGT"[("ACGT".index(bases[at]) + 1) % 4] for at in start]
        records = records_of([contig] * COUNT, start, [bases[at] for at in start], alt)
        positive = np.arange(COUNT) % 3 == 0
        contrasts = [Contrast("harmful against the rest", np.ones(COUNT, bool), positive)]
        group = np.array([f"gene{number // 4}" for number in range(COUNT)])
        return VariantSet(name, [data / f"{name}.fa"], records, contrasts, group, label=positive)

    return make


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, contig in (("clinvar", "chr7"), ("brca1", "17")):
        monkeypatch.setitem(variant_benchmarks.SETS, name, labelled(name, contig))
    save_checkpoint(tiny_model(), tmp_path / "model", {"settings": {"length": 64}})
    flags = ["--checkpoint", str(tmp_path / "model"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    return ["variant_benchmarks.py", "scores", *flags, "--context", "64", "--sets", "clinvar", "brca1"]


def test_a_set_is_scored_once(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", line)
    real, ended = variant_benchmarks.save_scores, []

    def once(folder: Path, name: str, variants: VariantSet, values: dict[str, np.ndarray]) -> None:
        if ended:
            raise KeyboardInterrupt
        ended.append(name)
        real(folder, name, variants, values)

    monkeypatch.setattr(variant_benchmarks, "save_scores", once)
    with pytest.raises(KeyboardInterrupt):
        variant_benchmarks.main()
    assert ended == ["clinvar"] and [path.name for path in (tmp_path / "out").glob("*.npz")] == ["scores-clinvar.npz"]
    kept = (tmp_path / "out" / "scores-clinvar.npz").stat().st_mtime_ns
    monkeypatch.setattr(variant_benchmarks, "save_scores", real)
    variant_benchmarks.main()
    assert (tmp_path / "out" / "scores-clinvar.npz").stat().st_mtime_ns == kept
    with np.load(tmp_path / "out" / "scores-brca1.npz") as saved:
        assert np.isfinite(saved["llr"]).all() and "probe" not in saved.files


def test_a_probe_is_added_to_scores_that_are_there(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", line)
    variant_benchmarks.main()
    with np.load(tmp_path / "out" / "scores-brca1.npz") as saved:
        before = saved["llr"]
    monkeypatch.setattr(sys, "argv", [*line, "--probe", "32"])
    variant_benchmarks.main()
    with np.load(tmp_path / "out" / "scores-brca1.npz") as saved:
        assert (saved["llr"] == before).all() and np.isfinite(saved["probe"]).all()
        assert saved["group"].shape == (COUNT,)


def test_contigs_are_left_out_with_chr_or_without(tmp_path: Path) -> None:
    variants = labelled("clinvar", "chr7")(tmp_path)
    assert len(variant_sets.chosen(variants, None, ["7"]).records) == 0
    assert len(variant_sets.chosen(variants, None, ["17"]).records) == COUNT


def test_a_labelled_file_gives_a_leaderboard(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two effects of twenty variants each; one record's REF is wrong. Chance gives the share of harmful ones."""
    variants = labelled("mine", "chr7")(tmp_path)
    head = "##fileformat=VCFv4.2\n##contig=<ID=chr7>\n"
    head += "".join(f'##INFO=<ID={name},Number=1,Type=String,Description="">\n' for name in ("SIG", "MC", "GENE"))
    rows = []
    for number, (start, ref, alt) in enumerate(
        zip(variants.records.start.tolist(), variants.records.ref, variants.records.alt, strict=True)
    ):
        ref, alt = (alt, ref) if number == 1 else (ref, alt)
        info = f"SIG={'bad' if number % 2 else 'fine'};MC={'missense' if number < 20 else 'intron'};GENE=g{number // 4}"
        rows.append(f"chr7\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t{info}\n")
    text = head + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(rows)
    (tmp_path / "mine.vcf").write_text(text)
    flags = ["quality", "--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "own"), "--context", "64"]
    flags += ["--labelled", str(tmp_path / "mine.vcf"), "--genome", str(tmp_path / "mine.fa"), "--probe", "32"]
    columns = ["--label", "SIG", "--effect", "MC", "--genes", "GENE"]
    monkeypatch.setattr(sys, "argv", ["variant_benchmarks.py", *flags, *columns, "--positive", "bad"])
    variant_benchmarks.main()
    with (tmp_path / "own" / "leaderboard.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["consequence"] for row in table] == ["intron", "missense", "mean of consequences"]
    assert [(row["positives"], row["negatives"]) for row in table[:2]] == [("10", "10"), ("9", "10")]
    for key in ("chance", "AUPRC zero shot", "AUPRC probe"):
        each = [float(row[key]) for row in table]
        assert 0 < each[0] <= 1 and each[2] == pytest.approx((each[0] + each[1]) / 2)
    assert float(table[0]["chance"]) == 0.5
    assert (tmp_path / "own" / "leaderboard.md").read_text().count("\n") == 5
    monkeypatch.setattr(sys, "argv", ["variant_benchmarks.py", *flags, *columns, "--positive", "worse"])
    with pytest.raises(InputError, match=r"0 of 40 variants have SIG worse; both"):
        variant_benchmarks.main()
