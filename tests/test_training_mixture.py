"""Several genomes in one run: the file that names them, the pattern of samples, and a run resumed."""

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba import cli, pretrain
from dnamamba.errors import InputError
from dnamamba.genome.windows import Window
from dnamamba.training.data import Stage, StepDataset
from dnamamba.training.mixture import PERIOD, MixturePlan, pattern, shares
from dnamamba.training.mixture_file import read_mixture
from tests.full_disk import disk_is_full

QUICK = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
QUICK += ["--length", "128", "--batch_tokens", "1024", "--accelerator", "cpu", "--markov_order", "3"]
QUICK += ["--validation_tokens", "4096", "--log_every", "2"]


class NumberedPlan:
    """A row spells its genome, epoch and index."""

    def __init__(self, genome: int, size: int) -> None:
        self.genome, self.size = genome, size

    def epoch_size(self, epoch: int) -> int:
        return self.size + epoch % 2

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        assert indices.max() < self.epoch_size(epoch)
        return np.stack(
            [np.full_like(indices, self.genome), np.full_like(indices, epoch), indices], 1
        ), indices % 2 == 0

    def windows(self, epoch: int, index: int) -> list[Window]:
        return [Window(f"chr{epoch}", index, index + 1, False)]


weights = st.lists(st.floats(0.05, 20), min_size=1, max_size=5)


@given(weights)
@settings(deadline=None)
def test_every_part_of_the_pattern_has_each_genome_by_its_weight(weights: list[float]) -> None:
    counts = shares(weights)
    assert counts.sum() == PERIOD
    assert np.abs(counts / PERIOD - np.array(weights) / sum(weights)).max() <= 1 / PERIOD
    order = pattern(counts)
    before = np.cumsum(order[:, None] == np.arange(len(weights)), axis=0)
    exact = np.arange(1, PERIOD + 1)[:, None] * counts / PERIOD
    assert np.abs(before - exact).max() <= len(weights), "never far from the share, at any sample"
    assert (before[-1] == counts).all()


def stream(plan: NumberedPlan) -> Any:
    return ([plan.genome, epoch, index] for epoch in itertools.count() for index in range(plan.epoch_size(epoch)))


@given(weights, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3 * PERIOD))
@settings(deadline=None, max_examples=30)
def test_a_step_is_computed_and_each_genome_goes_through_its_own_epochs(
    weights: list[float], share: int, world: int, sample: int
) -> None:
    """What ranks read at a far step is what counting from the first sample gives, genome by genome."""
    plans = [NumberedPlan(genome, 7 + 30 * genome) for genome in range(len(weights))]
    mixture = MixturePlan([str(plan.genome) for plan in plans], cast(Any, plans), weights)
    windows = share * world
    step = sample // windows
    read = [StepDataset([Stage(0, mixture, windows)], rank, world)[step].tokens.tolist() for rank in range(world)]

    order = np.tile(pattern(shares(weights)), 5)[: (step + 1) * windows]
    earlier = np.bincount(order[: step * windows], minlength=len(weights))
    streams = [itertools.islice(stream(plan), int(skip), None) for plan, skip in zip(plans, earlier, strict=True)]
    assert list(itertools.chain(*read)) == [next(streams[genome]) for genome in order[step * windows :].tolist()]


