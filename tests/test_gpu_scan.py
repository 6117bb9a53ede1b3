"""The CUDA scan against the fp64 reference, and its compilation for several architectures."""

import shutil
import subprocess
import threading
from itertools import product
from pathlib import Path

import kernel_cases
import pytest
import torch

from dnamamba_kernels.conv.causal_conv1d import conv_op
from dnamamba_kernels.norm.rms_norm import norm_op
from dnamamba_kernels.scan.arguments import ScanArguments, ScanOptions
from dnamamba_kernels.scan.cuda import BACKEND as CUDA
from dnamamba_kernels.scan.cuda import nvrtc, plan
from dnamamba_kernels.scan.cuda import scan as cuda_scan
from dnamamba_kernels.scan.reference import BACKEND as REFERENCE
from dnamamba_kernels.scan.selective_scan import scan_op

NAMES = ["dx", "ddt", "dA", "dB", "dC", "dD", "dz", "ddt_bias", "dinitial"]
# Relative norm of the error against fp64: bf16 and fp16 results are rounded once; dB and dC in fp32 are summed from
# operands split into two bf16, which keep 16 bits.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}

WAYS = {"chunks": (float("inf"), 0.0), "one pass": (0.0, 0.0)}
"""Costs of scan_whole with which the forward pass takes chunks, or one pass if rows are aligned."""

gpu = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def make(device, dtype, batch, length, channels, state, groups=1, *, gate=True, ids=False, odd_rows=False, seed=0):
    """Random arguments as a Mamba layer has them: halves of one projection, so that rows are longer than channels."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device=device)

    wide = 2 * channels + odd_rows
    xz, dtdy = normal(batch, length, wide).to(dtype), normal(batch, length, wide).to(dtype)
    x, z = xz[..., :channels], xz[..., wide - channels :]
    dt, dy = dtdy[..., :channels], dtdy[..., wide - channels :]
    A = -torch.exp(normal(channels, state))
    B, C = normal(batch, length, groups, state).to(dtype), normal(batch, length, groups, state).to(dtype)
    D, bias = normal(channels), normal(channels) - 3
    initial, dfinal = normal(batch, channels, state), normal(batch, channels, state)
    sequence_ids = None
    if ids:
        cuts = torch.rand(batch, length, generator=generator, device=device) < 4 / length
        sequence_ids = cuts.cumsum(1).to(torch.int32)
    return {
        "dy": dy,
        "dfinal": dfinal,
        "x": x,
        "dt": dt,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z if gate else None,
        "dt_bias": bias,
        "sequence_ids": sequence_ids,
        "initial": initial,
    }


def in_double(a):
    return {k: v.double() if v is not None and v.is_floating_point() else v for k, v in a.items()}


def arguments(a, options, initial=None):
    """The scan's own of `make`'s."""
    names = "x", "dt", "A", "B", "C", "D", "z", "dt_bias"
    return ScanArguments(*(a[name] for name in names), initial, a["sequence_ids"], options)


def run_reference(a, options):
    """Outputs and gradients in fp64, one chunk."""
    a = in_double(a)
    return run_phases(a, options, a["x"].shape[1], REFERENCE)


def run_cuda(a, options):
    """Outputs and gradients by the passes over the whole length."""
    tile = cuda_scan.TILE
    y, final, saved = CUDA.forward(arguments(a, options, a["initial"]), tile, True)
    gradients, dinitial = CUDA.backward(arguments(a, options), a["dy"], a["dfinal"], saved, tile)
    return y, final, (*gradients, dinitial)


def run_phases(a, options, chunk, backend=CUDA):
    """Outputs and gradients by the phases."""
    given, A = arguments(a, options), a["A"]
    sums, ends = backend.chunk_summaries(given, chunk)
    states, final = backend.propagate(sums, ends, A, a["initial"], options.reverse)
    y = backend.chunk_outputs(given, states, chunk)
    sums, ends = backend.backward_summaries(given, a["dy"], chunk)
    adjoints, dinitial = backend.propagate(sums, ends, A, a["dfinal"], not options.reverse)
    gradients = backend.chunk_gradients(given, a["dy"], states, adjoints, chunk)
    return y, final, (*gradients, dinitial)


def errors(got, want):
    """Relative norm of each output's error; infinite where something is not finite."""
    pairs = [("y", got[0], want[0]), ("final", got[1], want[1]), *zip(NAMES, got[2], want[2], strict=True)]
    result = {}
    for name, g, w in pairs:
        assert (g is None) == (w is None), name
        if g is not None:
            assert g.shape == w.shape, f"{name}: {tuple(g.shape)} for {tuple(w.shape)}"
            error = ((g.double() - w).norm() / w.norm().clamp_min(1e-30)).item()
            result[name] = error if error == error else float("inf")
    return result


