"""Training on packed windows: losses and gradients of the sequences by themselves, and a run that resumes exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnamamba import cli, pretrain
from dnamamba.alphabet import BASES
from dnamamba.genome.intervals import Interval
from dnamamba.genome.packing import PackedPlan
from dnamamba.genome.store import open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.objectives.next_base import NextBase
from tests.full_disk import disk_is_full

LENGTH = 128


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chromosomes and forty scaffolds too short for a window."""
    chance = np.random.default_rng(2)
    sizes = [30_000, 8_000, *chance.integers(2, LENGTH + 1, 40)]
    path = tmp_path_factory.mktemp("packing") / "short.fa"
    path.write_text("".join(f">c{n}\n{''.join(chance.choice(list('ACGTacgtN'), k))}\n" for n, k in enumerate(sizes)))
    return path


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_packed_row_costs_what_its_sequences_cost(fasta: Path, weight: float) -> None:
    """On both strands: sums, counts, soft-mask weights and gradients."""
    store = open_genome(fasta)
    intervals = tuple(Interval(contig.name, 0, contig.length) for contig in store.contigs)
    windows = WindowPlan(store, intervals, LENGTH, 0, max_n_fraction=0.5, reverse_complement=True, random_phase=True)
    plan = PackedPlan(windows, intervals, max_n_fraction=0.5)
    rows = np.array([i for i in range(plan.epoch_size(0)) if len(plan.windows(0, i)) > 1])
    assert len(rows) > 10
    tokens, flags, ids = map(torch.from_numpy, plan.batch(0, rows))
    assert 0 < flags.sum() < len(flags)
    torch.manual_seed(0)
    model = LanguageModel(preset("demo", n_layer=2, d_model=16, d_state=4))

    def cost(batch: Any) -> tuple[torch.Tensor, int]:
        loss = model.loss(batch.inputs, batch.targets, sequence_ids=batch.sequence_ids)
        weights = torch.where(batch.soft_mask, weight, 1.0) * (batch.targets < BASES)
        return (torch.where(weights > 0, loss.nll, 0.0) * weights).sum(), int(loss.counted)

    packed, counted = cost(NextBase().prepare_batch(tokens, flags, ids))
    packed.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()

    alone, expected = torch.zeros(()), 0
    for row in rows.tolist():
        for window in plan.windows(0, row):
            own = torch.from_numpy(store.read(window.contig, window.start, window.end)[None].copy())
            nll, bases = cost(NextBase().prepare_batch(own, torch.tensor([window.reverse_complement])))
            alone, expected = alone + nll, expected + bases
    alone.backward()
    assert counted == expected
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    for gradient, parameter in zip(gradients, (p for p in model.parameters() if p.grad is not None), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=2e-4, atol=2e-4)


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["genome", "mixture"])
def test_a_packed_run_resumes_exactly(
    kind: str, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the border of an epoch, in micro-batches, continued by a loader process."""
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"a: {{genome: {fasta}, weight: 1}}\nb: {{genome: {fasta}, weight: 2, contigs: c0}}\n")
    source = ["--genome", fasta, "--contigs", "*"] if kind == "genome" else ["--mixture", mixture]
    arguments = [*source, "--pack", "--length", LENGTH, "--batch_tokens", 16 * LENGTH, "--micro_tokens", 5 * LENGTH]
    arguments += ["--model.preset", "demo", "--model.n_layer", 1, "--model.d_model", 16, "--model.d_state", 4]
    arguments += ["--max_steps", 24, "--accelerator", "cpu", "--markov_order", 0, "--validation_every", 100]
    arguments += ["--validation_tokens", 2048, "--max_n_fraction", 0.5, "--log_every", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(*arguments, "--out", whole) == 0
    if kind == "genome":
        assert "40 short sequences in" in capsys.readouterr().out

    with monkeypatch.context() as patch:
        disk_is_full(patch, lambda step: step == 20)
        assert train(*arguments, "--save_every", 5, "--out", parts) == 2
    assert train("--resume", "--out", parts, "--num_workers", 1) == 0
    weights = [(run / "checkpoints" / "last" / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]
    tokens = [json.loads((run / "summary.json").read_text())["tokens"] for run in (whole, parts)]
    assert tokens[0] == tokens[1]
    assert 0.9 * 24 * 16 * LENGTH < tokens[0] < 24 * 16 * LENGTH, "bases, not padding"


def test_without_pack_the_header_says_what_is_left_out(fasta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--genome", fasta, "--contigs", "*", "--length", LENGTH, "--batch_tokens", LENGTH]
    assert train(*arguments, "--model.preset", "demo", "--dry_run", "--accelerator", "cpu") == 0
    assert "--pack takes them in" in capsys.readouterr().out
