"""The CUDA scan against the fp64 reference, and its compilation for several architectures."""

import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch

from dnamamba_kernels import options as scan_options
from dnamamba_kernels.gpu_cuda import nvrtc
from dnamamba_kernels.gpu_cuda import scan as cuda_scan
from dnamamba_kernels.reference import scan as reference

NAMES = ["dx", "ddt", "dA", "dB", "dC", "dD", "dz", "ddt_bias", "dinitial"]
# Relative norm of the error against fp64: bf16 and fp16 results are rounded once; dB and dC in fp32 are summed from
# operands split into two bf16, which keep 16 bits.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}

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


def run_reference(a, options):
    """Outputs and gradients in fp64, one chunk."""
    a = in_double(a)
    length = a["x"].shape[1]
    rest = a["dt_bias"], a["sequence_ids"]
    sums, ends = reference.chunk_summaries(a["x"], a["dt"], a["A"], a["B"], *rest, options, length)
    states, final = reference.propagate(sums, ends, a["A"], a["initial"], options)
    maps = a["x"], a["dt"], a["A"], a["B"], a["C"], a["D"], a["z"]
    y = reference.chunk_outputs(*maps, *rest, states, options, length)
    sums, ends = reference.backward_summaries(a["dy"], a["dt"], a["A"], a["C"], a["z"], *rest, options, length)
    flipped = options._replace(reverse=not options.reverse)
    adjoints, dinitial = reference.propagate(sums, ends, a["A"], a["dfinal"], flipped)
    gradients = reference.chunk_gradients(a["dy"], *maps, *rest, states, adjoints, options, length)
    return y, final, (*gradients, dinitial)


def run_cuda(a, options):
    """Outputs and gradients by the whole-pass entry points."""
    maps = a["x"], a["dt"], a["A"], a["B"], a["C"], a["D"], a["z"], a["dt_bias"], a["sequence_ids"]
    y, final, saved = cuda_scan.forward(*maps, a["initial"], options, cuda_scan.TILE)
    return y, final, cuda_scan.backward(a["dy"], a["dfinal"], *maps, saved, options, cuda_scan.TILE)


def run_phases(a, options, chunk):
    """Outputs and gradients by the public phases."""
    rest = a["dt_bias"], a["sequence_ids"]
    sums, ends = cuda_scan.chunk_summaries(a["x"], a["dt"], a["A"], a["B"], *rest, options, chunk)
    states, final = cuda_scan.propagate(sums, ends, a["A"], a["initial"], options)
    maps = a["x"], a["dt"], a["A"], a["B"], a["C"], a["D"], a["z"]
    y = cuda_scan.chunk_outputs(*maps, *rest, states, options, chunk)
    sums, ends = cuda_scan.backward_summaries(a["dy"], a["dt"], a["A"], a["C"], a["z"], *rest, options, chunk)
    flipped = options._replace(reverse=not options.reverse)
    adjoints, dinitial = cuda_scan.propagate(sums, ends, a["A"], a["dfinal"], flipped)
    gradients = cuda_scan.chunk_gradients(a["dy"], *maps, *rest, states, adjoints, options, chunk)
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
        (1, 97, 77, 16, 1),
        (2, 129, 192, 16, 3),
        (1, 161, 48, 8, 2),
    ],
)
def test_matches_reference(device, dtype, batch, length, channels, state, groups):
    a = make(device, dtype, batch, length, channels, state, groups)
    options = scan_options.ScanOptions()
    check(run_cuda(a, options), run_reference(a, options), dtype)


@gpu
@pytest.mark.parametrize(("reverse", "zoh", "ids", "gate", "softplus"), list(product([False, True], repeat=5)))
def test_every_option(device, reverse, zoh, ids, gate, softplus):
    dtype = torch.float32
    a = make(device, dtype, 2, 203, 70, 16, gate=gate, ids=ids, odd_rows=True)
    if not softplus:
        a["dt"] = a["dt"].abs()
        a["dt_bias"] = a["dt_bias"].abs() * 0.1
    options = scan_options.ScanOptions(softplus, reverse, zoh)
    want = run_reference(a, options)
    check(run_cuda(a, options), want, dtype)
    check(run_phases(a, options, 50), want, dtype)


@gpu
def test_long_sequences_are_cut_into_chunks(device):
    dtype = torch.float32
    options = scan_options.ScanOptions()
    for length in (4099, 40_001):
        a = make(device, dtype, 1, length, 64, 16, ids=length < 5000)
        check(run_cuda(a, options), run_phases(a, options, length), dtype)


@gpu
@pytest.mark.parametrize("dt_scale", [1e-6, 1e2])
@pytest.mark.parametrize("decay", [1e-3, 1e3])
def test_extreme_steps_and_decays(device, dt_scale, decay):
    a = make(device, torch.float32, 1, 257, 64, 16)
    options = scan_options.ScanOptions(dt_softplus=False)
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
    options = scan_options.ScanOptions()
    one, two = run_cuda(a, options), run_cuda(a, options)
    for left, right in zip((one[0], one[1], *one[2]), (two[0], two[1], *two[2]), strict=True):
        assert torch.equal(left, right)


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
    assert declared == [name for name, _ in cuda_scan._Arguments._fields_]


def test_shared_memory_mirrors_the_source():
    source = (Path(cuda_scan.__file__).parent / "scan_backward.cuh").read_text()
    assert f"sizeof(BackwardShared) == {cuda_scan.BACKWARD_SHARED}," in source


def test_supports_says_why_not():
    x = torch.zeros(1, 4, 8, dtype=torch.bfloat16)
    A, maps = torch.zeros(8, 16), torch.zeros(1, 4, 1, 16)
    assert cuda_scan.supports(x, A, maps, maps) is None
    assert "states" in cuda_scan.supports(x, torch.zeros(8, 64), maps, maps)
    assert "vary" in cuda_scan.supports(x, A, torch.zeros(8, 16), maps)
    assert "float64" in cuda_scan.supports(x.double(), A, maps, maps)


def all_defines() -> list[str]:
    """Options that build every kernel at once, as a Mamba layer uses them."""
    switches = {"DATA": 1, "ALIGNED": 1, "STATE": 16, "SOFTPLUS": 1, "ZOH": 0, "HAS_Z": 1, "HAS_D": 1, "HAS_IDS": 0}
    built = [f"-D{name}_BUILT" for name in cuda_scan.KERNELS]
    return built + [
        f"-D{name}={value}" for name, value in {**switches, **cuda_scan.shape_defines(cuda_scan.SHAPE)}.items()
    ]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_compiles(architecture, tmp_path):
    """With NVRTC if this PyTorch brings one, else nvcc; skipped where neither is at hand."""
    try:
        nvrtc.version()
    except RuntimeError:
        if shutil.which("nvcc") is None:
            pytest.skip("neither NVRTC nor nvcc")
        source = tmp_path / "scan.cu"
        source.write_text(cuda_scan.source())
        command = [
            "nvcc",
            "-cubin",
            f"-arch={architecture}",
            "-std=c++17",
            "--use_fast_math",
            "-o",
            tmp_path / "scan.cubin",
        ]
        done = subprocess.run([*command, *all_defines(), source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return
    assert nvrtc.compile_cubin(cuda_scan.source(), all_defines(), architecture)
