"""Runs on several ranks, with whole weights or parts of them, windows of their own or shared ones: all as on one."""

import csv
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rank_group import run_ranks

from dnamamba.errors import InputError
from dnamamba.model.settings import ModelSettings
from dnamamba.training.run import pretrain
from dnamamba.training.settings import PretrainSettings

STEPS = 4
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


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


def same(found: Path, expected: Path) -> None:
    for row, other in zip(rows(found), rows(expected), strict=True):
        for column in COLUMNS:
            assert float(row[column] or 0) == pytest.approx(float(other[column] or 0), rel=2e-5), (found.name, column)


def train_all(rank: int, folder: Path, ranks: int) -> list[str]:
    """All ways of so many ranks, and what must not work."""
    environment = dict(os.environ)
    said = []
    for name, changes in WAYS[ranks].items():
        os.environ.update(environment)
        pretrain(settings_of(folder / f"{ranks} {name}", **changes))
    for changes in ({"learning_rate": 0.1 + rank}, {"model": ModelSettings(preset="demo", n_layer=1 + rank)}):
        os.environ.update(environment)
        try:
            pretrain(settings_of(folder / f"{ranks} refused {len(said)}", **changes))
        except InputError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(settings_of(tmp_path_factory.mktemp("alone") / "run"))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_as_one(ranks: int, alone: Path, tmp_path: Path) -> None:
    said = run_ranks(ranks, train_all, tmp_path, ranks)
    for name in WAYS[ranks]:
        same(tmp_path / f"{ranks} {name}", alone)
    assert all(words == said[0] for words in said)
    print(said[0])
    assert len(said[0]) == 2
