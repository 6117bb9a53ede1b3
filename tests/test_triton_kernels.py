"""The Triton kernels against the plain PyTorch reference in fp64: every function, option and gradient.

Each test runs on a GPU (``-m gpu``), or through Triton's interpreter where TRITON_INTERPRET=1 was set before Python
started; ``test_in_the_interpreter`` starts such a process. Memory from ``torch.empty`` holds NaN, so unwritten
outputs show.
"""

import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from triton_aot import unset_registers

from dnamamba_kernels import causal_conv1d
from dnamamba_kernels.conv.protocol import ConvArguments
from dnamamba_kernels.conv.reference import BACKEND as REFERENCE_CONV
from dnamamba_kernels.conv.triton import BACKEND as CONV
from dnamamba_kernels.norm.reference import BACKEND as REFERENCE_NORM
from dnamamba_kernels.norm.triton import BACKEND as NORM
from dnamamba_kernels.scan.arguments import ScanArguments, ScanOptions
from dnamamba_kernels.scan.reference import BACKEND as REFERENCE_SCAN
from dnamamba_kernels.scan.triton import BACKEND as SCAN
from dnamamba_kernels.scan.triton import tiles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [*(["cpu"] if INTERPRETED else []), pytest.param("cuda", marks=pytest.mark.gpu)]
# relative norm of the difference, against fp64 on the same data
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
SCAN_NAMES = [
    "dt_sums", "end_states", "states", "final", "y", "back_sums", "ends", "adjoints", "dinitial",
    "dx", "ddt", "dA", "dB", "dC", "dD", "dz", "ddt_bias",
]  # fmt: skip


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(autouse=True)
def poisoned_and_deterministic():
    """PyTorch refuses nondeterministic algorithms and fills ``torch.empty`` with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def wide(value):
    """The argument in fp64, if it is a floating-point tensor; of arguments each."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(wide, value))
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def compare(name, found, expected, bound):
    """Same shape, the same infinities, no NaN, and a relative norm of the difference below the bound."""
    if expected is None:
        assert found is None, f"{name} should be absent"
        return
    assert found.shape == expected.shape, name
    lost = expected.isinf()
    assert torch.equal(found.isinf(), lost), f"{name}: infinities differ"
    found, expected = found.double()[~lost], expected.double()[~lost]
    error = (found - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error <= bound, f"{name}: relative error {error:.2e} above {bound:.0e}"  # NaN fails too


def random_ids(batch, length, device):
    return (torch.rand(batch, length, device=device) < 0.2).cumsum(1).int()


# --- convolution ------------------------------------------------------------------------------------------------------


def check_conv(device, batch, length, channels, width, dtype, state, ids, reverse, activation, bias):
    torch.manual_seed(length + channels)
    x = torch.randn(batch, length, 2 * channels, device=device, dtype=dtype)[:, :, channels:]  # a view with longer rows
    weight = torch.randn(channels, width, device=device)
    initial = torch.randn(batch, width - 1, channels, device=device, dtype=dtype) if state else None
    sequence_ids = random_ids(batch, length, device) if ids else None
    a = ConvArguments(
        x,
        weight,
        torch.randn(channels, device=device) if bias else None,
        initial,
        sequence_ids,
        activation,
        reverse,
    )
    expected = REFERENCE_CONV.forward(wide(a))
    for name, value, want in zip(["y", "final_state"], CONV.forward(a), expected, strict=True):
        assert value.dtype == dtype
        compare(name, value, want, BOUNDS[dtype])
    dy = torch.randn(batch, length, channels, device=device, dtype=dtype)
    dfinal = torch.randn(batch, width - 1, channels, device=device, dtype=dtype)
    found = CONV.backward(a, dy, dfinal)
    expected = REFERENCE_CONV.backward(wide(a), dy.double(), dfinal.double())
    for name, value, want in zip(["dx", "dweight", "dbias", "dinitial"], found, expected, strict=True):
        compare(name, value, want, BOUNDS[dtype])
    if device == "cuda":
        again = CONV.backward(a, dy, dfinal)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True) if a is not None), (
            "not the same bits twice"
        )


