"""Windows: tiling, coverage over epochs, N, the permutation, and samples as functions of (seed, epoch, index)."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnamamba.alphabet import decode, encode, reverse_complement
from dnamamba.errors import InputError
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan, permute


def make_store(folder: Path, contigs: dict[str, str]) -> TokenStore:
    path = folder / "g.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return open_genome(path)


def random_sequence(length: int, seed: int, n_runs: int = 0) -> str:
    rng = np.random.default_rng(seed)
    letters = rng.choice(list("ACGTacgt"), length)
    for _ in range(n_runs):
        start = rng.integers(length)
        letters[start : start + rng.integers(1, 60)] = "N"
    return "".join(letters)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return make_store(
        tmp_path_factory.mktemp("windows"),
        {
            "a": random_sequence(3000, 1, 12),
            "b": random_sequence(777, 2),
            "tiny": "ACGT",
            "c": random_sequence(1500, 3, 5),
        },
    )


INTERVALS = (Interval("a", 5, 2990), Interval("b", 0, 777), Interval("tiny", 0, 4), Interval("c", 100, 900))


def all_windows(plan: WindowPlan, epoch: int):
    return [plan.window(epoch, index) for index in range(plan.epoch_size(epoch))]


@given(st.integers(1, 10**6), st.integers(0, 2**64 - 1))
@settings(max_examples=20, deadline=None)
def test_permute_is_a_bijection(size, key):
    order = permute(np.arange(size), size, key)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 99, 100, 101])
def test_permute_small_sizes(size):
    for key in range(20):
        assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_mixes_and_depends_on_the_key():
    size = 100_000
    order, other = (permute(np.arange(size), size, key) for key in (1, 2))
    for one in (order, other):
        assert abs(np.corrcoef(np.arange(size), one)[0, 1]) < 0.02
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 0.02
    assert (order == other).mean() < 0.001
    # Each position is reached from everywhere: the mean over keys of one index is the middle.
    means = np.mean([permute(np.arange(50), 50, key) for key in range(400)], axis=0)
    assert np.abs(means - 24.5).max() < 4


@pytest.mark.parametrize("length", [1, 2, 7, 64, 99, 128, 776])
def test_fixed_windows_tile_once(store, length):
    plan = WindowPlan(store, INTERVALS, length, seed=0, max_n_fraction=1.0)
    for interval in INTERVALS:
        own = [w for w in all_windows(plan, 0) if w.contig == interval.contig]
        assert len(own) == max((interval.length - 1) // length, 0)
        assert [w.start for w in own] == [interval.start + k * length for k in range(len(own))]
        assert all(w.end == w.start + length + 1 <= interval.end for w in own)
        assert not any(w.reverse_complement for w in own)
    assert all_windows(plan, 3) == all_windows(plan, 0)
    covered = sum(((i.length - 1) // length) * length + 1 for i in INTERVALS if i.length > length)
    assert plan.uncovered_bases(0) == sum(i.length for i in INTERVALS) - covered


@given(
    length=st.integers(20, 700),
    n=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**70),
    random=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_windows_are_inside_disjoint_and_not_n(store, length, n, seed, random):
    plan = WindowPlan(store, INTERVALS, length, seed, n, reverse_complement=True, random_phase=random)
    by_name = {interval.contig: interval for interval in INTERVALS}
    for epoch in (0, 5):
        windows = all_windows(plan, epoch)
        assert len(windows) + plan.skipped(epoch) == plan._tiles(epoch).tile[-1]
        targets = set()
        for index, window in enumerate(windows):
            interval = by_name[window.contig]
            assert interval.start <= window.start
            assert window.end <= interval.end
            tokens = plan.read(epoch, index)
            assert np.array_equal(tokens, store.read(window.contig, window.start, window.end))
            assert decode(tokens).upper().count("N") <= n * (length + 1)
            targets.add((window.contig, window.start))
        assert len(targets) == len(windows)
        for contig in by_name:
            starts = sorted(start for name, start in targets if name == contig)
            assert all((second - first) % length == 0 for first, second in itertools.pairwise(starts))


def test_skipped_are_exactly_those_with_too_many_n(store):
    for length, fraction in ((13, 0.1), (50, 0.2), (128, 0.0)):
        everything = WindowPlan(store, INTERVALS, length, 0, 1.0)
        plan = WindowPlan(store, INTERVALS, length, 0, fraction)
        texts = [decode(everything.read(0, i)).upper() for i in range(everything.epoch_size(0))]
        kept = [
            w for w, t in zip(all_windows(everything, 0), texts, strict=True) if t.count("N") <= fraction * (length + 1)
        ]
        assert 0 < len(kept) < len(texts)
        assert all_windows(plan, 0) == kept
        assert plan.skipped(0) == len(texts) - len(kept)


def test_every_base_is_covered_over_epochs(store):
    interval = Interval("b", 10, 777)
    plan = WindowPlan(store, (interval,), 100, 4, random_phase=True)
    seen = np.zeros(777, int)
    for epoch in range(300):
        for window in all_windows(plan, epoch):
            seen[window.start : window.end] += 1
    assert (seen[10:] > 0).all()
    assert (seen[:10] == 0).all()
    # The phase is uniform: away from the ends every position is seen alike (twice where windows meet).
    assert seen[120:660].min() > 0.9 * seen[120:660].max() - 30


def test_a_sample_is_a_function_of_seed_epoch_index(store):
    def plan(seed=7):
        return WindowPlan(store, INTERVALS, 64, seed, reverse_complement=True, random_phase=True)

    first, second = plan(), pickle.loads(pickle.dumps(plan()))
    forward = [first.window(epoch, i) for epoch in range(3) for i in range(first.epoch_size(epoch))]
    backward = [second.window(epoch, i) for epoch in (2, 1, 0) for i in reversed(range(second.epoch_size(epoch)))]
    assert forward == backward[::-1]
    assert all_windows(plan(8), 0) != all_windows(plan(7), 0)
    assert [w.start for w in all_windows(plan(), 0)] != [w.start for w in all_windows(plan(), 1)]


@pytest.mark.parametrize("length", [33, 601])
def test_batch_is_read_and_flags(store, length):
    plan = WindowPlan(store, INTERVALS, length, 3, reverse_complement=True, random_phase=True)
    indices = np.random.default_rng(0).integers(0, plan.epoch_size(2), 40)
    tokens, flags = plan.batch(2, indices)
    assert (tokens.shape, tokens.dtype, flags.dtype) == ((40, length + 1), np.uint8, bool)
    for row, flag, index in zip(tokens, flags, indices.tolist(), strict=True):
        assert np.array_equal(row, plan.read(2, index))
        assert flag == plan.window(2, index).reverse_complement
    flags = np.concatenate([plan.batch(e, np.arange(plan.epoch_size(e)))[1] for e in range(100)])
    assert 0.45 < flags.mean() < 0.55
    tokens, flags = plan.batch(0, np.array([], np.int64))
    assert (tokens.shape, flags.shape) == ((0, length + 1), (0,))


@pytest.mark.parametrize("index", [-1, 10**6])
def test_index_beyond_the_epoch(store, index):
    with pytest.raises(IndexError):
        WindowPlan(store, INTERVALS, 33, 3, random_phase=True).window(0, index)


def test_errors_name_the_longest(store):
    with pytest.raises(InputError, match=r"length 2985 is too long.*a:5-2990 of 2985"):
        WindowPlan(store, INTERVALS, 2985, 0)
    assert WindowPlan(store, INTERVALS, 2984, 0, 1.0, random_phase=True).epoch_size(0) == 1
    with pytest.raises(InputError, match="no interval"):
        WindowPlan(store, (), 10, 0)


def test_all_n_is_an_error(tmp_path):
    store = make_store(tmp_path, {"n": "N" * 500})
    with pytest.raises(InputError, match="more than 10% N"):
        WindowPlan(store, (Interval("n", 0, 500),), 50, 0)


def test_a_million_bases_long(tmp_path):
    store = make_store(tmp_path, {"long": "ACGTTGCAAC" * 250_000})
    plan = WindowPlan(store, (Interval("long", 0, 2_500_000),), 1_048_577, 0, random_phase=True)
    tokens, _ = plan.batch(0, np.arange(plan.epoch_size(0)))
    assert tokens.shape[1] == 1_048_578
    start = plan.window(0, 0).start
    assert decode(tokens[0, :10]) == ("ACGTTGCAAC" * 2)[start % 10 : start % 10 + 10]


def test_reverse_complement_before_the_shift():
    tokens = encode("AACGtN")
    assert decode(reverse_complement(tokens)) == "NaCGTT"
    batch = np.stack([tokens, tokens[::-1]])
    assert np.array_equal(reverse_complement(reverse_complement(batch)), batch)
