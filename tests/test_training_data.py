"""Which windows a step sees: a function of the seed and the step alone."""

import itertools
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnamamba.runs.schedule import learning_rate
from dnamamba.training.data import EvaluationSet, FixedWindows, SampleStream, Stage, StepDataset, evenly_spread
from dnamamba.training.resolve import warmup_lengths
from dnamamba.training.settings import ResolvedPretrainSettings


class CountingPlan:
    """Epochs of varying size; a window's tokens spell its epoch and index."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def epoch_size(self, epoch: int) -> int:
        return self.sizes[epoch % len(self.sizes)]

    def batch(self, epoch: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert len(indices) and indices.max() < self.epoch_size(epoch)
        return np.stack([np.full(len(indices), epoch % 256), indices], 1).astype(np.uint8), indices % 2 == 0


sizes = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)


def dataset(plan: Any, windows: int, rank: int = 0, world: int = 1) -> StepDataset:
    return StepDataset([Stage(0, plan, windows)], rank, world)


def tokens(dataset: StepDataset, step: int) -> list[list[int]]:
    return dataset[step].tokens.tolist()


@given(sizes, st.integers(1, 6), st.integers(1, 4), st.integers(0, 30))
def test_ranks_share_a_step_and_steps_follow_the_stream(sizes: Any, share: int, world: int, step: int) -> None:
    plan = cast(Any, CountingPlan(sizes))
    windows = share * world
    shares = [tokens(dataset(plan, windows, rank, world), step) for rank in range(world)]
    alone = dataset(plan, windows)
    assert list(itertools.chain(*shares)) == tokens(alone, step)
    stream = [[epoch, index] for epoch in range(800) for index in range(plan.epoch_size(epoch))]
    assert tokens(alone, step) == [[e % 256, i] for e, i in stream[step * windows : (step + 1) * windows]]


def test_reading_late_steps_first_changes_nothing() -> None:
    plan = cast(Any, CountingPlan((7, 3)))
    late = dataset(plan, 4)
    tokens(late, 50)
    early = dataset(plan, 4)
    assert [tokens(late, step) for step in range(10)] == [tokens(early, step) for step in range(10)]


def test_a_step_must_divide_over_devices() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        dataset(cast(Any, CountingPlan((5,))), 4, 0, 3)


def test_each_stage_begins_its_own_stream() -> None:
    short, long = cast(Any, CountingPlan((6,))), cast(Any, CountingPlan((9, 4)))
    staged = StepDataset([Stage(0, short, 4), Stage(3, long, 2)], 0, 1)
    alone = dataset(long, 2)
    assert [tokens(staged, step) for step in range(3)] == [tokens(dataset(short, 4), step) for step in range(3)]
    assert [tokens(staged, 3 + step) for step in range(9)] == [tokens(alone, step) for step in range(9)]


def test_length_warmup_doubles_up_to_the_length() -> None:
    settings = ResolvedPretrainSettings(length=8192, max_steps=100, length_warmup=0.6)
    assert warmup_lengths(settings) == [(0, 1024), (20, 2048), (40, 4096), (60, 8192)]
    assert warmup_lengths(replace(settings, length_warmup=0.0)) == [(0, 8192)]


@given(sizes, st.integers(1, 5), st.integers(0, 40))
def test_stream_ranges_are_whole(sizes: Any, count: int, first: int) -> None:
    ranges = SampleStream(cast(Any, CountingPlan(sizes))).locate(first, count)
    assert sum(len(indices) for _, indices in ranges) == count
    assert [epoch for epoch, _ in ranges] == sorted({epoch for epoch, _ in ranges})


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
def test_every_validation_window_once_whatever_the_world_size(size: int, batch: int, world: int) -> None:
    plan = cast(Any, CountingPlan((256,)))
    seen: list[int] = []
    for rank in range(world):
        dataset = FixedWindows(EvaluationSet("", plan, np.arange(size)), batch, rank, world)
        seen += [int(token) for item in range(len(dataset)) for token in dataset[item].tokens[:, 1]]
    assert sorted(seen) == list(range(size))


@given(st.integers(1, 1000), st.integers(0, 1200))
def test_evenly_spread(size: int, wanted: int) -> None:
    chosen = evenly_spread(size, wanted)
    assert len(chosen) == (wanted if 0 < wanted < size else size)
    gaps = np.diff(chosen)
    assert (gaps > 0).all()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
    assert chosen[-1] < size


def test_learning_rate_follows_the_recipe() -> None:
    rates = [learning_rate(s, peak=1.0, steps=1000, warmup_fraction=0.1, final_fraction=0.01) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == 1.0
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert all(earlier >= later for earlier, later in itertools.pairwise(rates[99:]))
    assert rates[549] == pytest.approx(0.505, abs=2e-3), "the middle of the cosine"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rate_of_very_short_runs(steps: int) -> None:
    for step in range(steps):
        assert 0 < learning_rate(step, peak=1.0, steps=steps, warmup_fraction=0.1, final_fraction=0.01) <= 1
