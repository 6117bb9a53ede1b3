"""A first run on a CPU: defaults that fit the machine, how long it takes, and what makes it ten minutes."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import random_bases

from dnamamba import cli, pretrain
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import training_flops_per_token
from dnamamba.model.settings import ModelSettings
from dnamamba.runs import progress
from dnamamba.runs.progress import TrainingProgress
from dnamamba.training import estimate as estimating
from dnamamba.training.estimate import Estimate, advice, estimate, is_worth_measuring
from dnamamba.training.prepare import prepare_data
from dnamamba.training.resolve import resolve, validation_count
from dnamamba.training.settings import PretrainSettings

TINY = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]


def resolved(**settings):
    return resolve(PretrainSettings(**{"genome": [Path("g.fa")], "accelerator": "cpu", "out": Path("r"), **settings}))


def sizes(run):
    return run.model.preset, run.length, run.batch_tokens, run.max_steps, run.validation_tokens, run.validation_every


def test_defaults_fit_the_machine(monkeypatch):
    assert sizes(resolved()) == ("250k", 1024, 8192, 2000, 8192 * 200, 200)
    assert sizes(resolved(genome=None)) == ("demo", 1024, 4096, 600, 4096 * 120, 120)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sizes(resolved(accelerator="gpu")) == ("1.4m", 8192, 262_144, 10_000, 2_000_000, 1000)


def test_validation_shrinks_with_the_run():
    assert resolved(max_steps=20).validation_tokens == 8192 * 2
    assert resolved(max_steps=20, validation_every=1).validation_tokens == 8192
    assert resolved(max_steps=20, validation_tokens=0).validation_tokens == 0  # all of it, as asked for
    assert resolved(batch_tokens=1024, max_steps=1).validation_tokens == 1024  # a window at least
    for steps, every, count in ((20, 2, 10), (21, 2, 11), (5, 9, 1)):
        assert validation_count(resolved(max_steps=steps, validation_every=every)) == count


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("estimate") / "g.fa"
    path.write_text(f">chr1\n{random_bases(200_000, 1)}\n")
    return path


def test_the_estimate_counts_steps_and_validations(fasta, monkeypatch):
    """A training pass of 3 s for 4 of the 8 windows of a step, a validation of 0.5 s for 4 windows."""
    model = ModelSettings(preset="demo", n_layer=1, d_model=16)
    settings = resolved(genome=[fasta], model=model, length=512, batch_tokens=4096, max_steps=90, micro_tokens=2048)
    clock = [0.0]
    monkeypatch.setattr(estimating, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(estimating, "_training_pass", lambda *arguments: 3.0)
    seen = []

    def evaluated(model, sets, chunk):
        seen.append(len(sets[0].plan.intervals) and sum(map(len, sets[0].batches)))
        clock[0] += 0.5

    monkeypatch.setattr(estimating, "evaluate", evaluated)
    prepared = prepare_data(settings)
    found = estimate(settings, LanguageModel(preset("demo", n_layer=1, d_model=16)), prepared)
    windows = len(prepared.data.validation[0].indices)
    assert seen == [4] and windows == min(9 * 4096 // 512, prepared.genomes[0].validation.epoch_size(0)) > 4
    assert (found.step, found.validations, found.bases_per_second) == (6.0, 10, 4096 / 6)
    assert found.seconds == pytest.approx(90 * 6.0 + 10 * 0.5 * windows / 4)
    assert str(found).startswith("6 s a step, 683 bases/s, ")


def test_a_run_of_hours_prints_the_flags_of_ten_minutes(monkeypatch):
    """On a machine of 2 Gflop/s."""
    monkeypatch.setattr(
        estimating,
        "_training_pass",
        lambda model, windows, length, *rest: windows * length * training_flops_per_token(model, length) / 2e9,
    )
    settings = resolved(max_steps=10_000, length=8192, batch_tokens=262_144, model=ModelSettings(preset="1.4m"))
    model = LanguageModel(preset("1.4m"))
    seconds = 262_144 * training_flops_per_token(model, 8192) / 2e9
    expected = Estimate(seconds, 0.0, 10_000, 10, 1.0, "")
    printed = advice(settings, model, expected)
    assert f"about {seconds * 10_000 / 86_400:.0f} days on this machine" in printed
    flags = dict(re.findall(r"--(\S+) (\S+)", printed))
    assert flags["length"] == "1024" and flags["batch_tokens"] == "8192"
    proposed = LanguageModel(preset(flags.get("model.preset", "1.4m")))
    steps = resolved(model=ModelSettings(preset=flags.get("model.preset")), max_steps=int(flags["max_steps"]))
    # A validation reads what was trained on since the last, at a third of the cost.
    work = steps.max_steps * 8192 + validation_count(steps) * steps.validation_tokens / 3
    assert work * training_flops_per_token(proposed, 1024) / 2e9 == pytest.approx(600, rel=0.02)
    assert steps.max_steps * 8192 > estimating.FEW_BASES or flags["model.preset"] == "demo"
    assert advice(settings, model, expected._replace(steps=1, step=3500.0)) == ""
    assert advice(resolved(), model, expected._replace(steps=1, step=3700.0)).startswith(
        "this run takes about 1.0 hours"
    )


def test_the_demo_is_not_measured_and_a_default_run_on_a_cpu_is():
    assert not is_worth_measuring(resolved(genome=None), LanguageModel(preset("demo")))
    assert is_worth_measuring(resolved(), LanguageModel(preset("250k")))


def test_measuring_changes_nothing(fasta, tmp_path, monkeypatch, capsys):
    flags = ["--genome", str(fasta), *TINY, "--length", "256", "--batch_tokens", "512", "--max_steps", "3"]
    flags += ["--markov_order", "0", "--accelerator", "cpu"]
    found = []
    for name, limit in (("plain", 1e13), ("measured", 0.0)):
        monkeypatch.setattr(estimating, "WORTH_MEASURING", limit)
        assert cli.run(pretrain.main, [*flags, "--out", str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        assert ("  estimate  " in printed) == (limit == 0.0)
        found.append((tmp_path / name / "checkpoints" / "last" / "model.safetensors").read_bytes())
    assert printed.index("estimate") < printed.index("step 1/3") and "note" not in printed
    assert found[0] == found[1]


def test_the_time_left_includes_validations(monkeypatch, capsys):
    """2 s a step, 5 s a validation every 10 of 40 steps; before the first a validation counts for 3 steps."""
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    bar = TrainingProgress(40, 0, True, validation_every=10, validation_steps=3.0)
    row = {"train_bits_per_base": 2.0, "tokens_per_second": None}

    def left(step, seconds, validated_in=None):
        now[0] = seconds
        bar.update(step, row, float("nan"), validated_in)
        return capsys.readouterr().out.split("ETA ")[1].strip()

    assert left(5, 10.0) == progress.clock(2 * 35 + 4 * 6)
    assert left(10, 25.0, validated_in=5.0) == progress.clock(2 * 30 + 3 * 5)
    assert left(15, 35.0) == progress.clock(2 * 25 + 3 * 5)
    assert left(40, 100.0, validated_in=5.0) == "0:00"


def test_the_memory_of_each_way_to_recompute(monkeypatch):
    """Peaks of passes that are pretended; where one does not fit, the line says so."""
    model, seen = LanguageModel(preset("demo", n_layer=1, d_model=16)), []
    model.backbone.recompute = "cheap"
    assert estimating.memory_of_each(resolved(), model) == ""
    monkeypatch.setattr(estimating, "torch_device", lambda accelerator: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(model, "to", lambda device: model)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)

    def passed(model, windows, *rest):
        seen.append((model.backbone.recompute, windows))
        if model.backbone.recompute == "none":
            raise torch.OutOfMemoryError

    monkeypatch.setattr(estimating, "_training_pass", passed)
    monkeypatch.setattr(estimating, "peak_memory_gib", lambda device: {"cheap": 30.0, "all": 14.0}[seen[-1][0]])
    settings = resolved(length=512, batch_tokens=4096, micro_tokens=2048)
    found = estimating.memory_of_each(settings, model)
    assert found == "none more than there is, cheap 30.0, all 14.0 GiB a device; this run takes cheap"
    assert seen == [("none", 4), ("cheap", 4), ("all", 4)]
    assert model.backbone.recompute == "cheap"