def check(got, want, dtype):
    bad = {name: error for name, error in errors(got, want).items() if not error <= BOUND[dtype]}
    assert not bad, f"relative errors above {BOUND[dtype]}: {bad}"


@pytest.fixture(autouse=True)
def poison(request):
    """Memory that the kernels get is full of NaN, so that what they do not write shows."""
    if request.node.get_closest_marker("gpu") and torch.cuda.is_available():
        blocks = [torch.full((1 << 24,), float("nan"), device="cuda") for _ in range(4)]
        del blocks


@gpu
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "channels", "state", "groups"),
    [
        (1, 1, 2, 16, 1),
        (2, 67, 64, 16, 1),
        (1, 300, 130, 16, 1),
        (1, 531, 264, 16, 1),
        (1, 97, 77, 16, 1),
        (2, 129, 192, 16, 3),
        (1, 161, 48, 8, 2),
    ],
)
def test_matches_reference(device, dtype, batch, length, channels, state, groups):
    a = make(device, dtype, batch, length, channels, state, groups)
    options = ScanOptions()
    check(run_cuda(a, options), run_reference(a, options), dtype)


@gpu
@pytest.mark.parametrize(("reverse", "zoh", "ids", "gate", "softplus"), list(product([False, True], repeat=5)))
def test_every_option(device, reverse, zoh, ids, gate, softplus):
    dtype = torch.float32
    a = make(device, dtype, 2, 203, 70, 16, gate=gate, ids=ids, odd_rows=True)
    if not softplus:
        a["dt"] = a["dt"].abs()
        a["dt_bias"] = a["dt_bias"].abs() * 0.1
    options = ScanOptions(softplus, reverse, zoh)
    want = run_reference(a, options)
    check(run_cuda(a, options), want, dtype)
    check(run_phases(a, options, 50), want, dtype)


@gpu
def test_long_sequences_are_cut_into_chunks(device):
    dtype = torch.float32
    options = ScanOptions()
    for length in (4099, 40_001):
        a = make(device, dtype, 1, length, 64, 16, ids=length < 5000)
        check(run_cuda(a, options), run_phases(a, options, length), dtype)


@gpu
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
@pytest.mark.parametrize(("reverse", "zoh", "ids"), [(False, False, False), (False, True, True), (True, False, True)])
def test_one_pass_and_chunks(device, monkeypatch, dtype, reverse, zoh, ids):
    """Both ways of the forward pass, whichever the plan would choose."""
    a, options = make(device, dtype, 3, 331, 136, 16, ids=ids), ScanOptions(reverse=reverse, zoh=zoh)
    want = run_reference(a, options)
    for pace in WAYS.values():
        monkeypatch.setattr(plan, "WHOLE_PACE", pace)
        plan.plan_for.cache_clear()
        check(run_cuda(a, options), want, dtype)
    plan.plan_for.cache_clear()


