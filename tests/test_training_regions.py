"""Runs whose windows are drawn, and whose bases are weighed, by class of region."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnamamba import cli, pretrain
from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.region_classes import read_region_classes
from dnamamba.genome.store import open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.training.data import Stage, StepDataset
from dnamamba.training.regions import ClassedPlan, Regions, numbers_of, region_mixture, shares_of
from tests.full_disk import disk_is_full

QUICK = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
QUICK += ["--length", "128", "--batch_tokens", "1024", "--accelerator", "cpu", "--markov_order", "3"]
QUICK += ["--validation_tokens", "4096", "--log_every", "2"]
BANDS = [
    (start, start + 40, name) for name, first in (("box", 300), ("motif", 700)) for start in range(first, 40_000, 900)
]


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random genome with lower case every 500 bases, and classes.bed and masked.bed next to it."""
    folder = tmp_path_factory.mktemp("regions")
    letters = np.random.default_rng(0).choice(list("ACGT"), 60_000)
    masked = np.arange(60_000) % 500 < 120
    text = "".join(np.where(masked, np.char.lower(letters), letters).tolist())
    (folder / "genome.fa").write_text(f">chr1\n{text[:40_000]}\n>chr2\n{text[40_000:]}\n")
    (folder / "classes.bed").write_text("".join(f"chr1\t{start}\t{end}\t{name}\n" for start, end, name in BANDS))
    spans = [("chr1", at) for at in range(0, 40_000, 500)] + [("chr2", at) for at in range(0, 20_000, 500)]
    (folder / "masked.bed").write_text("".join(f"{name}\t{at}\t{at + 120}\trepeat\n" for name, at in spans))
    return folder / "genome.fa"


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def weights_of(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


def test_shares_are_those_of_the_windows_whatever_reads_them(genome: Path) -> None:
    store = open_genome(genome)
    classes = read_region_classes([genome.with_name("classes.bed")], store)
    intervals = (Interval("chr1", 0, 40_000), Interval("chr2", 0, 20_000))
    whole = WindowPlan(store, intervals, 128, seed=5, reverse_complement=True, random_phase=True)
    regions = Regions(classes, shares_of(classes, ["motif=3", "genome"]))
    plan = ClassedPlan(region_mixture(whole, regions, intervals, 0.1), 128, classes, ["motif"])
    data = StepDataset([Stage(0, plan, 12)], 0, 1)
    alone = [StepDataset([Stage(0, plan, 12)], rank, 3) for rank in range(3)]
    motif = {base for start, end, name in BANDS if name == "motif" for base in range(start, end)}
    shows = 0
    for step in (40, 3, 41, 0):
        batch, windows = data[step], data.windows(step)
        assert batch.classes is not None and batch.sequence_ids is None
        for rank in range(3):
            part = alone[rank][step]
            assert part.tokens.equal(batch.tokens[4 * rank : 4 * rank + 4]) and part.classes is not None
            assert part.classes.equal(batch.classes[4 * rank : 4 * rank + 4])
        for tokens, row, window in zip(batch.tokens, batch.classes, windows, strict=True):
            assert (store.read(window.contig, window.start, window.end) == tokens.numpy()).all()
            inside = [window.contig == "chr1" and base in motif for base in range(window.start, window.end)]
            assert row.tolist() == inside
            shows += any(inside)
    assert shows >= 36, "three in four windows are drawn for the class, the others may meet it"
    only = region_mixture(whole, Regions(classes, {"genome": 1.0}), intervals, 0.1)
    of_whole = StepDataset([Stage(0, whole, 12)], 0, 1)
    assert StepDataset([Stage(0, only, 12)], 0, 1)[50].tokens.equal(of_whole[50].tokens)


def test_weights_of_repeats_are_those_of_the_soft_mask(genome: Path, tmp_path: Path) -> None:
    of_class = ["--regions", genome.with_name("masked.bed"), "--region_shares", "genome"]
    runs = {"mask": ["--soft_mask_weight", 0.3], "class": [*of_class, "--region_weights", "repeat=0.3"], "none": []}
    for name, flags in runs.items():
        assert train("--genome", genome, *QUICK, "--max_steps", 4, *flags, "--out", tmp_path / name) == 0
    assert weights_of(tmp_path / "mask") == weights_of(tmp_path / "class") != weights_of(tmp_path / "none")


def test_a_run_by_classes_resumes_exactly(genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beds = [genome.with_name("classes.bed"), genome.with_name("masked.bed")]
    flags: list[Any] = ["--genome", genome, *QUICK, "--regions", *beds, "--region_shares", "box=1", "motif=3"]
    flags += ["--region_weights", "repeat=0.1", "motif=2", "--validation", "chr2", "--copies", 0.3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*flags, "--max_steps", 6, "--out", whole) == 0
    shown = capsys.readouterr().out
    assert "box: 1.80 kb, 4.5% of the training split; drawn for 25.0% of the windows" in shown
    assert "drawn by class of region" in shown and "of bases in the loss: repeat=0.1, motif=2, others 1" in shown

    with pytest.MonkeyPatch.context() as patch:
        disk_is_full(patch, lambda step: step == 4)
        assert train(*flags, "--max_steps", 6, "--save_every", 1, "--out", parts) == 2
    assert train("--resume", "--out", parts, "--num_workers", 1) == 0
    assert weights_of(whole) == weights_of(parts)
    with (whole / "validation_by_class.csv").open() as file:
        rows = {(row["group"], row["class"]): (row["bases"], row["bits_per_base"]) for row in csv.DictReader(file)}
    assert [name for group, name in rows if group == "region"] == ["repeat", "no class"], "the others lie on chr1"
    assert rows["region", "repeat"] == rows["repeat", "soft-masked"]
    assert rows["region", "no class"] == rows["repeat", "unique"]

    original = beds[0].read_text()
    beds[0].write_text(original.replace("\t300\t", "\t301\t"))
    try:
        assert train("--resume", "--out", parts) == 2
    finally:
        beds[0].write_text(original)
    assert "BED file" in capsys.readouterr().err
    assert train("--resume", "--out", parts, "--region_weights", "repeat=0.2") == 2
    assert "--region_weights" in capsys.readouterr().err


def test_a_mixture_has_regions_of_each_genome(genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "both.yaml"
    one = {"genome": str(genome), "weight": 2, "validation": "chr2", "regions": str(genome.with_name("classes.bed"))}
    two = {"genome": str(genome), "weight": 1, "validation": "chr1"}
    file.write_text(json.dumps({"functional": one | {"region_shares": ["box"]}, "plain": two}))
    flags = ["--mixture", file, *QUICK, "--max_steps", 2, "--region_weights", "box=0.5"]
    assert train(*flags, "--out", tmp_path / "run") == 0
    shown = capsys.readouterr().out
    assert "box: 1.80 kb" in shown and "drawn for 100.0% of the windows" in shown


@pytest.mark.parametrize(("flags", "expected"), [
    (["--region_shares", "CDS"], "--region_shares needs --regions"),
    (["--regions", "BED", "--region_shares", "CDS"], "no region is a CDS; there are box motif genome"),
    (["--regions", "BED", "--region_shares", "box=0"], "'box=0' is not a class"),
    (["--regions", "BED", "--region_weights", "box=-1"], "'box=-1' is not a class"),
    (["--regions", "BED", "--region_weights", "repeat=1"], "--region_weights: no region is a repeat"),
    (["--regions", "BED", "--region_shares", "box", "box=2"], "box stands there twice"),
    (["--regions", "BED", "--pack"], "--pack"),
    (["--regions", "WHOLE_BED"], "--regions: a class is called genome"),
    (["--regions", "EMPTY_BED", "--region_shares", "genome"], "--regions: the files have no region"),
    (["--regions", "BED", "--train", "chr2", "--validation", "chr1"], "the training split has no box region"),
])  # fmt: skip
def test_bad_settings(
    flags: list[str], expected: str, genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole.bed").write_text("chr1\t0\t100\tgenome\n")
    (tmp_path / "empty.bed").write_text("")
    beds = {"BED": genome.with_name("classes.bed")}
    beds |= {"WHOLE_BED": tmp_path / "whole.bed", "EMPTY_BED": tmp_path / "empty.bed"}
    given = [str(beds.get(flag, flag)) for flag in flags]
    assert train("--genome", genome, *QUICK, *given, "--dry_run", "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1, message


def test_classes_of_the_background_must_be_named(genome: Path) -> None:
    classes = read_region_classes([genome.with_name("masked.bed")], open_genome(genome))
    with pytest.raises(InputError, match="say which classes"):
        shares_of(classes, None)
    assert numbers_of("x", ["a", "b=2.5"]) == {"a": 1.0, "b": 2.5}
