"""How trained models are given to recall-bench, and what is made of its points. The package itself is not needed."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba.alphabet import encode
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"


class Background(list):
    """Of sequences, with what recall-bench's has."""

    @property
    def seq(self):
        return np.frombuffer("".join(self).encode(), np.uint8)

    @property
    def off(self):
        return np.cumsum([0] + [len(each) for each in self])


class FakeBenchmark:
    """The calls of recall-bench 0.2.1 that are used; a point's advantage is a sum that only the right inputs give."""

    class DNABackground:
        @staticmethod
        def from_strings(blocks):
            return Background(blocks)

    @staticmethod
    def CallableModel(logits, tokenize, *, max_ctx, name, device):
        return SimpleNamespace(logits=logits, tokenize=tokenize, max_ctx=max_ctx, name=name, device=device)

    def __init__(self, status="ok"):
        self.status, self.calls = status, []

    def evaluate(self, model, distances, *, trials, background, out, **options):
        self.calls.append((model.name, out, options, background))
        ids = torch.tensor([model.tokenize(background[0][:50])])
        value = float(model.logits(ids)[0, -1].sum())
        point = {
            "status": self.status,
            "copy_advantage": value,
            "ci_lo": value - 0.1,
            "ci_hi": value + 0.1,
            "n": trials,
        }
        return [{**point, "dist": distance} for distance in distances]


@pytest.fixture
def run(tmp_path):
    """A run folder's checkpoint and splits, and its genome."""
    model = tiny_model().eval()
    save_checkpoint(model, tmp_path / "run", {})
    bases = random_bases(3000, 1)
    (tmp_path / "g.fa").write_text(f">chr1\n{bases[:1000]}{bases[1000:].lower()}\n")
    (tmp_path / "run" / "splits.bed").write_text("chr1\t0\t900\ttrain\nchr1\t950\t1100\ttest\nchr1\t2000\t2100\ttest\n")
    return tmp_path, model, bases


def load(monkeypatch, benchmark):
    monkeypatch.syspath_prepend(str(PIPELINES))
    monkeypatch.setitem(sys.modules, "recall_bench", benchmark)
    monkeypatch.delitem(sys.modules, "recall_benchmark", raising=False)
    import recall_benchmark

    return recall_benchmark


def measured(module, monkeypatch, folder, *flags, runs=("run",)):
    monkeypatch.chdir(folder)
    options = ["--trials", "7", "--distances", "256", "4096", "--genome", "g.fa", *flags]
    monkeypatch.setattr(sys, "argv", ["recall_benchmark.py", *runs, *options])
    module.main()
    return list(csv.DictReader((folder / "recall" / "recall.csv").read_text().splitlines()))


def test_a_run_is_measured_on_its_test_split(run, monkeypatch):
    folder, model, bases = run
    benchmark = FakeBenchmark()
    rows = measured(load(monkeypatch, benchmark), monkeypatch, folder)
    assert [(row["variant"], row["distance"]) for row in rows] == [
        (variant, distance)
        for variant in ("exact", "5 % substituted", "reverse complement")
        for distance in ("256", "4096")
    ]
    names, outs, options, backgrounds = zip(*benchmark.calls, strict=True)
    assert set(names) == {"run"}
    assert len(set(outs)) == 1
    assert outs[0].parent == Path("recall/run")
    assert options == ({}, {"variant": "mutate", "mut_rate": 0.05}, {"variant": "revcomp"})
    assert all(background == [bases[950:1100], bases[2000:2100]] for background in backgrounds)
    tokens = torch.from_numpy(np.asarray(encode(bases[950:1000]), np.int64))[None]
    expected = model(tokens).logits[0, -1].sum().item()
    assert float(rows[0]["copy_advantage"]) == pytest.approx(expected, abs=2e-4)
    table = (folder / "recall" / "recall.md").read_text().splitlines()
    assert table[0] == "| model | first copy | 256 | 4,096 |"
    assert table[3].startswith("| run | 5 % substituted | ")
    assert (folder / "recall" / "recall.png").stat().st_size > 10_000


def test_any_bed_may_be_the_background(run, monkeypatch):
    folder, _, bases = run
    (folder / "own.bed").write_text("chr1\t100\t200\nchr1\t500\t650\n")
    benchmark = FakeBenchmark()
    measured(load(monkeypatch, benchmark), monkeypatch, folder, "--background", "own.bed", "--variants", "exact")
    assert benchmark.calls[0][3] == [bases[100:200], bases[500:650]]


def test_points_are_kept_for_weights_and_background(run, monkeypatch):
    """The benchmark takes up again what lies in its file, whatever it was measured on."""
    folder, model, _ = run
    benchmark = FakeBenchmark()
    module = load(monkeypatch, benchmark)

    def file(*flags):
        measured(module, monkeypatch, folder, "--variants", "exact", *flags)
        return benchmark.calls[-1][1]

    first = file()
    assert file() == first
    (folder / "own.bed").write_text("chr1\t950\t1100\nchr1\t2000\t2101\n")
    other_background = file("--background", "own.bed")
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3
    splits = (folder / "run" / "splits.bed").read_bytes()
    save_checkpoint(model, folder / "run", {}, overwrite=True)
    (folder / "run" / "splits.bed").write_bytes(splits)
    other_weights = file()
    assert len({first, other_background, other_weights}) == 3


def test_runs_of_one_name_are_refused(run, monkeypatch):
    module = load(monkeypatch, FakeBenchmark())
    with pytest.raises(InputError, match="two of the runs have the same name"):
        measured(module, monkeypatch, run[0], runs=("run", "elsewhere/run"))


def test_a_point_that_was_not_measured_is_named(run, monkeypatch):
    module = load(monkeypatch, FakeBenchmark("skip: OOM"))
    with pytest.raises(InputError, match=r"run: d = 256: skip: OOM"):
        measured(module, monkeypatch, run[0])
