"""The source of the CUDA scan, run on the CPU (`cuda_on_cpu`), against the fp64 reference."""

import shutil
from itertools import product

import cuda_on_cpu
import pytest
import torch
from test_gpu_scan import CUDA, WAYS, arguments, check, check_forgetting, make, run_cuda, run_phases, run_reference

from dnamamba_kernels.scan.arguments import ScanOptions
from dnamamba_kernels.scan.cuda import plan
from dnamamba_kernels.scan.cuda import scan as cuda_scan

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    cuda_on_cpu.install(monkeypatch)
    monkeypatch.setattr(plan, "WHOLE_PACE", WAYS["chunks"])


@pytest.fixture
def way(monkeypatch, request):
    """The way of WAYS that the forward pass takes; fails if it did not."""
    monkeypatch.setattr(plan, "WHOLE_PACE", WAYS[request.param])
    launched, run_pass = [], cuda_scan._Call.run_pass

    def seen(self, name, *how, **tensors):
        launched.append(name)
        run_pass(self, name, *how, **tensors)

    monkeypatch.setattr(cuda_scan._Call, "run_pass", seen)
    yield request.param
    assert ("scan_whole" in launched) == (request.param == "one pass")


@pytest.mark.parametrize(
    ("way", "dtype", "batch", "length", "channels", "state", "groups"),
    [
        ("chunks", torch.float32, 1, 1, 2, 16, 1),
        ("chunks", torch.bfloat16, 2, 67, 64, 16, 1),
        ("chunks", torch.float16, 1, 97, 77, 16, 1),
        ("chunks", torch.bfloat16, 1, 150, 72, 16, 1),
        ("chunks", torch.bfloat16, 1, 231, 192, 16, 3),
        ("chunks", torch.float32, 1, 161, 48, 8, 2),
        ("one pass", torch.float32, 1, 1, 4, 16, 1),
        ("one pass", torch.bfloat16, 2, 67, 64, 16, 1),
        ("one pass", torch.float16, 1, 97, 72, 16, 1),
        ("one pass", torch.float32, 1, 64, 68, 16, 1),
        ("one pass", torch.bfloat16, 1, 96, 128, 16, 1),
        ("one pass", torch.bfloat16, 2, 231, 192, 12, 3),
        ("one pass", torch.float32, 1, 161, 48, 4, 2),
    ],
    indirect=["way"],
    ids=str,
)
def test_sizes(way, dtype, batch, length, channels, state, groups):
    a = make(CPU, dtype, batch, length, channels, state, groups)
    check(run_cuda(a, ScanOptions()), run_reference(a, ScanOptions()), dtype)


@pytest.mark.parametrize("reverse", [False, True])
def test_first_chunk_is_shorter_and_gives_its_outputs_first(monkeypatch, reverse):
    """What the tests here rely on: scans of this length are cut into several chunks of several tiles."""
    launches, cut = [], plan.Plan.cut

    def seen(self, chunk, channels, **how):
        launches.append((chunk, how))
        return cut(self, chunk, channels, **how)

    monkeypatch.setattr(plan.Plan, "cut", seen)
    a, options = make(CPU, torch.float32, 1, 203, 70, 16), ScanOptions(reverse=reverse)
    check(run_cuda(a, options), run_reference(a, options), torch.float32)
    (chunk, begin), (_, others) = launches[:2]
    assert chunk == 96 and begin == {"lacking": 64, "last": 2, "outputs": 1}
    assert others == {"lacking": 64, "first": 1, "outputs": 3}


@pytest.mark.parametrize(
    ("reverse", "zoh", "ids", "gate", "softplus"),
    # an eighth of them, in which each pair of options has all four values, every day
    [
        c if (c[0] ^ c[1] ^ c[3], c[2] ^ c[3] ^ c[4]) == (0, 1) else pytest.param(*c, marks=pytest.mark.slow)
        for c in product([False, True], repeat=5)
    ],
)
@pytest.mark.parametrize(
    ("way", "channels", "odd_rows"), [("chunks", 70, True), ("one pass", 72, False)], indirect=["way"]
)
def test_every_option(way, channels, odd_rows, reverse, zoh, ids, gate, softplus):
    a = make(CPU, torch.float32, 1, 203, channels, 16, gate=gate, ids=ids, odd_rows=odd_rows)
    if not softplus:
        a["dt"], a["dt_bias"] = a["dt"].abs(), a["dt_bias"].abs() * 0.1
    options = ScanOptions(softplus, reverse, zoh)
    want = run_reference(a, options)
    check(run_cuda(a, options), want, torch.float32)
    check(run_phases(a, options, 50), want, torch.float32)


@pytest.mark.parametrize("way", ["one pass"], indirect=True)
def test_a_decay_of_zero(way):
    """A = -inf forgets all, and the positions that fill up the last tile change nothing."""
    a = make(CPU, torch.float32, 1, 41, 8, 16)
    a["A"][::2] = -float("inf")
    y, final, _ = run_cuda(a, ScanOptions())
    a["A"][::2] = -1e30
    want_y, want_final, _ = run_reference(a, ScanOptions())
    assert ((y - want_y).norm() / want_y.norm()).item() < 1e-5
    assert ((final - want_final).norm() / want_final.norm()).item() < 1e-5


