"""Kernels as PyTorch operators: registration, compilation, checkpointing, aliasing, errors, phases, threads,
imports."""

import subprocess
import sys

import kernel_cases as cases
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import dnamamba_kernels
from dnamamba_kernels import backends, causal_conv1d, gated_rms_norm, phases, rms_norm, rotary, selective_scan, ssd_scan
from dnamamba_kernels.conv.causal_conv1d import conv_op
from dnamamba_kernels.gated_norm.gated_rms_norm import gated_norm_op
from dnamamba_kernels.norm.rms_norm import norm_op
from dnamamba_kernels.rotary.rotary import rotary_op
from dnamamba_kernels.scan.arguments import ScanGradients
from dnamamba_kernels.scan.cpu.threads import run_tasks
from dnamamba_kernels.scan.selective_scan import scan_op
from dnamamba_kernels.ssd.ssd_scan import ssd_op

NAMES = ("x", "dt", "A", "B", "C")


def positional(problem):
    rest = dict(problem.tensors)
    return [rest.pop(n) for n in NAMES], rest | problem.options


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_opcheck_scan(backend):
    t = cases.random_problem(2, 70, 6, 3).to(torch.float32).tensors
    t = {n: v.requires_grad_() for n, v in t.items()}
    args = [t["x"], t["dt"], t["A"], t["B"][:, :, None], t["C"][:, :, None], t["D"], t["z"], t["dt_bias"]]
    ids = torch.arange(70, dtype=torch.int32).expand(2, 70) // 40
    torch.library.opcheck(scan_op, (*args, t["initial_state"], ids, True, False, True, True, backend))
    torch.library.opcheck(scan_op, (*args[:5], None, None, None, None, None, True, True, False, True, backend))


@pytest.mark.filterwarnings("ignore")
def test_opcheck_conv_and_norm():
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((2, 9, 5), (5, 4), (5,)))
    state = torch.randn(2, 3, 5, requires_grad=True)
    torch.library.opcheck(conv_op, (x, weight, bias, state, None, "silu", False, "auto"))
    torch.library.opcheck(conv_op, (x, weight, None, None, None, "none", True, "auto"))
    rows, scale, residual = (torch.randn(s, requires_grad=True) for s in ((7, 5), (5,), (7, 5)))
    torch.library.opcheck(norm_op, (rows, scale, residual, 1e-5, torch.float32, "auto"))
    half = rows.detach().bfloat16().requires_grad_()
    torch.library.opcheck(norm_op, (half, scale, None, 1e-5, torch.float32, "auto"))
    torch.library.opcheck(gated_norm_op, (rows, residual, scale, 1e-5, "auto"))
    qkv, cos, sin = torch.randn(2, 9, 3, 2, 4, requires_grad=True), torch.randn(1, 9, 2), torch.randn(1, 9, 2)
    torch.library.opcheck(rotary_op, (qkv, cos, sin, "auto"))


@pytest.mark.filterwarnings("ignore")
def test_opcheck_ssd():
    shapes = (2, 70, 4, 3), (2, 70, 4), (2, 70, 4), (2, 70, 2, 5), (2, 70, 2, 5), (4,), (2, 4, 3, 5)
    tensors = [torch.rand(shape, requires_grad=True) for shape in shapes]
    ids = torch.arange(70, dtype=torch.int32).expand(2, 70) // 40
    torch.library.opcheck(ssd_op, (*tensors, ids, "auto"))
    torch.library.opcheck(ssd_op, (*tensors[:5], None, None, None, "reference"))


def block(x, dt, B, C, z, A, weight, scale):
    """A Mamba layer's kernels in a row."""
    x, residual = rms_norm(x, scale, residual_in_fp32=True)
    x, _ = causal_conv1d(x, weight)
    y, _ = selective_scan(x, dt, A, B, C, z=z)
    y = gated_rms_norm(y, z, scale)
    y, _ = ssd_scan(y.unflatten(-1, (4, 2)), A[:4, 0].expand(2, 70, 4), dt[..., :4], B[..., None, :], C[..., None, :])
    query, key, value = rotary(torch.stack((y, y, x.view(y.shape)), 2), C[..., :1].detach(), C[..., 1:2].detach())
    return (query * key + value).flatten(-2) + residual