@gpu
@pytest.mark.parametrize("dt_scale", [1e-6, 1e2])
@pytest.mark.parametrize("decay", [1e-3, 1e3])
def test_extreme_steps_and_decays(device, dt_scale, decay):
    a = make(device, torch.float32, 1, 257, 64, 16)
    options = ScanOptions(dt_softplus=False)
    a["dt"], a["dt_bias"] = torch.rand_like(a["dt"]) * dt_scale + dt_scale / 10, None
    a["A"] = -decay * (torch.rand_like(a["A"]) + 0.5)
    want = run_reference(a, options)
    # What underflows to nothing (dA of a state that forgets everything) has no relative error.
    got, kept = errors(run_cuda(a, options), want), dict(zip(NAMES, want[2], strict=True))
    bad = {k: v for k, v in got.items() if v > 2e-5 and (k not in kept or kept[k].norm() > 1e-30)}
    assert not bad, bad


@gpu
def test_same_bits_every_run(device):
    a = make(device, torch.bfloat16, 2, 5003, 128, 16)
    options = ScanOptions()
    one, two = run_cuda(a, options), run_cuda(a, options)
    for left, right in zip((one[0], one[1], *one[2]), (two[0], two[1], *two[2]), strict=True):
        assert torch.equal(left, right)


@gpu
def test_a_thread_without_a_context(device):
    """As a backward pass may find itself in; the launch makes the kernels' own context current."""
    a, found = make(device, torch.bfloat16, 2, 203, 64, 16), []
    options = ScanOptions()
    want = run_cuda(a, options)  # and PyTorch keeps the memory

    def run():
        assert nvrtc._driver().cuCtxSetCurrent(None) == 0
        found.append(run_cuda(a, options))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for left, right in zip((*want[:2], *want[2]), (*found[0][:2], *found[0][2]), strict=True):
        assert torch.equal(left, right)


@gpu
def test_ten_million_positions(device):
    """More than 2³¹ elements a tensor: the last positions are as if scanned alone from the state before them."""
    length, channels, tail, dtype = 10_000_019, 224, 100_003, torch.bfloat16
    if torch.cuda.mem_get_info(device)[0] < 50 * 2**30:
        pytest.skip("needs 50 GiB of free GPU memory")
    torch.manual_seed(0)
    x, z, dt, dy = (torch.randn(1, length, channels, device=device, dtype=dtype) for _ in range(4))
    B, C = (torch.randn(1, length, 1, 16, device=device, dtype=dtype) for _ in range(2))
    A, bias, D = -torch.rand(channels, 16, device=device), torch.full((channels,), -4.0, device=device), None
    options, dfinal = ScanOptions(), torch.randn(1, channels, 16, device=device)

    def part(at, initial=None):
        return ScanArguments(x[:, at], dt[:, at], A, B[:, at], C[:, at], D, z[:, at], bias, initial, None, options)

    head, end, everything, tile = slice(0, length - tail), slice(length - tail, None), slice(None), cuda_scan.TILE
    _, initial, _ = CUDA.forward(part(head), tile, False)
    y, final, saved = CUDA.forward(part(end, initial), tile, True)
    alone = y, final, CUDA.backward(part(end), dy[:, end], dfinal, saved, tile)[0]
    y, final, saved = CUDA.forward(part(everything), tile, True)
    whole = CUDA.backward(part(everything), dy, dfinal, saved, tile)[0]
    pairs = {"y": (y[:, end], alone[0]), "final": (final, alone[1])}
    pairs |= {NAMES[i]: (whole[i][:, end], alone[2][i]) for i in (0, 1, 3, 4, 6)}
    for name, (found, expected) in pairs.items():
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error <= BOUND[dtype], f"{name}: relative error {error:.1e}"  # false for NaN, too


