"""Runs on several ranks, with whole weights or parts of them, windows of their own or shared ones: all as on one."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_group import run_ranks

from dnamamba.errors import InputError
from dnamamba.model.settings import ModelSettings
from dnamamba.parallel import processes
from dnamamba.parallel.gradients import Gradients
from dnamamba.training.module import PretrainModule
from dnamamba.training.resolve import resolve, validation_windows_per_pass, windows_per_pass
from dnamamba.training.run import pretrain
from dnamamba.training.settings import PretrainSettings

STEPS, LONGER = 4, 6
COLUMNS = ("tokens", "train_bits_per_base", "gradient_norm", "validation_bits_per_base")
WAYS: dict[int, dict[str, dict[str, Any]]] = {
    4: {
        "fsdp": {"strategy": "fsdp"},
        "context": {"context_parallel": 4},
        "mesh": {"context_parallel": 2},
        "fsdp, context": {"strategy": "fsdp", "context_parallel": 2},
    },
    2: {
        "fsdp": {"strategy": "fsdp"},
        "chunks": {"context_parallel": 2, "backprop": "chunked", "chunk": 100},
        "fsdp, chunks": {"strategy": "fsdp", "backprop": "chunked", "chunk": 100},
    },
}
"""Ranks → name → settings"""


def settings_of(out: Path, **changes: Any) -> PretrainSettings:
    model = ModelSettings(preset="demo", n_layer=2, d_model=16, d_state=4)
    settings = PretrainSettings(
        model=model,
        length=256,
        batch_tokens=1024,
        micro_tokens=512,
        max_steps=STEPS,
        accelerator="cpu",
        markov_order=0,
        validation_tokens=1280,  # five windows: ranks have different numbers of them
        validation_every=2,
        log_every=1,
        gradient_clip=0.1,
        out=out,
    )
    return replace(settings, **changes)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(found: Path, expected: Path) -> None:
    for row, other in zip(rows(found), rows(expected), strict=True):
        for column in COLUMNS:
            assert float(row[column] or 0) == pytest.approx(float(other[column] or 0), rel=2e-5, nan_ok=True), (
                found.name,
                column,
            )


def train_all(rank: int, folder: Path, ranks: int) -> list[str]:
    """All ways of so many ranks, and what must not work."""
    environment = dict(os.environ)
    said = []
    for name, changes in WAYS[ranks].items():
        os.environ.update(environment)
        pretrain(settings_of(folder / f"{ranks} {name}", **changes))
    refused: list[dict[str, Any]] = [
        {"learning_rate": 0.1 + rank},
        {"model": ModelSettings(preset="demo", n_layer=1 + rank)},
    ]
    for changes in refused:
        os.environ.update(environment)
        try:
            pretrain(settings_of(folder / f"{ranks} refused {len(said)}", **changes))
        except InputError as error:
            said.append(str(error))
    return said


FAULTS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp": {"strategy": "fsdp"}}


def train_with_fault(rank: int, folder: Path) -> list[str]:
    """A gradient of one rank that is not a number in the third step: the run stops, and continues without it."""
    processes.GRACE = 1000.0  # after an error, too, this process has something to do
    environment = dict(os.environ)
    said = []
    for name, changes in FAULTS.items():
        for resumed in (False, True):
            os.environ.update(environment)
            settings = settings_of(folder / name, save_every=1, **changes)
            if resumed:
                settings = replace(settings, resume=True, on_fault="skip")
            with pytest.MonkeyPatch.context() as patch:
                inject_fault(patch, rank == 1)
                try:
                    pretrain(settings)
                except InputError as error:
                    said.append(str(error))
    return said


def inject_fault(patch: pytest.MonkeyPatch, here: bool) -> None:
    training_step = PretrainModule.training_step

    def faulty(self: PretrainModule, batch: Any, batch_idx: int) -> None:
        plain, broken = self.gradient, here and self.trainer.global_step == 2

        def gradient(model: Any, windows: Any, scale: torch.Tensor) -> torch.Tensor:
            return plain(model, windows, scale * float("nan") if broken else scale)

        self.gradient = gradient
        training_step(self, batch, batch_idx)
        self.gradient = plain

    patch.setattr(PretrainModule, "training_step", faulty)


def resume(rank: int, run: Path, changes: dict[str, Any]) -> None:
    pretrain(settings_of(run, resume=True, max_steps=LONGER, **changes))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(settings_of(tmp_path_factory.mktemp("alone") / "run"))


@pytest.fixture(scope="module")
def resumed(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one device, as `alone` was."""
    run = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(alone, run, symlinks=True)
    return pretrain(settings_of(run, resume=True, max_steps=LONGER))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one(ranks: int, alone: Path, resumed: Path, tmp_path: Path) -> None:
    """And a checkpoint of theirs, as one of a single device, is resumed on any other number."""
    said = run_ranks(ranks, train_all, tmp_path, ranks)
    for name in WAYS[ranks]:
        same(tmp_path / f"{ranks} {name}", alone)
    assert said == ranks * [
        [
            "--learning_rate: 1.1 on rank 1, but 0.1 on rank 0; give all processes the same flags",
            "--model.n_layer: 2 on rank 1, but 1 on rank 0; give all processes the same flags",
        ]
    ]
    run = tmp_path / f"{ranks} fsdp"
    assert {path.name for path in (run / "checkpoints" / "last").iterdir()} == {
        path.name for path in (alone / "checkpoints" / "last").iterdir()
    }
    if ranks == 4:
        pretrain(settings_of(run, resume=True, max_steps=LONGER))
        same(run, resumed)
        return
    for number, changes in enumerate(({"strategy": "fsdp"}, {"context_parallel": 2})):
        run = tmp_path / f"resumed {number}"
        shutil.copytree(alone, run, symlinks=True)
        run_ranks(2, resume, run, changes)
        same(run, resumed)