@pytest.mark.parametrize(
    ("batch", "length", "channels", "width", "state", "ids", "reverse", "activation", "bias"),
    [
        (1, 37, 5, 4, True, False, False, "silu", True),  # longer than a strip of the backward pass
        (2, 33, 3, 4, False, True, False, "silu", False),
        (1, 37, 5, 3, True, True, True, None, True),
        (1, 2, 3, 8, True, True, True, "silu", True),  # shorter than the state: old rows stay in it
        (1, 1, 3, 2, True, False, False, None, False),
        (1, 9, 33, 3, True, True, False, "silu", True),
    ],
)
def test_conv(device, batch, length, channels, width, state, ids, reverse, activation, bias):
    check_conv(device, batch, length, channels, width, torch.float32, state, ids, reverse, activation, bias)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "channels", "width"), [(4999, 512, 4), (1031, 77, 4), (2048, 96, 2), (777, 130, 7)])
def test_conv_at_size(dtype, reverse, length, channels, width):
    check_conv("cuda", 2, length, channels, width, dtype, True, reverse, reverse, "silu", True)


def test_conv_of_one_channel_through_the_operator(device):
    """Whose results may not share memory: with one channel a transpose is no copy."""
    torch.manual_seed(0)
    shapes = (2, 37, 1), (1, 4), (1,)
    leaves = [torch.randn(s, device=device, requires_grad=True) for s in shapes]
    dy = torch.randn(shapes[0], device=device)
    found = causal_conv1d(*leaves, backend="triton")[0]
    found = torch.autograd.grad(found, leaves, dy)
    wide_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact = causal_conv1d(*wide_leaves, backend="reference")[0]
    expected = torch.autograd.grad(exact, wide_leaves, dy.double())
    for name, value, want in zip(["dx", "dweight", "dbias"], found, expected, strict=True):
        compare(name, value, want, BOUNDS[torch.float32])
    raw = CONV.backward(ConvArguments(*(t.detach() for t in leaves), None, None, "silu", False), dy, None)
    assert raw[1].untyped_storage().data_ptr() != raw[2].untyped_storage().data_ptr()


def test_conv_without_gradient_of_the_state(device):
    x, weight = torch.randn(1, 9, 4, device=device), torch.randn(4, 3, device=device)
    a = ConvArguments(x, weight, None, None, None, "silu", False)
    absent = CONV.backward(a, x, None)
    zero = CONV.backward(a, x, torch.zeros(1, 2, 4, device=device))
    assert all(torch.equal(a, b) for a, b in zip(absent, zero, strict=True) if a is not None)


# --- norm -------------------------------------------------------------------------------------------------------------


def check_norm(device, rows, width, dtype, residual_dtype, with_residual):
    torch.manual_seed(rows + width)
    x, weight = torch.randn(rows, width, device=device, dtype=dtype), torch.randn(width, device=device)
    residual = torch.randn(rows, width, device=device, dtype=residual_dtype) if with_residual else None
    y, total, rstd = NORM.forward(x, weight, residual, 1e-5, residual_dtype)
    assert (y.dtype, total.dtype, rstd.dtype) == (dtype, residual_dtype, torch.float32)
    bound = max(BOUNDS[dtype], BOUNDS[residual_dtype])
    args = (x.double(), weight.double(), wide(residual), 1e-5, torch.float64)
    for name, value, want in zip(
        ["y", "new_residual", "rstd"], (y, total, rstd), REFERENCE_NORM.forward(*args), strict=True
    ):
        compare(name, value, want, bound)
    assert torch.equal(NORM.normalised(total, weight, rstd, dtype), y), "not the bits of the forward pass"
    dy, dtotal = torch.randn_like(y), torch.randn_like(total)
    for passed, second in ((dtotal, None if dtype == residual_dtype else residual_dtype), (None, torch.float32)):
        args = (dy, passed, total, weight, rstd, dtype, second)
        found = NORM.backward(*args)
        assert (found[0].dtype, None if found[1] is None else found[1].dtype) == (dtype, second)
        expected = REFERENCE_NORM.backward(*map(wide, args[:5]), torch.float64, second and torch.float64)
        for name, value, want in zip(["dx", "dresidual", "dweight"], found, expected, strict=True):
            compare(name, value, want, bound)
        again = NORM.backward(*args)
        same = (torch.equal(a, b) for a, b in zip(found, again, strict=True) if a is not None)
        assert all(same), "not the same bits twice"


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (13, 48), (5, 256), (3, 1500)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm(device, rows, width, with_residual):
    check_norm(device, rows, width, torch.float32, torch.float32, with_residual)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 100, 128, 256, 512, 1024, 2560])
