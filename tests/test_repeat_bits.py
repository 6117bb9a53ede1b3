"""Classes of bases by what has stood before them, and what is made of several models' bits."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba.alphabet import SOFT_MASK_BIT, TOKEN_BITS, N, encode, reverse_complement
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pipelines"))
import repeat_bits


def plain_class(bases, target):
    """Of the base after `target`, by scanning what is before it."""
    word = bases[target + 1 - repeat_bits.WORD : target + 1]
    if target + 1 < repeat_bits.WORD or (word == N).any():
        return "unique"
    for distance in range(1, target + 2 - repeat_bits.WORD):
        if (bases[target + 1 - repeat_bits.WORD - distance : target + 1 - distance] == word).all():
            return "tandem" if distance < repeat_bits.NEAR else "near" if distance < repeat_bits.FAR else "far"
    inverse = reverse_complement(word)
    for end in range(repeat_bits.WORD, target + 2 - repeat_bits.WORD):
        if (bases[end - repeat_bits.WORD : end] == inverse).all():
            return "inverted"
    return "unique"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_classes_are_those_of_a_plain_scan(seed, monkeypatch):
    monkeypatch.setattr(repeat_bits, "FAR", 256)
    drawn = np.random.default_rng(seed)
    window = drawn.integers(0, 4, 600).astype(np.uint8)
    window[180:230] = window[100:150]
    window[400:450] = window[20:70]
    window[300:340] = reverse_complement(window[240:280])
    window[500:540] = np.resize(window[500:507], 40)
    window[[130, 210, 310, 440]] = N
    window[::3] |= SOFT_MASK_BIT
    found = [repeat_bits.CLASSES[number] for number in repeat_bits.classes(window)]
    bases = window & TOKEN_BITS
    assert found == [plain_class(bases, target) for target in range(599)]
    assert set(found) == set(repeat_bits.CLASSES)


def test_windows_shorter_than_a_word_are_unique():
    assert repeat_bits.classes(np.zeros(10, np.uint8)).tolist() == [0] * 9


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two run folders on one genome."""
    bases = random_bases(4000, 2)
    bases = bases[:2700] + bases[2450:2600] + bases[2850:]
    (tmp_path / "g.fa").write_text(f">chr1\n{bases}\n")
    for number, name in enumerate(("one", "two")):
        save_checkpoint(tiny_model(seed=number).eval(), tmp_path / name, {})
        (tmp_path / name / "splits.bed").write_text("chr1\t0\t900\ttrain\nchr1\t2300\t3700\ttest\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path, bases


def measure(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["repeat_bits.py", "one", "two", "--genome", "g.fa", "--length", "650", *flags])
    repeat_bits.main()
    return list(csv.DictReader(Path("repeats/repeats.csv").read_text().splitlines()))


def test_both_models_are_scored_on_the_same_bases(runs, monkeypatch):
    _, bases = runs
    rows = measure(monkeypatch)
    by_class = {(row["model"], row["class"]): row for row in rows}
    assert {row["class"] for row in rows} == {"unique", "near", "all"}
    assert int(by_class["two", "near"]["bases"]) == pytest.approx(150 - repeat_bits.WORD, abs=4)
    whole = {}
    for number, name in enumerate(("one", "two")):
        model = tiny_model(seed=number).eval()
        bits = 0.0
        for start in (2300, 2950):
            tokens = torch.from_numpy(encode(bases[start : start + 651]).astype(np.int64))[None]
            bits += model.loss(tokens[:, :-1], tokens[:, 1:]).nll_sum.item() / np.log(2)
        whole[name] = bits / 1300
        assert float(by_class[name, "all"]["bits_per_base"]) == pytest.approx(whole[name], rel=1e-5)
        parts = [by_class[name, label] for label in ("unique", "near")]
        assert sum(int(row["bases"]) for row in parts) == 1300
    change = by_class["two", "all"]
    assert float(change["difference"]) == pytest.approx(whole["two"] - whole["one"], rel=1e-4)
    assert float(change["low"]) <= float(change["difference"]) <= float(change["high"])
    assert float(by_class["one", "all"]["difference"]) == 0


def test_a_split_without_intervals_is_refused(runs, monkeypatch):
    with pytest.raises(InputError, match="no interval called validation"):
        measure(monkeypatch, "--split", "validation")