def test_a_fault_of_one_rank_is_one_of_all(tmp_path: Path) -> None:
    """Whole weights or parts: all stop at the same step with the same words, what has been saved is before it, and the
    same steps are left out when the run continues."""
    pretrain_alone = settings_of(tmp_path / "one", save_every=1, on_fault="skip")
    with pytest.MonkeyPatch.context() as patch:
        inject_fault(patch, True)
        pretrain(pretrain_alone)
    for said in run_ranks(2, train_with_fault, tmp_path):
        assert len(said) == len(FAULTS)
        assert all("step 3: the gradient is not finite" in words for words in said), said
    for name in FAULTS:
        same(tmp_path / name, tmp_path / "one")
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["validation_bits_per_base"] > 0


def train_on_gaps(rank: int, run: Path, fasta: Path, changes: dict[str, Any]) -> None:
    pretrain(settings_of(run, **changes, **gaps(fasta)))


def gaps(fasta: Path) -> dict[str, Any]:
    """Settings for a genome that is nothing but N, but for a few windows: most ranks have no base to count."""
    if not fasta.exists():
        fasta.write_text(">chr1\n" + "N" * 20_000 + "ACGTTGCA" * 1000 + "\n")
        fasta.with_suffix(".bed").write_text("chr1\t26000\t28000\n")
    return {"genome": [fasta], "max_n_fraction": 1.0, "validation": [str(fasta.with_suffix(".bed"))]}


@pytest.mark.parametrize("changes", [{"strategy": "fsdp"}, {"context_parallel": 2}])
def test_a_rank_with_nothing_but_n(changes: dict[str, Any], tmp_path: Path) -> None:
    fasta = tmp_path / "gaps.fa"
    pretrain(settings_of(tmp_path / "one", **gaps(fasta)))
    run_ranks(2, train_on_gaps, tmp_path / "two", fasta, changes)
    same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 3, "context_parallel": 2}, "2 ranks a window do not divide 3 devices"),
        ({"devices": 64, "context_parallel": 64}, "256 bases, a window or the last chunk of one, are too few for 64"),
        (
            {"devices": 2, "context_parallel": 2, "backprop": "chunked", "chunk": 127},
            "2 bases, a window or the last chunk of one, are too few for 2 ranks",
        ),
        ({"devices": 8, "context_parallel": 1}, "4 windows do not divide over 8 devices"),
        ({"devices": 2, "context_parallel": 2, "model": ModelSettings(preset="demo", mixer="hyenadna")}, "hyena looks"),
        (
            {"devices": 2, "context_parallel": 2, "model": ModelSettings(preset="demo", mixer="s4d"), "pack": True},
            "s4d cuts packed windows on the host",
        ),
    ],
)
def test_what_ranks_cannot_share_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        resolve(settings_of(tmp_path / "run", **changes))


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "barrier", "broadcast",
               "broadcast_object_list", "gather", "reduce", "reduce_scatter_tensor")  # fmt: skip


def collectives_of_steps(rank: int, out: Path) -> list[int]:
    """How many each step of a run takes."""
    found: list[int] = []

    def counted(collective: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found[-1] += 1
            return collective(*arguments, **options)

        return call

    def step(module: PretrainModule, *arguments: Any) -> None:
        found.append(0)
        with pytest.MonkeyPatch.context() as patch:
            for name in COLLECTIVES:
                patch.setattr(torch.distributed, name, counted(getattr(torch.distributed, name)))
            original(module, *arguments)

    original = PretrainModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainModule, "training_step", step)
        pretrain(settings_of(out, max_steps=8, validation_every=8, save_minutes=1e-6, keep=9))
    return found


def test_a_step_has_one_sum_over_ranks(tmp_path: Path) -> None:
    """Of gradients, losses and counts together, in however many passes; by it they agree to save, two steps later."""
    assert run_ranks(2, collectives_of_steps, tmp_path / "run") == 2 * [8 * [1]]
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")}
    assert saved == {f"step-{step:08}" for step in (3, 6, 8)}


SUMS = [[2.0**40 + rank, 1e7 / (3 + rank), 0.1 * rank, math.nan if rank == 2 else 1.0] for rank in range(4)]


def summed(rank: int) -> tuple[list[float], list[float]]:
    """Sums, and one gradient, over ranks."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    gradients = Gradients([parameter])
    gradients.zero()
    assert parameter.grad is not None
    parameter.grad += rank
    sums = gradients.sum_over_ranks(torch.tensor(SUMS[rank], dtype=torch.float64))
    assert len(Gradients([parameter]).sum_over_ranks()) == 0
    return sums.tolist(), parameter.grad.tolist()


def test_sums_that_go_with_gradients_are_those_of_fp64() -> None:
    for sums, gradient in run_ranks(4, summed):
        *exact, broken = sums
        for found, each in zip(exact, zip(*SUMS, strict=True), strict=False):
            assert found == pytest.approx(math.fsum(each), rel=2**-52, abs=4 * 2**-36)
        assert math.isnan(broken) and gradient == [6.0] * 3


def test_a_device_validates_on_no_more_windows_at_once_than_it_has_memory_for(tmp_path: Path) -> None:
    """Windows that several devices share in training; validation windows are one device's each."""
    shared = resolve(settings_of(tmp_path / "run", devices=2, context_parallel=2))
    assert windows_per_pass(shared) == 4 and validation_windows_per_pass(shared) == 2