def block_arguments():
    torch.manual_seed(0)
    rows = [torch.randn(2, 70, n) for n in (8, 8, 4, 4, 8)]
    return [t.requires_grad_() for t in (*rows, -torch.rand(8, 4), torch.randn(8, 4), torch.randn(8))]


def test_compiles_without_graph_breaks():
    args = block_arguments()
    expected = torch.autograd.grad(block(*args).square().sum(), args)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for found, exact in zip(torch.autograd.grad(compiled(*args).square().sum(), args), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_gives_the_same_gradients():
    args = block_arguments()
    expected = torch.autograd.grad(block(*args).square().sum(), args)
    again = checkpoint(block, *args, use_reentrant=False)
    for found, exact in zip(torch.autograd.grad(again.square().sum(), args), expected, strict=True):
        assert torch.equal(found, exact)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_outputs_never_alias_inputs(backend):
    problem = cases.random_problem(1, 20, 6, 3, gate=False, skip=False).to(torch.float32)
    args, rest = positional(problem)
    _, final_state = selective_scan(*args, **rest, backend=backend)
    before = rest["initial_state"].clone()
    final_state.zero_()
    assert torch.equal(rest["initial_state"], before)
    x = torch.randn(1, 2, 4)
    for state in (None, torch.randn(1, 3, 4)):
        y, final = causal_conv1d(x, torch.randn(4, 4), activation=None, initial_state=state)
        assert {y.data_ptr(), final.data_ptr()}.isdisjoint({x.data_ptr(), state.data_ptr() if state is not None else 0})
    y, residual = rms_norm(x, torch.ones(4))
    assert len({x.data_ptr(), y.data_ptr(), residual.data_ptr()}) == 3


def test_second_derivative_is_refused():
    x = torch.randn(1, 5, 2, requires_grad=True)
    y, _ = selective_scan(x, x, -torch.rand(2, 3), torch.randn(1, 5, 3), torch.randn(1, 5, 3))
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"first derivatives only: take second ones by torch\.func"):
        first.sum().backward()


GOOD = {
    "x": torch.zeros(2, 6, 4),
    "dt": torch.zeros(2, 6, 4),
    "A": -torch.ones(4, 3),
    "B": torch.zeros(2, 6, 3),
    "C": torch.zeros(2, 6, 3),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6)}, r"x must be \(batch, length, channels\)"),
        ({"x": torch.zeros(2, 0, 4)}, "x must not be empty"),
        ({"x": torch.zeros(2, 6, 4, dtype=torch.int32)}, "x must be float32, bfloat16 or float16"),
        ({"dt": torch.zeros(2, 5, 4)}, r"dt must be x's shape .* = \(2, 6, 4\), got \(2, 5, 4\)"),
        ({"z": torch.zeros(2, 4, 6).transpose(1, 2)}, "z must have unit stride in its last dimension"),
        ({"A": -torch.ones(4, 3, dtype=torch.complex64)}, "A must be real"),
        ({"A": -torch.ones(4, 3, dtype=torch.bfloat16)}, "A must be torch.float32"),
        ({"A": -torch.ones(3, 4)}, r"A must be \(channels=4, state\)"),
        ({"A": -torch.ones(4, 257)}, "state must be 1…256, got 257"),
        ({"B": torch.zeros(2, 6, 3, 3)}, "B has 3 groups, which do not divide 4 channels"),
        ({"C": torch.zeros(2, 6, 5)}, r"C must be \(batch, length, state\) = \(2, 6, 3\)"),
        ({"C": torch.zeros(3, 4)}, r"C must be \(channels, state\), being constant, = \(4, 3\)"),
        ({"D": torch.zeros(5)}, r"D must be \(channels,\) = \(4,\)"),
        ({"initial_state": torch.zeros(2, 4, 3).half()}, "initial_state must be torch.float32"),
        ({"sequence_ids": torch.zeros(2, 6)}, "sequence_ids must be .* int32, got .* torch.float32"),
        ({"B": torch.zeros(2, 6, 3, device="meta")}, "B is on meta, x on cpu"),
        ({"discretization": "bilinear"}, "discretization must be 'euler' or 'zoh', got 'bilinear'"),
        ({"backend": "fast"}, "backend must be 'auto', 'reference'"),
        ({"backend": "cuda"}, "x is on cpu"),
        (
            {"x": torch.zeros(2, 6, 4, dtype=torch.float64), "A": -torch.ones(4, 3).double(), "backend": "cpu"},
            "float64",
        ),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = GOOD | change
    args = [arguments.pop(n) for n in NAMES]
    with pytest.raises(ValueError, match=message):
        selective_scan(*args, **arguments)