@pytest.mark.parametrize(
    ("dtype", "residual_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float32),
    ],
)
def test_norm_at_size(width, dtype, residual_dtype):
    check_norm("cuda", 20011, width, dtype, residual_dtype, True)


# --- scan -------------------------------------------------------------------------------------------------------------


def scan_arguments(device, batch, length, channels, state, groups, dtype=torch.float32, gated=True, biased=True,
                   packed=False, constant="", softplus=True, extreme=False):  # fmt: skip
    """x, z, dt, A, B, C, D, dt_bias, ids, initial state, dL/dy, dL/d(final state)."""
    torch.manual_seed(length * channels + state)

    def normal(*shape, of=dtype):
        return torch.randn(*shape, device=device).to(of)

    dt = normal(batch, length, channels) if softplus else torch.rand(batch, length, channels, device=device).to(dtype)
    A = -torch.exp(normal(channels, state, of=torch.float32))
    if extreme:  # Δ from 1e-6 to 1e2, A from −1e-3 to −1e3
        spread, biased = torch.rand(batch, length, channels, device=device) * 8 - 6, False
        dt = (10**spread).to(dtype)
        A = -(10 ** (torch.rand(channels, state, device=device) * 6 - 3))
    A[0, 0] = -1e-5  # a product ΔA near zero, for the zero-order hold
    B, C = (
        normal(channels, state) if letter in constant else normal(batch, length, groups, state) for letter in ("B", "C")
    )
    return (
        normal(batch, length, 2 * channels)[:, :, channels:],
        normal(batch, length, channels) if gated else None,
        dt, A, B, C,
        normal(channels, of=torch.float32) if biased else None,
        normal(channels, of=torch.float32) if biased else None,
        random_ids(batch, length, device) if packed else None,
        normal(batch, channels, state, of=torch.float32),
        normal(batch, length, channels),
        normal(batch, channels, state, of=torch.float32),
    )  # fmt: skip


def run_scan(backend, arguments, options, chunk):
    """All phases forward and backward, by name."""
    x, z, dt, A, B, C, D, bias, ids, initial, dy, dfinal = arguments
    a = ScanArguments(x, dt, A, B, C, D, z, bias, initial, ids, options)
    dt_sums, end_states = backend.chunk_summaries(a, chunk)
    states, final = backend.propagate(dt_sums, end_states, A, initial, options.reverse)
    y = backend.chunk_outputs(a, states, chunk)
    back_sums, ends = backend.backward_summaries(a, dy, chunk)
    adjoints, dinitial = backend.propagate(back_sums, ends, A, dfinal, not options.reverse)
    gradients = backend.chunk_gradients(a, dy, states, adjoints, chunk)
    values = (dt_sums, end_states, states, final, y, back_sums, ends, adjoints, dinitial, *gradients)
    return dict(zip(SCAN_NAMES, values, strict=True))


def check_scan(arguments, options, chunk, sequential_error=False):
    """Against fp64: within the bound, or with ``sequential_error`` twice the fp32 recurrence's own error if larger."""
    dtype = arguments[0].dtype
    found = run_scan(SCAN, arguments, options, chunk)
    expected = run_scan(REFERENCE_SCAN, tuple(map(wide, arguments)), options, chunk)
    plain = run_scan(REFERENCE_SCAN, arguments, options, arguments[0].shape[1]) if sequential_error else {}
    for name in SCAN_NAMES:
        bound = BOUNDS[dtype]
        if name in plain and plain[name] is not None and plain[name].shape == expected[name].shape:
            difference = (plain[name].double() - expected[name]).norm() / expected[name].norm()
            bound = max(bound, 2 * float(difference))
        compare(name, found[name], expected[name], bound)
    if arguments[0].is_cuda:
        again = run_scan(SCAN, arguments, options, chunk)
        for name in SCAN_NAMES:
            assert found[name] is None or torch.equal(found[name], again[name]), f"{name}: not the same bits twice"