def check_forgetting(device, dtype, length, chunk):
    """Some states fall below 2⁻³² within a chunk, in the order of the states or not; the sums of Δ stay whole."""
    a = make(device, dtype, 1, length, 72, 16)
    decay = 10 ** torch.linspace(-2, 1.6, 16, device=device)
    a["A"] = -decay * (1 + torch.rand_like(a["A"]))
    a["A"][64:] = a["A"][64:].flip(1)  # of another warp
    options = ScanOptions()
    want = run_reference(a, options)
    check(run_cuda(a, options), want, dtype)
    check(run_phases(a, options, chunk), want, dtype)
    found, _ = CUDA.chunk_summaries(arguments(a, options), chunk)
    exact, _ = REFERENCE.chunk_summaries(arguments(in_double(a), options), chunk)
    torch.testing.assert_close(found.double(), exact, rtol=3e-6, atol=0)


@gpu
@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
def test_forgetting(device, dtype):
    check_forgetting(device, dtype, 3001, 1500)


@gpu
@pytest.mark.parametrize("ids", [False, True])
def test_decays_of_zero(device, ids):
    """exp(−200) underflows: A = −0 keeps the state for ever, but not over a change of id."""
    a = make(device, torch.float32, 2, 515, 64, 16, ids=ids)
    a["A"][:, 0], a["A"][:, 1] = -0.0, 0.0
    options = ScanOptions()
    want = run_reference(a, options)
    check(run_cuda(a, options), want, torch.float32)
    check(run_phases(a, options, 50), want, torch.float32)


@gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 331), (torch.bfloat16, 5003)])
def test_not_a_number_stays_in_its_packed_sequence(device, backend, dtype, length):
    problem = kernel_cases.random_problem(1, length, 66, 16, initial=False, discretization="zoh")
    kernel_cases.check_sequences_stay_apart(problem.to(dtype, str(device)), backend)


@gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backend", "channels"), [("cuda", 6), ("cuda", 7), ("triton", 6)])
def test_opcheck_scan(device, backend, channels):
    a = make(device, torch.float32, 2, 70, channels, 4, ids=True)
    names = "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial"
    t = [a[name].detach().clone().requires_grad_() for name in names]
    torch.library.opcheck(scan_op, (*t, a["sequence_ids"], True, False, True, True, backend))
    bare = (*t[:5], None, None, None, None, None, True, True, False)
    torch.library.opcheck(scan_op, (*bare, True, backend))
    with torch.no_grad():
        detached = [v if v is None or isinstance(v, bool) else v.detach() for v in bare]
        torch.library.opcheck(scan_op, (*detached, False, backend))


@gpu
@pytest.mark.filterwarnings("ignore")
def test_opcheck_conv_and_norm(device):
    def leaf(*shape, dtype=torch.float32):
        return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

    x, weight, bias, state = leaf(2, 9, 5), leaf(5, 4), leaf(5), leaf(2, 3, 5)
    torch.library.opcheck(conv_op, (x, weight, bias, state, None, "silu", False, "triton"))
    torch.library.opcheck(conv_op, (x, weight, None, None, None, "none", True, "triton"))
    rows, scale, residual = leaf(7, 5), leaf(5), leaf(7, 5)
    torch.library.opcheck(norm_op, (rows, scale, residual, 1e-5, torch.float32, "triton"))
    half = leaf(7, 5, dtype=torch.bfloat16)
    torch.library.opcheck(norm_op, (half, scale, residual, 1e-5, torch.float32, "triton"))
    torch.library.opcheck(norm_op, (half, scale, None, 1e-5, torch.float32, "triton"))


def test_argument_block_mirrors_the_source():
    source = (Path(cuda_scan.__file__).parent / "scan_common.cuh").read_text()
    body = source.split("struct Arguments {")[1].split("};")[0]
    lines = [line.split("//")[0] for line in body.splitlines()]
    declared = [
        name.strip(" *;")
        for line in "".join(lines).split(";")
        if line.strip()
        for name in line.split(None, 2 if line.split()[0] == "const" else 1)[-1].split(",")
    ]
    assert declared == [name for name, _ in plan.Arguments._fields_]


def as_on_an_h100(monkeypatch):
    monkeypatch.setattr(plan, "processors", lambda device: 132)
    monkeypatch.setattr(plan, "shared_memory", lambda device: 228 * 1024)