def test_windows_are_named_with_their_genome() -> None:
    plans = [NumberedPlan(genome, 3) for genome in range(2)]
    dataset = StepDataset([Stage(0, MixturePlan(["yeast", "ecoli"], cast(Any, plans), [1, 1]), 4)], 0, 1)
    assert [f"{w.contig}:{w.start}" for w in dataset.windows(1)] == [
        "yeast/chr0:2",
        "ecoli/chr0:2",
        "yeast/chr1:0",
        "ecoli/chr1:0",
    ]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random genomes of different composition, with contigs of the same names."""
    folder = tmp_path_factory.mktemp("mixture")
    chance = np.random.default_rng(0)
    for name, gc, bases in (("poor", 0.2, 60_000), ("rich", 0.8, 90_000)):
        letters = chance.choice(list("ACGT"), bases, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2])
        (folder / f"{name}.fa").write_text(f">chr1\n{''.join(letters[:20_000])}\n>chr2\n{''.join(letters[20_000:])}\n")
    (folder / "chr1.bed").write_text("chr1\t0\t20000\n")
    text = "poor:\n  genome: poor.fa\n  weight: 3\n  validation: chr1.bed\n"
    (folder / "both.yaml").write_text(text + "rich: {genome: [rich.fa], weight: 1, validation: chr1}\n")
    return folder / "both.yaml"


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def test_a_run_on_two_genomes_resumes_exactly(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--mixture", mixture, *QUICK, "--max_steps", 6]
    assert train(*arguments, "--out", whole) == 0
    shown = capsys.readouterr().out
    assert "poor, 75.0% of the samples" in shown and "rich, 25.0% of the samples" in shown
    summary = json.loads((whole / "summary.json").read_text())
    genomes = summary["genomes"]
    for figure in ("validation_bits_per_base", "markov_bits_per_base"):
        # 24 windows of one and 8 of the other: the weights hold in validation too.
        expected = 0.75 * genomes["poor"][figure] + 0.25 * genomes["rich"][figure]
        assert summary[figure] == pytest.approx(expected, rel=1e-6)
        assert genomes["poor"][figure] != genomes["rich"][figure]
    assert {path.name for path in whole.glob("splits*")} == {"splits-poor.bed", "splits-rich.bed"}

    with pytest.MonkeyPatch.context() as patch:
        disk_is_full(patch, lambda step: step == 4)
        assert train(*arguments, "--save_every", 1, "--out", parts) == 2
    assert train("--resume", "--out", parts, "--num_workers", 1) == 0
    weights = [(run / "checkpoints" / "last" / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]

    mixture_text = mixture.read_text()
    mixture.write_text(mixture_text.replace("weight: 3", "weight: 2"))
    assert train("--resume", "--out", parts, "--max_steps", 8) == 2
    assert "the mixture has changed" in capsys.readouterr().err
    mixture.write_text(mixture_text)


def test_without_weights_genomes_count_by_their_bases(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_size = mixture.with_name("by-size.yaml")
    by_size.write_text("poor: {genome: poor.fa, train: chr2}\nrich: {genome: rich.fa, train: chr2}\n")
    assert train("--mixture", by_size, *QUICK, "--dry_run") == 0
    shown = capsys.readouterr().out
    assert f"poor, {40_000 / 110_000:.1%} of the samples" in shown


BAD = {
    "missing": (None, "cannot be read"),
    "empty": ("", "mapping"),
    "list": ("- ecoli.fa\n", "mapping"),
    "broken": ("ecoli: {genome: [a.fa\n", "not YAML"),
    "twice": ("a: {genome: x.fa}\na: {genome: y.fa}\n", "'a' stands there twice"),
    "no genome": ("a: {weight: 2}\n", "a: needs `genome:`"),
    "plain value": ("a: x.fa\n", "a: needs `genome:`"),
    "misspelt": ("a: {genome: x.fa, wieght: 1}\n", "'wieght'; did you mean weight?"),
    "zero": ("a: {genome: x.fa, weight: 0}\n", "weight 0"),
    "words": ("a: {genome: x.fa, weight: much}\n", "weight 'much'"),
    "underscore": ("a: {genome: x.fa, weight: '1_0'}\n", "weight '1_0'"),
    "digits of others": ("a: {genome: x.fa, weight: '\u0661'}\n", "weight '\u0661'"),
    "some weights": ("a: {genome: x.fa, weight: 1}\nb: {genome: y.fa}\n", "b: no weight"),
    "name": ("a/b: {genome: x.fa}\n", "file names"),
    "nested": ("a: {genome: {file: x.fa}}\n", "expected a value or a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name: str, tmp_path: Path) -> None:
    text, expected = BAD[name]
    path = tmp_path / "mixture.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as error:
        read_mixture(path)
    assert expected in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("pattern", ["A" * 3000, r"a\0b"], ids=["long", "NUL"])
def test_patterns_that_can_be_no_file(pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(f'a: {{genome: x.fa, validation: "{pattern}"}}\n')
    assert read_mixture(path)[0].validation == [pattern.replace(r"\0", "\0")]


def test_faults_of_a_genome_name_it(mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixture.yaml"
    fasta = mixture.with_name("poor.fa")
    cases = [
        (f"a: {{genome: {fasta}}}\nb: {{genome: no-such.fa}}\n", [], f"b: {tmp_path}/no-such.fa"),
        (f"a: {{genome: {fasta}, contigs: chrX}}\n", [], "a: no contig"),
        (f"a: {{genome: {fasta}, weight: 1}}\nb: {{genome: {fasta}, weight: 1e-6}}\n", [], "weight of the mixture"),
        (f"a: {{genome: {fasta}}}\n", ["--contigs", "chr1"], "--contigs: with --mixture"),
        (f"a: {{genome: {fasta}}}\n", ["--genome", fasta], "--genome: with --mixture"),
    ]
    for text, flags, expected in cases:
        path.write_text(text)
        assert train("--mixture", path, *QUICK, *flags, "--out", tmp_path / "run") == 2
        message = capsys.readouterr().err
        assert expected in message and message.count("\n") == 1, message
    assert not (tmp_path / "run").exists()
