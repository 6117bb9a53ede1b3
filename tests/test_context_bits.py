"""Bits of a trained model on the same bases, by the context it may read."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_bases, tiny_model

from dnamamba.alphabet import encode
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference.load import load_for_inference

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pipelines"))
import context_bits
import length_quality


def test_the_same_bases_are_scored_with_each_context(tmp_path, monkeypatch, capsys):
    bases = random_bases(2_000, 3)
    (tmp_path / "g.fa").write_text(f">chr1\n{bases}\n")
    (tmp_path / "held_out.bed").write_text("chr1\t100\t1900\n")
    for number in range(2):
        save_checkpoint(tiny_model(seed=number).eval(), tmp_path / f"model-{number}", {})
    out = tmp_path / "out"
    flags = ["--genome", tmp_path / "g.fa", "--regions", tmp_path / "held_out.bed", "--out", out, "--windows", 3]
    arguments = [*map(str, [tmp_path / "model-0", tmp_path / "model-1", *flags]), "--lengths", "256", "64", "16"]
    context_bits.main(arguments)
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["model"], row["length"]) for row in rows] == [
        (f"model-{number}", length) for number in range(2) for length in ("16", "64", "256")
    ]
    assert {row["bases"] for row in rows} == {str(3 * 256)} and {row["windows"] for row in rows} == {"3"}

    # Windows of 512 from base 100 on, of which the second halves count: here in their tiles of 64.
    inference, found = load_for_inference(tmp_path / "model-0"), 0.0
    for start in (100, 612, 1124):
        region = encode(bases)[start : start + 513]
        for first in range(256 - 32, 512 - 64 + 1, 32):
            found += length_quality.bits(inference, region[None, first : first + 65])[0, 32:].sum()
    assert float(rows[1]["bits_per_base"]) == pytest.approx(found / (3 * 256), rel=1e-6)
    change = float(rows[2]["bits_per_base"]) - float(rows[1]["bits_per_base"])
    assert float(rows[2]["from_before"]) == pytest.approx(change)
    assert float(rows[2]["from_before_low"]) <= change <= float(rows[2]["from_before_high"])
    assert float(rows[0]["from_shortest"]) == float(rows[0]["from_before"]) == float(rows[3]["from_shortest"]) == 0
    assert (out / "results.png").stat().st_size > 10_000

    loaded = []
    monkeypatch.setattr(context_bits, "load_for_inference", lambda model: loaded.append(model.name) or inference)
    context_bits.main(arguments)  # what is scored is not scored again
    assert not loaded and list(csv.DictReader((out / "results.csv").read_text().splitlines())) == rows
    save_checkpoint(tiny_model(seed=5).eval(), tmp_path / "model-1", {}, overwrite=True)
    context_bits.main(arguments)
    assert loaded == 3 * ["model-1"]


def test_models_of_one_name_and_odd_lengths_are_refused(tmp_path):
    flags = ["--genome", "g.fa", "--regions", "r.bed"]
    with pytest.raises(InputError, match="names of their own"):
        context_bits.main(["a/best", "b/best", *flags])
    with pytest.raises(InputError, match="powers of two"):
        context_bits.main(["a", *flags, "--lengths", "1000"])


def test_differences_from_the_next_shorter_length_add_up():
    drawn = np.random.default_rng(0)
    bits = {length: np.stack([drawn.normal(30, 3, 20), np.full(20, 16.0)], axis=1) for length in (256, 16, 64)}
    rows = context_bits.rows_of("m", bits)
    assert [row["length"] for row in rows] == [16, 64, 256]
    assert sum(row["from_before"] for row in rows) == pytest.approx(rows[-1]["from_shortest"])