def test_devices_without_kernels_are_refused(monkeypatch):
    assert "numba" in dnamamba_kernels.describe("cpu")
    assert "reference" in dnamamba_kernels.describe("mps")
    monkeypatch.setattr(backends, "platform", lambda device: "mps")
    with pytest.raises(ValueError, match="no kernel for device mps: pass backend='reference'"):
        backends.choose("scan", "auto", *GOOD.values())


@pytest.mark.filterwarnings("ignore")
def test_auto_on_rocm(monkeypatch):
    """Triton where it can, else the reference, for all operators; never CUDA C++. Fake tensors need no GPU."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "MI300X")

    def scan(*maps, backend="auto"):
        return backends.choose("scan", backend, x, A, *maps)

    with FakeTensorMode():
        x, row, A = (torch.empty(shape, device="cuda") for shape in ((1, 8, 4), (1, 4), (4, 4)))
        B, C = (torch.empty(1, 8, groups, 4, device="cuda") for groups in (1, 2))
        assert scan(B, B) is backends.load("scan", "triton")
        assert scan(B, C) is backends.load("scan", "reference")  # which takes different groups
        for operator in ("conv", "norm"):
            assert backends.choose(operator, "auto", x) is backends.load(operator, "triton")
        with pytest.raises(ValueError, match="cuda: x is on rocm"):
            scan(B, B, backend="cuda")
        either = f"triton {triton.__version__} or PyTorch {torch.__version__}"
        assert backends.describe("cuda") == f"scan: {either}, conv and norm: {either}, on MI300X"
        step, plain = (backends.load("scan", name) for name in ("triton", "reference"))
        monkeypatch.setattr(backends, "observed", lambda *inputs: False)  # by a fake tensor's mode
        assert backends.choose_step("scan", plain, row) is step
        monkeypatch.setattr(backends, "_has_triton", lambda: False)
        assert scan(B, B) is backends.load("scan", "reference")
        for operator in ("conv", "norm"):
            assert backends.choose(operator, "auto", x) is backends.load(operator, "reference")
        assert backends.choose_step("scan", plain, row) is plain
        y, state = selective_scan(x, x, A, B, B)
        assert (y.device.type, y.shape, state.shape) == ("cuda", x.shape, (1, 4, 4))
        with pytest.raises(ValueError, match="triton: Triton is not installed"):
            scan(B, B, backend="triton")


def test_auto_on_nvidia():
    if torch.version.hip:
        pytest.skip("a PyTorch for ROCm")
    assert backends.platform(torch.device("cuda")) == "cuda"
    assert backends.candidates("scan", "auto", torch.bfloat16, "cuda") == ("cuda", "triton")
    for operator in ("conv", "norm", "gated_norm", "ssd"):
        assert backends.candidates(operator, "auto", torch.bfloat16, "cuda") == ("triton",)
    assert backends.candidates("scan", "auto", torch.float64, "cuda") == ("reference",)


def test_importing_and_describing_load_no_compiler():
    code = "import sys, dnamamba_kernels as k; k.describe('cpu'); print(*({'numba', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_backward_uses_the_backend_of_forward():
    """Whatever `preferred` says by then."""
    problem = cases.random_problem(1, 100, 6, 3).to(torch.float32)

    def outcome(during_forward, during_backward, backend="auto"):
        leaves = {n: v.clone().requires_grad_() for n, v in problem.tensors.items()}
        args = dict(leaves)
        with backends.preferred("scan", during_forward):
            y, final = selective_scan(*[args.pop(n) for n in NAMES], **args, backend=backend)
        with backends.preferred("scan", during_backward):
            torch.autograd.backward([y, final], [problem.dy, problem.dfinal])
        return [v.grad for v in leaves.values()]

    for first, then in (("reference", "auto"), ("reference", "cpu"), ("cpu", "reference"), ("auto", "reference")):
        expected = outcome("auto", "auto", first)
        assert all(map(torch.equal, outcome(first, then), expected)), (first, then)
    x, weight = torch.randn(1, 6, 4, requires_grad=True), torch.ones(4, 3)
    for kernel, function, w in (("conv", causal_conv1d, weight), ("norm", rms_norm, torch.ones(4))):
        y, _ = function(x, w)
        with backends.preferred(kernel, "cuda"):  # which has neither
            y.sum().backward()
            with pytest.raises(ValueError, match="no backend can run"):
                function(x, w)
        assert backends.requested(kernel, "auto") == "auto"


def test_eager_calls_differentiate_like_the_operators():
    """The public functions bypass torch.library's autograd outside of torch.compile; results are the same."""
    x, dt, B, C, z, A, weight, scale = block_arguments()
    ssd = x.unflatten(-1, (4, 2)), A[:4, 0].expand(2, 70, 4), dt[..., :4], B[..., None, :], C[..., None, :]
    calls = [
        (selective_scan(x, dt, A, B, C, z=z), scan_op, (x, dt, A, B[:, :, None], C[:, :, None], None, z, None, None)),
        (causal_conv1d(x, weight), conv_op, (x, weight, None, None)),
        (rms_norm(x, scale), norm_op, (x.reshape(-1, 8), scale, None)),
        (ssd_scan(*ssd), ssd_op, (*ssd, None, None, None)),
    ]
    rest = [(None, True, False, False, True, "auto"), (None, "silu", False, "auto"), (1e-5, torch.float32, "auto")]
    rest.append(("auto",))
    for (found, operator, tensors), options in zip(calls, rest, strict=True):
        expected = operator(*tensors, *options)
        leaves = [t for t in (x, dt, B, C, z, A, weight, scale) if operator in (scan_op, ssd_op) or t is not dt]
        for k in range(2):  # each result alone: the other one's gradient is zero
            assert torch.equal(found[k].flatten(), expected[k].flatten())
            gradients = (
                torch.autograd.grad(y.square().sum(), leaves, retain_graph=True, allow_unused=True)
                for y in (found[k], expected[k])
            )
            for ours, theirs in zip(*gradients, strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)
    with torch.no_grad():
        assert not causal_conv1d(x, weight)[0].requires_grad
    assert not causal_conv1d(x.detach(), weight.detach())[0].requires_grad


