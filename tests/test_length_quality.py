"""Models of several lengths, scored at equal positions."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba import verbs
from dnamamba.alphabet import N, encode
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.bed import read_intervals
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pipelines"))
import length_quality


@pytest.fixture
def inference(tmp_path):
    save_checkpoint(tiny_model().eval(), tmp_path / "model", {})
    return load_for_inference(tmp_path / "model")


def plain_bits(model, window):
    """(length,) of a window's bases but the first, in one pass."""
    tokens = torch.from_numpy(window.astype(np.int64))[None]
    log_p = model(tokens[:, :-1]).logits[..., :4].log_softmax(-1)[0]
    wanted = tokens[0, 1:]
    found = -log_p.gather(1, wanted.clamp(max=3)[:, None])[:, 0] / math.log(2)
    return torch.where(wanted < 4, found, math.nan).numpy()


@pytest.mark.parametrize("passes", [40, 1 << 17])
def test_each_base_is_scored_in_the_last_half_of_its_tile(inference, monkeypatch, passes):
    monkeypatch.setattr(length_quality, "PASS", passes)
    region = encode(random_bases(257, 5)).copy()
    region[150] = N
    for length in (16, 64, 128):
        found = length_quality.in_tiles(inference, region, length)
        assert found.shape == (128,)
        for start in range(128 - length // 2, 256 - length + 1, length // 2):
            own = plain_bits(inference.model, region[start : start + length + 1])[length // 2 :]
            first = start + length // 2 - 128
            np.testing.assert_allclose(found[first : first + length // 2], own, rtol=2e-4, equal_nan=True)
        assert np.isnan(found).sum() == 1
    whole = length_quality.bits(inference, region[None])[0]
    np.testing.assert_allclose(whole, plain_bits(inference.model, region), rtol=2e-4, equal_nan=True)


def test_differences_have_intervals_of_the_intervals():
    drawn = np.random.default_rng(0)
    other = np.stack([drawn.normal(30_000, 3_000, 200), np.full(200, 16_384.0)], axis=1)
    own = other + np.stack([drawn.normal(-160, 80, 200), np.zeros(200)], axis=1)
    change, low, high = length_quality.difference(own, other)
    assert low < change < high
    assert change == pytest.approx(-160 / 16_384, abs=0.001)
    assert high - low == pytest.approx(2 * 1.96 * 80 / 16_384 / math.sqrt(200), rel=0.2)


def test_trainings_share_regions_and_differ_in_length_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "g.fa").write_text(f">chr1\n{random_bases(60_000, 3)}\n")
    planned = []

    def run_all(plans, slots, threads, deadline):
        planned.extend(plans)
        for number, run in enumerate(plans[0].runs[:3]):  # the last is not finished
            save_checkpoint(tiny_model(seed=number).eval(), plans[0].folder(run), {})
            (plans[0].folder(run) / "summary.json").write_text(json.dumps({}))
        return []

    monkeypatch.setattr(length_quality, "run_all", run_all)
    monkeypatch.setattr(length_quality, "PASS", 512)
    out = tmp_path / "out"
    flags = ["--genome", tmp_path / "g.fa", "--out", out, "--lengths", 1024, 256, "--scored", 4000]
    length_quality.main([*map(str, flags), "--batch_tokens", "4096", "--tokens", "8192"])
    (plan,) = planned
    assert [run.name for run in plan.runs] == ["250k-0000256-0", "250k-0001024-0", "1.4m-0000256-0", "1.4m-0001024-0"]
    parsed = [verbs.parser("pretrain").parse([*run.flags, "--out", "x"]) for run in plan.runs]
    assert [(each.length, each.backprop, each.chunk) for each in parsed[:2]] == [
        (256, "whole", None),
        (1024, "chunked", 512),
    ]
    assert {(str(each.train), each.batch_tokens, each.tokens) for each in parsed} == {
        (str([str(out / "train.bed")]), 4096, 8192)
    }
    store = open_genome(tmp_path / "g.fa")
    train, held_out = (read_intervals(out / f"{name}.bed", store) for name in ("train", "validation"))
    assert all(interval.length >= 2049 for interval in held_out)
    assert min(max(a.start - b.end, b.start - a.end) for a in train for b in held_out) >= 1024
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["size"], row["length"]) for row in rows] == [("250k", "256"), ("250k", "1024"), ("1.4m", "256")]
    assert len({row["bases"] for row in rows}) == 1 and int(rows[0]["bases"]) >= 4000
    assert float(rows[0]["difference"]) == 0 != float(rows[1]["difference"])
    positions = list(csv.DictReader((out / "by_position.csv").read_text().splitlines()))
    assert [int(row["position"]) for row in positions[:12]] == [1 << power for power in range(12)]
    assert {float(row["difference"]) for row in positions[:12]} == {0.0}  # the shortest, from itself
    for own, other in zip(positions[12:24], positions[:12], strict=True):
        change = float(own["bits_per_base"]) - float(other["bits_per_base"])
        assert float(own["low"]) <= float(own["difference"]) <= float(own["high"])
        assert float(own["difference"]) == pytest.approx(change)
    assert "not finished: 1.4m-0001024-0" in capsys.readouterr().out
    assert (out / "results.png").stat().st_size > 10_000

    monkeypatch.setattr(length_quality, "run_all", lambda *_: [])
    monkeypatch.setattr(length_quality, "load_for_inference", None)  # what is scored is not scored again
    length_quality.main([*map(str, flags), "--batch_tokens", "4096", "--tokens", "8192"])
    assert list(csv.DictReader((out / "results.csv").read_text().splitlines())) == rows
    monkeypatch.setattr(length_quality, "load_for_inference", load_for_inference)
    save_checkpoint(tiny_model(seed=9).eval(), plan.folder(plan.runs[1]), {}, overwrite=True)  # which keeps no scores
    keep = plan.folder(plan.runs[0]) / "scores.npz"
    (plan.folder(plan.runs[1]) / "scores.npz").write_bytes(keep.read_bytes())  # those of other weights
    (plan.folder(plan.runs[1]) / "summary.json").write_text(json.dumps({}))
    length_quality.main([*map(str, flags), "--batch_tokens", "4096", "--tokens", "8192"])
    again = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [again[0], again[2]] == [rows[0], rows[2]]
    assert float(again[1]["difference"]) not in (0, float(rows[1]["difference"]))
    with pytest.raises(InputError, match=r"train\.bed: from another genome, --lengths or --scored"):
        length_quality.main([*map(str, flags[:-1]), "9000", "--batch_tokens", "4096", "--tokens", "8192"])


def test_odd_lengths_are_refused():
    with pytest.raises(InputError, match="powers of two"):
        length_quality.main(["--genome", "g.fa", "--lengths", "1000"])