@pytest.mark.parametrize(
    ("shape", "chunk", "options", "how"),
    [
        ((1, 20, 5, 4, 1), 8, ScanOptions(), {}),
        ((2, 19, 6, 3, 2), 8, ScanOptions(False, True, False), {"packed": True, "biased": False}),
        ((1, 21, 3, 2, 1), 16, ScanOptions(zoh=True), {"gated": False, "constant": "B", "packed": True}),
        ((1, 18, 3, 5, 1), 64, ScanOptions(reverse=True, zoh=True), {"constant": "C", "biased": False}),
        ((1, 9, 3, 40, 1), 4, ScanOptions(reverse=True), {"constant": "BC", "packed": True}),
        ((1, 1, 2, 1, 1), 16, ScanOptions(), {"packed": True}),
        ((1, 15, 3, 2, 1), 4, ScanOptions(dt_softplus=False, zoh=True), {"extreme": True}),
    ],
)
def test_scan(device, shape, chunk, options, how):
    arguments = scan_arguments(device, *shape, softplus=options.dt_softplus, **how)
    check_scan(arguments, options, chunk, sequential_error=True)


def test_propagate_in_two_levels(device, monkeypatch):
    """Many chunks, a lost state among them, both ways, with and without an initial state."""
    monkeypatch.setattr(tiles, "PROPAGATE_SEGMENT", 3)
    torch.manual_seed(0)
    dt_sums, ends = torch.rand(2, 23, 3, device=device), torch.randn(2, 23, 3, 2, device=device)
    dt_sums[1, 7] = torch.inf
    A, initial = -torch.rand(3, 2, device=device), torch.randn(2, 3, 2, device=device)
    for reverse in (False, True):
        for state in (None, initial):
            expected = REFERENCE_SCAN.propagate(*map(wide, (dt_sums, ends, A, state)), reverse)
            for name, found, want in zip(
                ("states", "final"), SCAN.propagate(dt_sums, ends, A, state, reverse), expected, strict=True
            ):
                compare(name, found, want, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((2, 1031, 96, 16, 1), torch.bfloat16, ScanOptions()),
        ((2, 1031, 96, 16, 1), torch.float16, ScanOptions(reverse=True, zoh=True)),
        ((2, 515, 33, 5, 1), torch.float32, ScanOptions(reverse=True)),
        ((1, 300, 80, 64, 2), torch.bfloat16, ScanOptions(zoh=True)),
        ((1, 129, 12, 256, 1), torch.float32, ScanOptions()),
    ],
)
def test_scan_at_size(shape, dtype, options):
    arguments = scan_arguments("cuda", *shape, dtype=dtype, packed=options.reverse, constant="B" if options.zoh else "")
    check_scan(arguments, options, 64, sequential_error=dtype == torch.float32)


@pytest.mark.gpu
def test_scan_of_extreme_values():
    check_scan(scan_arguments("cuda", 1, 1024, 32, 16, 1, extreme=True), ScanOptions(dt_softplus=False), 128, True)


@pytest.mark.gpu
def test_scan_of_many_chunks():
    """The pass over chunks in two levels of its own accord, at an odd length."""
    check_scan(scan_arguments("cuda", 1, 8193, 8, 16, 1), ScanOptions(), 32, True)


@pytest.mark.gpu
def test_offsets_above_two_to_the_31():
    """The last rows of tensors of more than 2³¹ elements equal those of a short copy."""
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory: run with fewer workers")
    length, channels = (1 << 22) + 5, 520
    x = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(channels, 4, device="cuda")
    y, _ = CONV.forward(ConvArguments(x, weight, None, None, None, "silu", False))
    tail, _ = CONV.forward(ConvArguments(x[:, -103:], weight, None, None, None, "silu", False))
    assert torch.equal(y[:, -100:], tail[:, -100:])
    scale = torch.randn(channels, device="cuda")
    y, _, _ = NORM.forward(x[0], scale, None, 1e-5, torch.bfloat16)
    assert torch.equal(y[-100:], NORM.forward(x[0, -100:], scale, None, 1e-5, torch.bfloat16)[0])


# --- without a GPU ----------------------------------------------------------------------------------------------------