# --- phases -----------------------------------------------------------------------------------------------------------


def over_ranks(problem, ranks, chunk, backend):
    """Value and gradients as context parallelism computes them: each rank a slice, small summaries exchanged."""
    args, rest = positional(problem)
    initial = rest.pop("initial_state")
    D, z, ids = rest.pop("D"), rest.pop("z"), rest.pop("sequence_ids", None)
    reverse = rest.get("reverse", False)
    summary = rest | {"chunk": chunk, "backend": backend}
    x, dt, A, B, C = args
    length = x.shape[1]
    cuts = [slice(length * r // ranks, length * (r + 1) // ranks) for r in range(ranks)]
    at = [
        {
            "x": x[:, c],
            "dt": dt[:, c],
            "B": B[:, c],
            "C": C[:, c],
            "z": z[:, c],
            "dy": problem.dy[:, c],
            "ids": None if ids is None else ids[:, c],
        }
        for c in cuts
    ]
    # whether a state survives the border before (in time) each slice
    crosses = torch.ones(x.shape[0], ranks)
    if ids is not None:
        for r in range(ranks):
            before = cuts[r].stop if reverse else cuts[r].start - 1
            here = cuts[r].stop - 1 if reverse else cuts[r].start
            if 0 <= before < length:
                crosses[:, r] = (ids[:, before] == ids[:, here]).float()

    def exchange(parts, first, against_time):
        """Each slice's own summaries → the state (or adjoint) arriving at it."""
        backwards = reverse != against_time
        ends = [phases.propagate(*part, A, reverse=backwards, backend=backend)[1] for part in parts]
        sums = torch.stack([part[0].sum(1) for part in parts], 1)
        arriving, state = {}, first
        for r in reversed(range(ranks)) if backwards else range(ranks):
            if not against_time:
                state = state * crosses[:, r, None, None]
            arriving[r] = state
            decay = torch.where(sums[:, r, :, None].isinf(), 0.0, torch.exp(sums[:, r, :, None] * A))
            state = decay * state + ends[r]
            if against_time:
                state = state * crosses[:, r, None, None]
        return arriving, state

    parts = [phases.chunk_summaries(s["x"], s["dt"], A, s["B"], sequence_ids=s["ids"], **summary) for s in at]
    arriving, final_state = exchange(parts, initial, False)
    states, ys = [], []
    for r, s in enumerate(at):
        states.append(phases.propagate(*parts[r], A, arriving[r], reverse=reverse, backend=backend)[0])
        same = summary | {"D": D, "z": s["z"], "sequence_ids": s["ids"]}
        ys.append(phases.chunk_outputs(s["x"], s["dt"], A, s["B"], s["C"], states[r], **same))

    plain = {k: v for k, v in summary.items() if k != "discretization"}
    parts = [
        phases.backward_summaries(s["dy"], s["dt"], A, s["C"], z=s["z"], sequence_ids=s["ids"], **plain) for s in at
    ]
    arriving, dinitial = exchange(parts, problem.dfinal, True)
    gradients = []
    for r, s in enumerate(at):
        adjoints, _ = phases.propagate(*parts[r], A, arriving[r], reverse=not reverse, backend=backend)
        same = summary | {"D": D, "z": s["z"], "sequence_ids": s["ids"]}
        rows = s["dy"], s["x"], s["dt"], A, s["B"], s["C"]
        gradients.append(phases.chunk_gradients(*rows, states[r], adjoints, **same))
    found = {"y": torch.cat(ys, 1), "final_state": final_state, "dinitial_state": dinitial}
    for name in ScanGradients._fields:
        values = [getattr(g, name) for g in gradients]
        found[f"d{name}"] = torch.cat(values, 1) if values[0].dim() > 2 else sum(values)
    return found


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"packed": True, "reverse": True, "discretization": "zoh"}])
@pytest.mark.parametrize(("backend", "chunk"), [("reference", 16), ("cpu", 16), ("cpu", 100)])
def test_phases_over_ranks_equal_one_pass(backend, chunk, options):
    problem = cases.random_problem(2, 331, 18, 4, **options).to(torch.float32)
    cases.check_fp32(problem, over_ranks(problem, 3, chunk, backend))


