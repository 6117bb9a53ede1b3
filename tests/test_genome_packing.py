"""Packed windows: every short sequence once an epoch, whole, in order; windows a function of (seed, epoch, index)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnamamba.alphabet import PAD
from dnamamba.genome.intervals import Interval
from dnamamba.genome.packing import PackedPlan, pack
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import Window, WindowPlan

LENGTH = 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Two long contigs, sixty from 1 base to some more than a window, one short of N alone."""
    chance = np.random.default_rng(1)
    sizes = [1000, 700, *chance.integers(1, LENGTH + 10, 60), 1, 2, LENGTH, LENGTH + 1]
    records = [f">c{number}\n{''.join(chance.choice(list('ACGTacgt'), size))}\n" for number, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("packing") / "short.fa"
    path.write_text("".join(records) + ">gap\n" + "N" * 30 + "AC\n")
    return open_genome(path)


def plan(store: TokenStore, seed: int = 0, reverse_complement: bool = True) -> PackedPlan:
    intervals = tuple(Interval(contig.name, 0, contig.length) for contig in store.contigs)
    windows = WindowPlan(
        store, intervals, LENGTH, seed, reverse_complement=reverse_complement, random_phase=True, max_n_fraction=0.1
    )
    return PackedPlan(windows, intervals, max_n_fraction=0.1)


def sequences(packed: PackedPlan, epoch: int) -> list[tuple[Window, bytes]]:
    """Each row cut at its changes of number, with the window that the plan says is there."""
    found = []
    tokens, flags, ids = packed.batch(epoch, np.arange(packed.epoch_size(epoch)))
    assert tokens.dtype == np.uint8 and ids.dtype == np.int32 and tokens.shape == ids.shape
    for index, (row, flag, numbers) in enumerate(zip(tokens, flags, ids, strict=True)):
        windows = packed.windows(epoch, index)
        for number, window in enumerate(windows):
            assert window.reverse_complement == flag
            found.append((window, row[numbers == number].tobytes()))
        rest = row[numbers >= len(windows)]
        assert (rest == PAD).all() and len(set(numbers.tolist())) == len(windows) + bool(len(rest))
        assert (np.diff(numbers) >= 0).all()
    return found


@pytest.mark.parametrize("epoch", [0, 3])
def test_every_short_contig_once_an_epoch_and_windows_as_before(store: TokenStore, epoch: int) -> None:
    packed = plan(store)
    found = sequences(packed, epoch)
    for window, tokens in found:
        assert tokens == store.read(window.contig, window.start, window.end).tobytes()
    expected = {contig.name for contig in store.contigs if 2 <= contig.length <= LENGTH and contig.name != "gap"}
    assert len(expected) > 40
    short = Counter(w.contig for w, _ in found if w.end - w.start <= LENGTH)
    assert short == Counter(dict.fromkeys(expected, 1))
    long = Counter((w.contig, w.start) for w, _ in found if w.end - w.start > LENGTH)
    size = packed.long.epoch_size(epoch)
    assert long == Counter((w.contig, w.start) for w in (packed.long.window(epoch, index) for index in range(size)))


def test_rows_are_a_function_of_seed_epoch_and_index(store: TokenStore) -> None:
    whole = plan(store).batch(2, np.arange(plan(store).epoch_size(2)))
    late = plan(store)
    late.batch(5, np.arange(4))
    some = np.array([7, 3, 20])
    for one, other in zip(late.batch(2, some), whole, strict=True):
        assert (one == other[some]).all()
    order = [[w.contig for w, _ in sequences(plan(store, seed), epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert order[0] != order[1] and order[0] != order[2], "epochs and seeds differ"
    flags = whole[1]
    assert 0 < flags.sum() < len(flags)
    assert not plan(store, reverse_complement=False).batch(2, np.arange(10))[1].any()


def test_beyond_the_epoch(store: TokenStore) -> None:
    packed = plan(store)
    with pytest.raises(IndexError, match="windows 0 to"):
        packed.batch(0, np.array([packed.epoch_size(0)]))


def test_nothing_short_is_the_plain_plan(store: TokenStore) -> None:
    intervals = (Interval("c0", 0, 1000),)
    windows = WindowPlan(store, intervals, LENGTH, 0, random_phase=True)
    packed = PackedPlan(windows, intervals, 0.1)
    assert packed.packed_windows == 0 and packed.epoch_size(0) == windows.epoch_size(0)
    assert {tuple(row) for row in packed.batch(0, np.arange(5))[2].tolist()} == {(0,) * (LENGTH + 1)}


@given(st.lists(st.integers(2, 100), max_size=200))
def test_rows_hold_what_they_are_given_and_few_are_opened(lengths: list[int]) -> None:
    rows = pack(np.array(lengths, np.int64), 101)
    assert len(rows) == len(lengths)
    if lengths:
        fill = np.bincount(rows, weights=lengths)
        assert fill.max() <= 101 and fill.min() > 0
        assert len(fill) <= 11 / 9 * sum(lengths) / 101 * 2 + 1, "no two rows half empty"
        assert (fill <= 50).sum() <= 1