def test_refusals():
    """What the backend does not take, it says in a sentence."""
    x, A = torch.zeros(1, 4, 4, dtype=torch.float64), torch.zeros(4, 300)
    B, C = torch.zeros(1, 4, 1, 16), torch.zeros(1, 4, 2, 16)
    assert "float64" in (SCAN.supports(x, A[:, :16], B, B) or "")
    assert "float64" in (CONV.supports(x) or "")
    assert "256" in (SCAN.supports(x.float(), A, B, B) or "")
    assert "groups" in (SCAN.supports(x.float(), A[:, :16], B, C) or "")
    assert SCAN.supports(x.float(), A[:, :16], B, B) is None


def run_python(*arguments, **environment):
    """A Python process with the tests' import path; its output on failure."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([root, os.path.join(root, "kernels"), os.environ.get("PYTHONPATH", "")])
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": path} | environment
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    """All tests with a device of three files, in a process whose Triton interprets kernels on the CPU."""
    folder = os.path.dirname(__file__)
    files = [os.path.join(folder, f"test_triton_{name}.py") for name in ("kernels", "mixers", "steps")]
    command = ["-m", "pytest", *files, "-k", "cpu", "-p", "no:cacheprovider", "-vv"]
    out = run_python(*command, TRITON_INTERPRET="1")
    assert all(re.search(rf"{os.path.basename(file)}::\S+ PASSED", out) for file in files), out[-4000:]
    assert "skipped" not in out


def test_registers_that_were_never_set_are_seen():
    """Lines as nvdisasm writes them; ptxas of CUDA 12.8 wrote the first of `wrong` where it should write the second."""
    start = [
        "/*0010*/  ULDC.64 UR8, c[0x0][0x264] ;",
        "/*0020*/  USGXT.U32 UR44, UR8, 0xe ;",
        "/*0030*/  UMOV UR43, 0x1 ;",
    ]
    wrong = ["/*0830*/  UIADD3 UR42, UP1, UR13, 0x40, URZ ;", "/*0830*/  UIADD3 UR42, UP1, UR44, 0x40, URZ ;"]
    products = [
        "/*4a20*/  HGMMA.64x32x16.F32.BF16 R24, R40, gdesc[UR40].tnspB, R24 ;",
        "/*4a40*/  @P0 HGMMA.64x32x16.F32.BF16 R24, gdesc[UR42], R24, gsb0 ;",
    ]
    assert unset_registers([*start, wrong[0], products[0]]) == 1
    assert unset_registers([*start, wrong[1], products[0]]) == 0
    assert unset_registers([*start, wrong[1], products[1]]) == 1, "its second descriptor, UR44 and UR45"
    assert unset_registers([*start, "/*0040*/  UIMAD.WIDE UR44, UR8, UR9, URZ ;", wrong[1], products[1]]) == 0
    assert unset_registers([*start, products[0]]) == 1
    assert unset_registers([*start, "/*13e0*/  UPRMT UR13, UR8, 0x7632, UR13 ;"]) == 0
    assert unset_registers([*start, "/*13e0*/  UPRMT UR13, UR14, 0x7632, UR13 ;"]) == 1


@pytest.mark.skipif(INTERPRETED, reason="the compiler is off in the interpreter's process")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "capability", ["90", pytest.param("80", marks=pytest.mark.slow), pytest.param("100", marks=pytest.mark.slow)]
)
def test_every_kernel_compiles(capability):
    """Ahead of time, with the arguments of real launches; needs no GPU."""
    out = run_python(os.path.join(os.path.dirname(__file__), "triton_aot.py"), capability)
    for kernel in (
        "conv.forward",
        "conv.backward",
        "norm.forward",
        "norm.normalised",
        "norm.backward",
        "common.sum_partials",
    ):
        assert f"{kernel}_kernel" in out
    assert "common.sum_rows_kernel" in out
    norms = [line for line in out.splitlines() if " norm." in line or " gated_norm." in line]
    assert norms and all(line.endswith(" 0 fused exchanges") for line in norms), "lanes of a row may differ"
    for kernel in ("conv.conv_step", "scan.scan_step", "gated_norm.forward", "gated_norm.backward", "rotary.rotate"):
        assert f"{kernel}_kernel" in out
    for kernel in ("chunk_summaries", "propagate", "chunk_outputs", "backward_summaries", "chunk_gradients"):
        assert f"scan.{kernel}_kernel" in out
    for kernel in ("chunk_states", "propagate", "outputs", "head_gradients", "map_gradients"):
        assert f"ssd.{kernel}_kernel" in out