def test_phases_check_their_arguments():
    problem = cases.random_problem(1, 40, 4, 3).to(torch.float32)
    x, dt, A, B, C = positional(problem)[0]
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        phases.chunk_summaries(x, dt, A, B, chunk=0)
    with pytest.raises(ValueError, match=r"chunk_states must be .* = \(1, 3, 4, 3\)"):
        phases.chunk_outputs(x, dt, A, B, C, torch.zeros(1, 2, 4, 3), chunk=16)
    assert phases.default_chunk(x, A, B, C) >= 1


def test_phases_refuse_states_and_decays_of_another_dtype():
    """Half precision with fp32 states, as a caller who casts everything gets it wrong."""
    problem = cases.random_problem(1, 40, 4, 3).to(torch.bfloat16)
    x, dt, A, B, C = positional(problem)[0]
    sums, ends = phases.chunk_summaries(x, dt, A, B, chunk=16)
    states, _ = phases.propagate(sums, ends, A)
    rows = x, x, dt, A, B, C
    for call, message in (
        (lambda: phases.propagate(sums.half(), ends, A), "dt_sums must be torch.float32, got torch.float16"),
        (lambda: phases.propagate(sums.double(), ends, A), "dt_sums must be torch.float32, got torch.float64"),
        (lambda: phases.propagate(sums, ends.bfloat16(), A), "end_states must be torch.float32"),
        (lambda: phases.propagate(sums, ends, A.double()), "A must be torch.float32, got torch.float64"),
        (lambda: phases.propagate(sums, ends, A[:2]), r"A must be \(channels=4, state\)"),
        (lambda: phases.propagate(sums, ends, A[:, :2]), "end_states must be .*state"),
        (lambda: phases.chunk_outputs(x, dt, A, B, C, states.bfloat16(), chunk=16), "chunk_states must be torch.fl"),
        (lambda: phases.chunk_outputs(x, dt, A, B, C, states, chunk=0), "chunk must be at least 1"),
        (
            lambda: phases.chunk_gradients(*rows, states.double(), states, chunk=16),
            "chunk_states must be torch.float32",
        ),
        (
            lambda: phases.chunk_gradients(*rows, states, states.half(), chunk=16),
            "chunk_adjoints must be torch.float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    wide = problem.to(torch.float64)
    x, dt, A, B, C = positional(wide)[0]
    sums, ends = phases.chunk_summaries(x, dt, A, B, chunk=16)
    states, _ = phases.propagate(sums, ends, A)
    assert states.dtype == torch.float64
    with pytest.raises(ValueError, match=r"chunk_states must be torch\.float64"):
        phases.chunk_outputs(x, dt, A, B, C, states.float(), chunk=16)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_tasks_raise_and_the_pool_goes_on():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            run_tasks(lambda n: 1 // n, [(1,), (0,), (1,)])
        done = []
        run_tasks(done.append, [(n,) for n in range(9)])
        assert sorted(done) == list(range(9))
    finally:
        torch.set_num_threads(threads)


def test_scan_runs_in_a_forked_process():
    code = """
import os, torch, warnings
warnings.simplefilter("ignore")
from dnamamba_kernels import selective_scan
torch.set_num_threads(2)
def scan():
    torch.manual_seed(0)
    x = torch.randn(2, 70, 40)
    return selective_scan(x, x, -torch.rand(40, 3), torch.randn(2, 70, 3), torch.randn(2, 70, 3))[0]
before = scan()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(scan(), before) else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_cpu_kernels_are_compiled_where_nothing_can_be_kept():
    """A read-only installation, and no home that can be written: numba finds no folder."""
    code = (
        "from numba.core import caching\n"
        "def ensure_cache_path(self): raise OSError(30, 'Read-only file system')\n"
        "caching._CacheLocator.ensure_cache_path = ensure_cache_path\n"
        "from dnamamba_kernels.scan.cpu import kernels\n"
        "print(kernels.compiled(lambda x: x + 1)(1), kernels.load_rows.stats.cache_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 None\n"
