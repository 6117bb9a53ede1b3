"""What a model adds is measured on genes that nothing was fitted on, and is nothing where it knows nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipelines"))

import model_on_annotation
import variant_sets
from variant_sets import VariantSet, records_of

from dnamamba.formats.checkpoint import save_checkpoint
from tests.tiny_models import random_bases, tiny_model

SIZES = {"train": 400, "dev": 200, "test": 200}


def task_and_model(folder: Path, told: float) -> list[str]:
    """The annotation knows the label with noise; of the model's features one adds `told` of it."""
    rng = np.random.default_rng(0)
    task: dict[str, np.ndarray] = {"features": np.array(["known", "noise"])}
    embedded: dict[str, np.ndarray] = {}
    for split, size in SIZES.items():
        label = rng.integers(0, 2, size)
        task |= {
            f"{split}_rows": np.arange(size),
            f"{split}_labels": label,
            f"{split}_missense": np.arange(size) % 2 == 0,
        }
        task |= {f"{split}_group": np.array([f"gene{number // 8}" for number in range(size)])}
        task |= {f"{split}_annotation": np.column_stack((label + rng.normal(0, 1.5, size), rng.normal(size=size)))}
        components = rng.normal(size=(size, 3)) + told * label[:, None] * np.array([1, 0, 0])
        embedded |= {f"{split}_components": components, f"{split}_numbers": rng.normal(size=(size, 2))}
    np.savez(folder / "task.npz", **task)
    np.savez(folder / "lm.npz", **embedded)
    return ["--task", str(folder / "task.npz"), "--embedded", str(folder / "lm.npz"), "--out", str(folder / "fit")]


@pytest.mark.parametrize(("told", "low", "high"), [(2.0, 0.05, 0.4), (0.0, -0.1, 0.04)])
def test_what_a_model_adds(
    told: float, low: float, high: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["model_on_annotation.py", "fit", *task_and_model(tmp_path, told)])
    model_on_annotation.main()
    found = json.loads((tmp_path / "fit" / "results.json").read_text())
    gain = found["model_adds"]["all"]
    auroc = {name: found[name]["all"]["auroc"]["value"] for name in ("annotation", "both")}
    assert low < gain["auroc"] < high and gain["auroc"] == pytest.approx(auroc["both"] - auroc["annotation"])
    assert (gain["low"] > 0) == (told > 0)


def test_variants_are_described_in_the_order_of_their_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same variant gives the same numbers wherever it stands, and both strands count."""
    bases = random_bases(400, 3)
    (tmp_path / "g.fa").write_text(f">c\n{bases}\n")
    start = list(range(60, 300, 12))
    alt = ["ACGT"[("ACGT".index(bases[at]) + 1) % 4] for at in start]
    records = records_of(["c"] * len(start), start, [bases[at] for at in start], alt)
    made = VariantSet("clinvar", [tmp_path / "g.fa"], records, [], np.array(["g"] * len(start)))
    monkeypatch.setattr(variant_sets, "clinvar", lambda data: made)
    save_checkpoint(tiny_model(), tmp_path / "model", {"settings": {"length": 64}})
    rows = {"train_rows": np.arange(20), "dev_rows": np.array([3, 19]), "test_rows": np.array([5])}
    np.savez(tmp_path / "task.npz", **rows)
    flags = ["--data", str(tmp_path), "--task", str(tmp_path / "task.npz"), "--checkpoint", str(tmp_path / "model")]
    line = ["model_on_annotation.py", "embed", *flags, "--out", str(tmp_path / "lm.npz"), "--length", "64"]
    monkeypatch.setattr(sys, "argv", line)
    model_on_annotation.main()
    with np.load(tmp_path / "lm.npz") as found:
        train, dev = found["train_components"], found["dev_components"]
        np.testing.assert_allclose(dev, train[[3, 19]], rtol=0, atol=2e-2)
        np.testing.assert_allclose(found["test_numbers"], found["train_numbers"][[5]], rtol=0, atol=2e-2)
        assert found["train_numbers"].shape == (20, 8) and np.isfinite(train).all()
        forward, reverse = found["train_numbers"][:, :4], found["train_numbers"][:, 4:]
        assert np.abs(forward - reverse).max() > 1e-3