def layout_of(batch, length, channels, reverse=False, in_memory=False):
    """That of a layer in bf16 with 16 states."""
    rows, maps = (length * channels, channels, 1), (length * 16, 16, 16, 1)
    strides, size = (rows, rows, rows, None, maps, maps, None), (batch, length, channels)
    options = ScanOptions(reverse=reverse)
    return plan.Layout(0, torch.bfloat16, True, True, size, 16, 1, strides, True, options, in_memory)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("length", [1, 31, 515, 16_384, 1_048_575, 10_000_019])
def test_plan_covers_the_length(monkeypatch, length, in_memory):
    as_on_an_h100(monkeypatch)
    found = plan.Plan(layout_of(2, length, 512, reverse=True, in_memory=in_memory))
    for chunk, channels, lacking in (
        (found.forward_chunk, plan.FORWARD_CHANNELS, 0 if in_memory else found.forward_lacking),
        (found.backward_chunk, 64, 0),
    ):
        grid, block = found.cut(chunk, channels, lacking)
        a = plan.Arguments.from_buffer_copy(block)
        assert a.x_row == 512 and a.B_row == 16 and a.ids_batch == 0 and a.x is None
        assert (a.chunks - 1) * chunk < length + lacking <= a.chunks * chunk
        assert a.shorten == (a.chunks * chunk - length if in_memory else lacking) and a.shorten < chunk
        assert in_memory or a.shorten % cuda_scan.TILE == 0
        assert a.tile_rows * cuda_scan.TILE >= length
        assert (a.first, a.taken, a.outputs) == (0, a.chunks, 0)
        assert grid == 2 * a.chunks * a.blocks and a.blocks * channels >= 512