@pytest.mark.parametrize("channels", [6, 7])
def test_kept_states_have_the_registered_shape(channels):
    a = make(CPU, torch.float32, 2, 70, channels, 4)
    _, _, kept = CUDA.forward(arguments(a, ScanOptions(), a["initial"]), cuda_scan.TILE, True)
    assert kept.shape == (2, 3, channels, 4)  # what the operator registers for torch.compile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forgetting(dtype):
    check_forgetting(CPU, dtype, 331, 165)


def end_states(a, options):
    """After all positions as one chunk, from zero."""
    return CUDA.chunk_summaries(arguments(a, options), a["x"].shape[1])[1]


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_back_bring_back_what_was_small(reverse):
    """Without softplus Δ may be negative: what came before it grows again."""
    length = 64
    a = make(CPU, torch.float32, 1, length, 64, 16)
    a["A"], a["dt_bias"], a["D"] = -torch.ones_like(a["A"]), torch.zeros(64), torch.zeros(64)
    dt, x = torch.full((1, length, 64), 0.05), a["x"].clone()
    dt[:, length - 9], dt[:, length - 8 :] = -40.0, 5.0
    x[:, : length - 16], x[:, length - 9 :] = 0.0, 0.0
    a["dt"], a["x"] = (dt.flip(1), x.flip(1)) if reverse else (dt, x)
    options = ScanOptions(dt_softplus=False, reverse=reverse)
    check(run_phases(a, options, 32), run_reference(a, options), torch.float32)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("channels", [8, 63, 64, 72])
def test_what_is_forgotten_costs_nothing_and_spoils_nothing(softplus, channels):
    """Seen by a NaN that does not come through; in warps with fewer than 64 channels, too."""
    a = make(CPU, torch.float32, 1, 100, channels, 16)
    a["A"], a["dt"] = -torch.ones_like(a["A"]), torch.ones_like(a["dt"])
    a["dt_bias"] = torch.zeros(channels)
    a["x"][:, 3] = float("nan")
    assert end_states(a, ScanOptions(dt_softplus=softplus)).isfinite().all()


def test_a_decay_that_is_not_a_number_leaves_its_neighbour_alone():
    a = make(CPU, torch.float32, 1, 100, 64, 16)
    a["A"][:, :] = -0.01
    a["A"][1::2] = -40.0
    clean = end_states(a, ScanOptions())
    a["A"][1::2, ::4] = float("nan")
    assert torch.equal(end_states(a, ScanOptions())[:, :, ::2], clean[:, :, ::2])


def ids_with_cuts(length, cuts):
    ids = torch.zeros(1, length, dtype=torch.int32)
    for cut in cuts:
        ids[:, cut:] += 1
    return ids


@pytest.mark.parametrize("way", list(WAYS), indirect=True)
@pytest.mark.parametrize(("dtype", "reverse"), [(torch.float32, False), (torch.bfloat16, True)], ids=str)
def test_restarts_at_the_borders_of_chunks_tiles_and_steps(way, dtype, reverse):
    length = 203
    every = range(1, length)
    for cuts in ([1, length - 1], [3, 4, 5, 31, 32, 33], [64, 96, 128, 191, 192], [95, 127, 129], every):
        a = make(CPU, dtype, 1, length, 40 if reverse or way == "one pass" else 34, 16)
        a["sequence_ids"] = ids_with_cuts(length, [length - cut for cut in cuts] if reverse else cuts)
        options = ScanOptions(reverse=reverse)
        check(run_cuda(a, options), run_reference(a, options), dtype)


@pytest.mark.parametrize(("way", "channels"), [("chunks", 6), ("one pass", 8)], indirect=["way"])
@pytest.mark.parametrize(("reverse", "zoh"), [(False, False), (True, True)])
def test_not_a_number_stays_in_its_packed_sequence(way, reverse, zoh, channels):
    """Be it the first or last position, or in another chunk, and whichever tensor has it."""
    length, begin, end = 131, 38, 96
    a = make(CPU, torch.float32, 1, length, channels, 16)
    a["sequence_ids"] = ids_with_cuts(length, [begin, end])
    options = ScanOptions(reverse=reverse, zoh=zoh)

    def results(a):
        y, final, (dx, ddt, _, dB, dC, _, dz, _, dinitial) = run_cuda(a, options)
        rows = {"y": y, "dx": dx, "ddt": ddt, "dB": dB, "dC": dC, "dz": dz}
        others = {name: torch.cat([t[:, :begin], t[:, end:]], 1) for name, t in rows.items()}
        return y, others | {"final": final, "dinitial": dinitial}

    _, clean = results(a)
    ends, middle = product(["x", "dt", "C", "dy"], [begin, end - 1]), product(["dt", "B", "z"], [63])
    for name, at in (*ends, *middle):
        spoilt = a[name].clone()
        spoilt[0, at] = float("nan")
        y, found = results({**a, name: spoilt})
        assert name == "dy" or y[0, at].isnan().all()
        for result, value in clean.items():
            assert torch.equal(found[result], value), f"NaN in {name} at {at}: {result}"
