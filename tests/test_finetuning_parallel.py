"""Fine-tuning on several ranks, with whole weights or parts of them: losses, metrics and predictions as on one."""

import csv
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_group import run_ranks
from safetensors.torch import load_file
from test_finetuning_variants import checkpoint, folder, genome, table, variants  # noqa: F401

from dnamamba.cli import Ended
from dnamamba.errors import InputError
from dnamamba.finetuning.run import finetune
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.finetuning.trial import Trial
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.parallel import processes

EPOCHS, CUT = 2, 1
LAST: dict[str, Any] = {"pooling": "last"}
MEAN: dict[str, Any] = {"pooling": "mean", "conjoin": ["always"]}
PROBE: dict[str, Any] = {"mode": "probe"}
CHUNKS: dict[str, Any] = {"backprop": "chunked", "chunk": 16}
FSDP: dict[str, Any] = {"strategy": "fsdp"}
WAYS: dict[int, dict[str, tuple[str, dict[str, Any]]]] = {
    2: {
        "ddp": ("last", LAST),
        "fsdp": ("last", LAST | FSDP),
        "ddp, chunks": ("mean", MEAN | CHUNKS),
        "fsdp, chunks": ("mean", MEAN | CHUNKS | FSDP),
        "fsdp, probe": ("probe", PROBE | FSDP),
    },
    4: {
        "ddp": ("mean", MEAN),
        "fsdp": ("mean", MEAN | FSDP),
        "fsdp, chunks": ("last", LAST | CHUNKS | FSDP),
    },
}
"""Ranks → name → the run on one device that it must equal, and its settings"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of sequences of many lengths. The last batch of an epoch is one example, and most ranks have none;
    batches are no multiple of four either."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 31), ("dev", 17), ("test", 21)):
        with (root / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("sequence", "label"))
            for number in range(count):
                gc = (0.35, 0.65)[number % 2] / 2
                bases = generator.choice(list("ACGT"), 20 + 7 * number % 31, p=[0.5 - gc, gc, gc, 0.5 - gc])
                table.writerow(("".join(bases), ("AT", "GC")[number % 2]))
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(n_layer=2, d_model=16, d_state=4))
    save_checkpoint(model, root / "lm", {"settings": {"length": 64}, "genomes": []})
    return root


def settings_of(data: Path, out: Path, **changes: Any) -> FinetuneSettings:
    settings = FinetuneSettings(
        data=data,
        checkpoint=str(data / "lm"),
        epochs=EPOCHS,
        batch_size=6,
        micro_tokens=160,
        learning_rate=[0.003],
        accelerator="cpu",
        kmer=0,
        out=out,
    )
    return replace(settings, **changes)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(found: Path, expected: Path) -> None:
    """Losses and metrics of each epoch, what is predicted of test, and the weights."""
    for name, tolerance in (("metrics.csv", 1e-4), ("test_predictions.csv", 1e-3)):
        for row, other in zip(rows(found / name), rows(expected / name), strict=True):
            for column, value in row.items():
                if column in ("seconds", "examples_per_second"):
                    continue
                if column.startswith(("train_", "dev_", "p_")):
                    assert float(value) == pytest.approx(float(other[column]), rel=tolerance), (found.name, column)
                else:
                    assert value == other[column], (found.name, column)
    one, other_weights = (load_file(run / "seed-0" / "checkpoint" / "model.safetensors") for run in (found, expected))
    for name in one:
        torch.testing.assert_close(one[name], other_weights[name], rtol=1e-3, atol=1e-4)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (found, expected)]
    assert summaries[0]["selection"] == summaries[1]["selection"]


def train_all(rank: int, data: Path, root: Path, ranks: int) -> list[str]:
    """All ways of so many ranks; another is cut off after an epoch. And what must not work."""
    environment = dict(os.environ)
    processes.GRACE = 1000.0  # after an error, too, this process has something to do
    for name, (_, changes) in WAYS[ranks].items():
        os.environ.update(environment)
        finetune(settings_of(data, root / f"{ranks} {name}", **changes))
    os.environ.update(environment)
    cut(data, root / f"{ranks} cut", **LAST | FSDP)
    said = []
    for number, changes in enumerate(({"learning_rate": [0.1 + rank / 10]}, {"batch_size": 4 + rank})):
        os.environ.update(environment)
        try:
            finetune(settings_of(data, root / f"{ranks} refused {number}", **changes))
        except InputError as error:
            said.append(str(error))
    return said


def cut(data: Path, out: Path, **changes: Any) -> None:
    """A run that is stopped when its last epoch begins."""
    train_epoch = Trial._train_epoch

    def stopping(self: Trial, model: Any, optimizer: Any, state: Any, features: Any) -> Any:
        if state.epoch == CUT:
            raise KeyboardInterrupt
        return train_epoch(self, model, optimizer, state, features)

    Trial._train_epoch = stopping  # type: ignore[method-assign]
    try:
        finetune(settings_of(data, out, **changes))
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        Trial._train_epoch = train_epoch  # type: ignore[method-assign]


def resume(rank: int, data: Path, run: Path, changes: dict[str, Any]) -> None:
    finetune(settings_of(data, run, resume=True, **changes))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("alone")
    ways = {"last": LAST, "mean": MEAN, "probe": PROBE}
    return {name: finetune(settings_of(data, root / name, **changes)) for name, changes in ways.items()}


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one(ranks: int, data: Path, alone: dict[str, Path], tmp_path: Path) -> None:
    """And a run that is cut off continues on any other number of them."""
    said = run_ranks(ranks, train_all, data, tmp_path, ranks)
    for name, (expected, _) in WAYS[ranks].items():
        same(tmp_path / f"{ranks} {name}", alone[expected])
        assert {path.name for path in (tmp_path / f"{ranks} {name}").iterdir()} == {
            path.name for path in alone[expected].iterdir()
        }
    assert said == ranks * [
        [
            "--learning_rate: [0.2] on rank 1, but [0.1] on rank 0; give all processes the same flags",
            "--batch_size: 5 on rank 1, but 4 on rank 0; give all processes the same flags",
        ]
    ]
    run = tmp_path / f"{ranks} cut"
    assert not (run / "test_read.json").exists() and len(rows(run / "metrics.csv")) == CUT
    if ranks == 4:
        run_ranks(2, resume, data, run, LAST)
    else:
        finetune(settings_of(data, run, resume=True, **LAST))
    same(run, alone["last"])


def test_a_run_of_one_device_continues_on_two(data: Path, alone: dict[str, Path], tmp_path: Path) -> None:
    cut(data, tmp_path / "run", **LAST)
    shutil.copytree(tmp_path / "run", tmp_path / "other", symlinks=True)
    for run, changes in (("run", LAST), ("other", LAST | FSDP)):
        run_ranks(2, resume, data, tmp_path / run, changes)
        same(tmp_path / run, alone["last"])


SIGNALS: dict[str, tuple[dict[str, Any], int, signal.Signals]] = {
    "ddp": (LAST, 1, signal.SIGTERM),
    "fsdp": (LAST | FSDP, 1, signal.SIGTERM),
    "first": (LAST, 0, signal.SIGINT),
    "probe": (PROBE, 1, signal.SIGINT),
}
"""Name → settings, which rank gets a signal, and which one"""


def train_until_signal(rank: int, data: Path, root: Path) -> list[str]:
    """What each run of `SIGNALS` ends with; the signal comes when an epoch has been written."""
    processes.GRACE = 1000.0  # after a stop, too, this process has something to do
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    environment, found = dict(os.environ), []
    for name, (changes, receiver, number) in SIGNALS.items():
        os.environ.update(environment)
        out = root / name
        if rank == receiver:
            threading.Thread(target=send_after_an_epoch, args=(out, number), daemon=True).start()
        with pytest.raises((KeyboardInterrupt, Ended, SystemExit)) as stopped:
            finetune(settings_of(data, out, epochs=100_000, **changes))
        found.append(repr(getattr(stopped.value, "signal", stopped.value)))
    return found


def send_after_an_epoch(run: Path, number: signal.Signals) -> None:
    while not (run / "metrics.csv").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def test_a_signal_to_one_rank_stops_all(data: Path, tmp_path: Path) -> None:
    """In the same step, whichever it is: none waits for one that has left. The last epoch is kept."""
    began = time.monotonic()
    first, second = run_ranks(2, train_until_signal, data, tmp_path)
    assert time.monotonic() - began < 240
    terminated = repr(signal.SIGTERM)
    assert first == [terminated, terminated, "KeyboardInterrupt()", terminated]
    assert second == 4 * ["SystemExit(0)"]
    for name in SIGNALS:
        run = tmp_path / name
        [trial] = (run / "trials").iterdir()
        state = torch.load(trial / "last.ckpt", weights_only=True)["state"]
        unfinished = json.loads((run / "summary.unfinished.json").read_text())
        assert state["epoch"] == unfinished["epoch"] == len(rows(run / "metrics.csv"))
        assert unfinished["stopped_by"] == ("SIGINT" if name == "first" else "SIGTERM")


def train_on_variants(rank: int, settings: FinetuneSettings) -> None:
    finetune(settings)


def test_variants_reach_the_embedding_where_it_lies_in_parts(
    table: Path,  # noqa: F811
    genome: Path,  # noqa: F811
    checkpoint: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Their log-likelihood ratios use its weights outside the backbone's pass."""
    settings = FinetuneSettings(
        task="variants",
        variants=table,
        genome=[genome],
        checkpoint=str(checkpoint),
        length=32,
        steps=6,
        batch_size=32,
        accelerator="cpu",
        out=tmp_path / "one",
    )
    finetune(settings)
    run_ranks(2, train_on_variants, replace(settings, strategy="fsdp", out=tmp_path / "two"))
    same(tmp_path / "two", tmp_path / "one")