@pytest.mark.parametrize("blocks", [1, 3, 16, 44, 64, 132, 150, 264, 1000])
@pytest.mark.parametrize("length", [1, 31, 33, 1024, 16_384, 131_071, 1_048_576])
def test_forward_chunks_fill_the_chip_at_once(monkeypatch, blocks, length):
    """And the first one, whose outputs are made with the others' summaries, is not longer than that allows."""
    as_on_an_h100(monkeypatch)
    monkeypatch.setattr(plan, "WHOLE_PACE", WAYS["chunks"])
    found = plan.Plan(layout_of(blocks, length, 256))
    chunk, lacking = found.forward_chunk, found.forward_lacking
    chunks = -(-(length + lacking) // chunk)
    first = chunk - lacking
    assert 0 < first <= max(chunk * plan.FIRST_SHARE, 32) or chunks == 1
    assert chunks == 1 or blocks * (chunks - 1) <= 132 * plan.FORWARD_BLOCKS
    assert chunks > 1 or blocks > 64 or length <= 64


@pytest.mark.parametrize(
    ("batch", "length", "channels", "whole"),
    [
        (1, 64, 512, True),
        (1, 1024, 512, False),
        (1, 1_048_576, 512, False),
        (8, 16_384, 512, False),
        (16, 16_384, 512, True),
        (32, 1024, 512, True),
        (8, 2048, 2048, True),
        (256, 1024, 256, False),
        (256, 1024, 512, False),
        (4096, 1024, 512, False),
    ],
)
def test_one_pass_where_the_batch_fills_the_chip(monkeypatch, batch, length, channels, whole):
    """As measured on an H100: LOG.md, 2026-11-28. Never where rows are not aligned, nor in the public phases."""
    as_on_an_h100(monkeypatch)
    layout = layout_of(batch, length, channels)
    found = plan.Plan(layout)
    assert (found.forward_kernel == "scan_whole") == whole
    assert not whole or found.chunks(found.forward_chunk) == 1
    for other in layout._replace(wide=False), layout._replace(in_memory=True):
        assert plan.Plan(other).forward_kernel == "scan_forward"


@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
def test_shared_memory_mirrors_the_source(monkeypatch, dtype):
    as_on_an_h100(monkeypatch)
    source = plan.source()
    fixed, warp = 2 * 2 * plan.TILE * 16 * 4 + 2 * plan.TILE, 2 * 3 * plan.TILE * 64
    assert f"sizeof(PassShared) == {fixed} + {warp} * WARPS," in source
    assert fixed + warp * plan.CUT["WARPS"] == plan.FORWARD_SHARED
    whole = f"sizeof(WholeShared) == {plan.WHOLE_SHARED[0]} + 8 * TILE * WHOLE_ROW * sizeof(data_t),"
    assert whole in source and "#define PARTS 2\n" in source
    assert plan.WHOLE_SHARED[1] == 8 * plan.TILE * (plan.WHOLE_CHANNELS + plan.LANES // 2)
    kept = f"KEEP_ROWS * {plan.BACKWARD_ROWS_SHARED}"
    assert f"sizeof(BackwardShared) == {plan.BACKWARD_SHARED} + {kept}," in source
    assert "#define KEEP_ROWS (DATA != 0)" in source
    layout = plan.Layout(0, dtype, True, True, (1, 64, 64), 16, 1, (None,) * 7, True, ScanOptions(), False)
    rows = plan.BACKWARD_ROWS_SHARED if plan.DATA[dtype] else 0
    assert plan.Plan(layout).blocks["scan_gradients"].shared == plan.BACKWARD_SHARED + rows


def test_supports_says_why_not():
    x = torch.zeros(1, 4, 8, dtype=torch.bfloat16)
    A, maps = torch.zeros(8, 16), torch.zeros(1, 4, 1, 16)
    assert CUDA.supports(x, A, maps, maps) is None
    assert "states" in CUDA.supports(x, torch.zeros(8, 64), maps, maps)
    assert "vary" in CUDA.supports(x, A, torch.zeros(8, 16), maps)
    assert "float64" in CUDA.supports(x.double(), A, maps, maps)


def all_defines() -> list[str]:
    """Options that build every kernel at once, as a Mamba layer uses them."""
    switches = {
        "DATA": 1,
        "ALIGNED": 1,
        "WIDE": 1,
        "STATE": 16,
        "SOFTPLUS": 1,
        "ZOH": 0,
        "HAS_Z": 1,
        "HAS_D": 1,
        "HAS_IDS": 0,
    }
    built = [f"-D{name}_BUILT" for name in plan.KERNELS]
    return built + [f"-D{name}={value}" for name, value in {**switches, **plan.CUT}.items()]


def compile_source(defines: list[str], architecture: str, folder: Path) -> None:
    """With NVRTC if this PyTorch brings one, else nvcc; skipped where neither is at hand."""
    try:
        nvrtc.version()
    except RuntimeError:
        if shutil.which("nvcc") is None:
            pytest.skip("neither NVRTC nor nvcc")
        source = folder / "scan.cu"
        source.write_text(plan.source())
        options = ["-cubin", f"-arch={architecture}", *nvrtc.LANGUAGE, "-o", folder / "scan.cubin"]
        done = subprocess.run(["nvcc", *options, *defines, source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert nvrtc.compile_cubin(plan.source(), defines, architecture)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_compiles(architecture, tmp_path):
    compile_source(all_defines(), architecture, tmp_path)


@pytest.mark.parametrize("dtype", list(BOUND), ids=str)
def test_compiles_with_every_option(dtype, tmp_path):
    """Sequence ids, zero-order hold and rows that are not aligned."""
    switches = {
        "DATA": plan.DATA[dtype],
        "ALIGNED": 0,
        "WIDE": 0,
        "STATE": 8,
        "SOFTPLUS": 0,
        "ZOH": 1,
        "HAS_Z": 1,
        "HAS_D": 1,
    }
    for name in "scan_forward", "scan_whole", "scan_gradients":
        defines = plan.defines(name, {**switches, "HAS_IDS": 1, **plan.CUT})
        compile_source(list(defines), "sm_90", tmp_path)
