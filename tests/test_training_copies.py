"""Planted copies: where they lie, what they hold, and that a window is a function of (seed, epoch, index)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnamamba import verbs
from dnamamba.alphabet import SOFT_MASK_BIT, TOKEN_BITS, N, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.windows import Window, WindowPlan
from dnamamba.model.settings import model_config
from dnamamba.training.copies import BASES_A_COPY, LENGTHS, CopiedPlan, Draw, dense, hairpins, plant, scattered
from dnamamba.training.data import StepDataset
from dnamamba.training.prepare import prepare_data
from dnamamba.training.resolve import dense_steps, last_copies, resolve, warmup_lengths
from dnamamba.training.settings import PretrainSettings


class RandomPlan:
    """Windows of random bases with N and soft mask; every third window is packed."""

    def __init__(self, length: int, packed: bool = False) -> None:
        self.length, self.packed = length, packed

    def epoch_size(self, epoch: int) -> int:
        return 1000

    def windows(self, epoch: int, index: int) -> list[Window]:
        return [Window("chr1", index, index + self.length, False)]

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        tokens = np.stack([np.random.default_rng((epoch, i)).integers(0, 5, self.length) for i in indices.tolist()])
        masked = tokens.astype(np.uint8) | np.where(tokens == 1, SOFT_MASK_BIT, 0).astype(np.uint8)
        flags = indices % 2 == 0
        ids = np.where(indices[:, None] % 3 == 0, np.arange(self.length) // 100, 0).astype(np.int32)
        return (masked, flags, ids) if self.packed else (masked, flags)


lengths = st.integers(8, 40_000)
keys = st.integers(0, 2**64 - 1)


@given(lengths, keys)
def test_copies_lie_in_the_window(length: int, key: int) -> None:
    copies = scattered(length, key)
    assert len(copies) == max(length // BASES_A_COPY, 1)
    assert all(copy.length <= min(LENGTHS[1], max(length // 4, 1)) for copy in copies)
    for copy in copies + dense(length, key) + hairpins(length, key):
        assert copy.source >= 0
        assert min(copy.distance, copy.length) >= 1
        assert copy.source + copy.distance + copy.length <= length
        assert not (copy.inverted and copy.length > copy.distance)
        assert 0 <= copy.substituted <= 0.2


def test_all_kinds_are_drawn() -> None:
    for draw in (scattered, dense):
        windows = [draw(16_385, key) for key in range(400)]
        firsts = [window[0] for window in windows]
        assert np.mean([copy.inverted for copy in firsts]) == pytest.approx(0.5, abs=0.08)
        assert np.mean([copy.substituted == 0 for copy in firsts]) == pytest.approx(0.5, abs=0.08)
    copies = [copy for key in range(200) for copy in scattered(16_385, key)]
    by_octave = np.histogram(np.log2([copy.distance for copy in copies]), bins=range(4, 15))[0] / len(copies)
    assert by_octave[:-1] == pytest.approx(np.full(9, 0.1), abs=0.02)
    assert sum(copy.distance < copy.length for copy in copies) > len(copies) / 20, "tandem repeats"


@pytest.mark.parametrize("draw", [scattered, dense, hairpins])
@given(length=st.integers(8, 3000), key=keys)
def test_a_copy_is_what_it_says(draw: Draw, length: int, key: int) -> None:
    before = np.random.default_rng(key).integers(0, 5, length).astype(np.uint8)
    before[::7] |= SOFT_MASK_BIT
    window = before.copy()
    plant(window, draw(length, key), key)
    expected, substituted = before.copy(), np.zeros(length, bool)
    for copy in draw(length, key):
        first, end = copy.source + copy.distance, copy.source + copy.distance + copy.length
        if copy.inverted:
            source = slice(copy.source, copy.source + copy.length)
            expected[first:end] = reverse_complement(expected[source])
            substituted[first:end] = substituted[source][::-1]
        else:
            for base in range(first, end):
                expected[base] = expected[base - copy.distance]
                substituted[base] = substituted[base - copy.distance]
        substituted[first:end] |= copy.substituted > 0
    assert np.array_equal(window[~substituted], expected[~substituted])
    same = (window & TOKEN_BITS) == (expected & TOKEN_BITS)
    assert np.array_equal(window & SOFT_MASK_BIT, expected & SOFT_MASK_BIT)
    assert same[(expected & TOKEN_BITS) == N].all()
    if substituted.sum() > 300:
        assert same[substituted].mean() > 0.5


def test_dense_windows_are_repeats_from_end_to_end() -> None:
    for key in range(50):
        window = np.random.default_rng(key).integers(0, 4, 2049).astype(np.uint8)
        copies = dense(2049, key)
        unit = copies[0].distance
        assert 16 <= unit <= 256
        covered = sum(copy.length for copy in copies)
        plant(window, [copy._replace(substituted=0.0) for copy in copies], key)
        if copies[0].inverted:
            assert covered > 0.3 * 2049
            assert np.array_equal(window[unit : 2 * unit], reverse_complement(window[:unit]))
            assert not np.array_equal(window[2 * unit : 3 * unit], window[:unit]), "the next unit is a new one"
        else:
            assert covered == 2049 - unit
            assert np.array_equal(window[unit:], window[:-unit])


@pytest.mark.parametrize("packed", [False, True])
def test_a_share_of_the_windows_gets_copies(packed: bool) -> None:
    bare = RandomPlan(700, packed)
    plan = CopiedPlan(bare, 0.25, 3, scattered)
    indices = np.arange(1000)
    tokens, *others = plan.batch(2, indices)
    expected, *expected_others = bare.batch(2, indices)
    changed = (tokens != expected).any(1)
    whole = np.full(1000, True) if not packed else ~expected_others[1].any(1)
    assert changed[whole].mean() == pytest.approx(0.25, abs=0.05)
    assert not changed[~whole].any()
    for other, expected_other in zip(others, expected_others, strict=True):
        assert np.array_equal(other, expected_other)
    assert (plan.epoch_size(0), plan.windows(1, 4)) == (1000, bare.windows(1, 4))


def test_a_window_is_a_function_of_seed_epoch_and_index() -> None:
    def rows(seed: int, epoch: int, indices: Any) -> np.ndarray:
        return CopiedPlan(RandomPlan(3000), 1.0, seed, scattered).batch(epoch, np.array(indices))[0]

    assert np.array_equal(rows(1, 0, [5, 6, 7])[1:], rows(1, 0, [6, 7]))
    bare = RandomPlan(3000).batch(0, np.array([6]))[0]
    assert not np.array_equal(rows(1, 0, [6]) != bare, rows(2, 0, [6]) != bare)


def test_the_recipe_is_a_run() -> None:
    recipe = Path(__file__).resolve().parent.parent / "pipelines" / "recipes" / "copies.yaml"
    given = verbs.parser("pretrain").parse(["--config", str(recipe), "--genome", "x.fa", "--accelerator", "cpu"])
    parsed = resolve(given)
    assert [n for n, mixer in enumerate(model_config(parsed.model).mixers) if mixer == "attention"] == [2]
    assert (dense_steps(parsed), last_copies(parsed), parsed.max_steps) == (608, 2400, 3200)
    assert warmup_lengths(parsed)[-1] == (1280, 16_384)


def test_shares_of_more_than_all_steps_are_refused() -> None:
    with pytest.raises(InputError, match=r"--copies_cooldown: 0.6 and --copies_warmup 0.5 are more than all steps"):
        resolve(PretrainSettings(accelerator="cpu", copies=0.25, copies_warmup=0.5, copies_cooldown=0.6))
    with pytest.raises(InputError, match=r"--copies_cooldown needs --copies"):
        resolve(PretrainSettings(accelerator="cpu", copies_cooldown=0.25))


def test_a_run_has_dense_windows_first_and_scattered_copies_then(tmp_path: Path) -> None:
    parsed = resolve(
        PretrainSettings(
            out=tmp_path / "run",
            accelerator="cpu",
            length=4096,
            batch_tokens=8192,
            max_steps=20,
            length_warmup=0.5,
            copies=0.25,
            copies_warmup=0.3,
            copies_cooldown=0.2,
        )
    )
    stages = prepare_data(parsed).data.stages
    kinds = [(stage.first_step, stage.plan.draw.__name__, stage.plan.share) for stage in stages[:-1]]  # type: ignore[attr-defined]
    assert kinds == [
        (0, "hairpins", 1.0),
        (3, "dense", 1.0),
        (5, "dense", 1.0),
        (6, "scattered", 0.25),
        (10, "scattered", 0.25),
    ]
    assert stages[-1].first_step == 16 and isinstance(stages[-1].plan, WindowPlan)
    assert [stage.windows_per_step for stage in stages] == [8, 8, 4, 4, 2, 2]
    without = prepare_data(replace(parsed, copies_warmup=0.0, copies_cooldown=0.0)).data.stages
    assert [stage.first_step for stage in without] == [0, 5, 10]
    none = prepare_data(replace(parsed, copies=0.0)).data.stages
    assert all(isinstance(stage.plan, WindowPlan) for stage in none)
    read, read_without = StepDataset(stages, 0, 1), StepDataset(none, 0, 1)
    for step in range(20):  # what is planted changes nothing about which windows are read: none twice an epoch
        assert read.windows(step) == read_without.windows(step), step
