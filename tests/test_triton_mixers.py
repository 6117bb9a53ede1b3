"""The Triton kernels of SSD, the gated norm and rotary positions against the plain PyTorch reference in fp64.

On a GPU (``-m gpu``), or through Triton's interpreter where TRITON_INTERPRET=1 was set before Python started;
``test_triton_kernels.py`` starts such a process. Memory from ``torch.empty`` holds NaN, so unwritten outputs show.
"""

import pytest
import torch

pytest.importorskip("triton")

from test_triton_kernels import BOUNDS, DEVICES, compare, poisoned_and_deterministic, wide

from dnamamba_kernels.gated_norm.reference import BACKEND as REFERENCE_NORM
from dnamamba_kernels.gated_norm.triton import BACKEND as NORM
from dnamamba_kernels.rotary.reference import BACKEND as REFERENCE_ROTARY
from dnamamba_kernels.rotary.triton import BACKEND as ROTARY
from dnamamba_kernels.ssd.protocol import SSDArguments
from dnamamba_kernels.ssd.reference import BACKEND as REFERENCE
from dnamamba_kernels.ssd.triton import BACKEND as SSD
from dnamamba_kernels.ssd.triton import ssd

__all__ = ["poisoned_and_deterministic"]  # a fixture of every test here, too


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def arguments(device, shape, groups, packed=False, states=True, skip=True, dtype=torch.float32):
    """Of `shape` (batch, length, heads, head, state); x is a view with longer rows."""
    batch, length, heads, head, state = shape
    torch.manual_seed(length + state)
    x = torch.randn(batch, length, 2 * heads * head, device=device, dtype=dtype)[..., heads * head :]
    log_decay = -2 * torch.rand(batch, length, heads, device=device)
    weight = torch.rand(batch, length, heads, device=device)
    B, C = (torch.randn(batch, length, groups, state, device=device, dtype=dtype) for _ in "BC")
    D = torch.randn(heads, device=device) if skip else None
    initial = torch.randn(batch, heads, head, state, device=device) if states else None
    ids = (torch.rand(batch, length, device=device) < 0.05).cumsum(1).int() if packed else None
    return SSDArguments(x.unflatten(-1, (heads, head)), log_decay, weight, B, C, D, initial, ids)


def check(a: SSDArguments, bound: float) -> None:
    """Values, all gradients, and on a GPU the same bits twice."""
    for name, value, want in zip(("y", "final_state"), SSD.forward(a), REFERENCE.forward(wide(a)), strict=True):
        assert value.dtype == (a.x.dtype if name == "y" else torch.float32)
        compare(name, value, want, bound)
    dy = torch.randn_like(a.x)
    dfinal = None if a.initial_state is None else torch.randn_like(a.initial_state)
    found = SSD.backward(a, dy, dfinal)
    expected = REFERENCE.backward(wide(a), dy.double(), wide(dfinal))
    for name, value, want in zip(found._fields, found, expected, strict=True):
        compare(f"d{name}", value, want, bound)
    if a.x.is_cuda:
        again = SSD.backward(a, dy, dfinal)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True) if one is not None)


@pytest.mark.parametrize(
    ("shape", "groups", "packed", "states", "skip"),
    [
        ((2, 37, 2, 3, 5), 1, False, True, True),
        ((1, 150, 4, 6, 20), 2, True, True, True),  # three chunks, the last not whole
        ((1, 70, 1, 70, 70), 1, True, False, False),  # two blocks of a head, two of a state
        ((2, 1, 2, 4, 3), 2, True, True, True),
    ],
)
def test_ssd(device, shape, groups, packed, states, skip):
    check(arguments(device, shape, groups, packed, states, skip), 5e-6)


def test_states_in_two_levels(device, monkeypatch):
    """Many chunks for one program to hand states over."""
    monkeypatch.setattr(ssd, "SEGMENT", 2)
    check(arguments(device, (1, 300, 1, 2, 3), 1, packed=True), 5e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "groups", "packed", "dtype"),
    [
        ((2, 3001, 4, 64, 16), 1, False, torch.bfloat16),
        ((1, 1000, 8, 32, 128), 2, True, torch.bfloat16),
        ((2, 517, 2, 96, 256), 1, True, torch.float32),
        ((1, 3001, 4, 64, 16), 4, True, torch.float16),
        ((1, 63, 3, 6, 5), 1, False, torch.float32),
    ],
)
def test_ssd_at_size(shape, groups, packed, dtype):
    bound = 1e-5 if dtype == torch.float32 else BOUNDS[dtype]
    check(arguments("cuda", shape, groups, packed, dtype=dtype), bound)


@pytest.mark.gpu
def test_ssd_of_a_million_positions():
    """Of which states are handed on in two levels, of its own accord."""
    check(arguments("cuda", (1, (1 << 20) - 3, 1, 16, 4), 1, packed=True), 1e-5)


def check_gated_norm(device, rows, width, dtype):
    torch.manual_seed(rows)
    x, dy = torch.randn(2, rows, width, device=device, dtype=dtype)
    z = torch.randn(rows, 2 * width, device=device, dtype=dtype)[:, width:]  # a view with longer rows
    weight = torch.randn(width, device=device)
    found, rstd = NORM.forward(x, z, weight, 1e-5)
    compare("y", found, REFERENCE_NORM.forward(*map(wide, (x, z, weight)), 1e-5)[0], BOUNDS[dtype])
    expected = REFERENCE_NORM.backward(*map(wide, (dy, x, z, weight, rstd)))
    gradients = NORM.backward(dy, x, z, weight, rstd)
    for name, value, want in zip(("dx", "dz", "dweight"), gradients, expected, strict=True):
        compare(name, value, want, BOUNDS[dtype])
    if device == "cuda":
        again = NORM.backward(dy, x, z, weight, rstd)
        assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@pytest.mark.parametrize(("rows", "width"), [(37, 5), (3, 130), (70, 64)])
def test_gated_norm(device, rows, width):
    check_gated_norm(device, rows, width, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("rows", "width"), [(100_003, 256), (1_000, 3_000)])
def test_gated_norm_at_size(dtype, rows, width):
    check_gated_norm("cuda", rows, width, dtype)


def check_rotary(device, batch, length, heads, head, dtype):
    torch.manual_seed(length)
    qkv = torch.randn(batch, length, 6 * heads * head, device=device, dtype=dtype)[..., 3 * heads * head :]
    qkv = qkv.unflatten(-1, (3, heads, head))  # a view with longer rows
    for sequences in (1, batch):
        cos, sin = torch.randn(2, sequences, length, head // 2, device=device)
        expected = REFERENCE_ROTARY.forward(*map(wide, (qkv, cos, sin)))
        for name, value, want in zip(("query", "key", "value"), ROTARY.forward(qkv, cos, sin), expected, strict=True):
            compare(name, value, want, BOUNDS[dtype])
        heads_first = torch.randn(3, batch, heads, length, head, device=device, dtype=dtype)  # as attention gives them
        gradients = heads_first.transpose(2, 3).unbind(0)
        wanted = REFERENCE_ROTARY.backward(*map(wide, (*gradients, cos, sin)))
        compare("dqkv", ROTARY.backward(*gradients, cos, sin), wanted, BOUNDS[dtype])


@pytest.mark.parametrize("shape", [(2, 37, 3, 6), (1, 1, 1, 2), (3, 5, 2, 64)])
def test_rotary(device, shape):
    check_rotary(device, *shape, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(2, 100_003, 2, 64), (5, 1_000, 3, 200)])
def test_rotary_at_size(dtype, shape):
    check_rotary("cuda", *shape, dtype)


def test_refusals():
    x = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    assert "float64" in (SSD.supports(x, x) or "")
    assert "float64" in (NORM.supports(x) or "")
    assert "float64" in (ROTARY.supports(x) or "")
    assert SSD.supports(x.float(), x) is None
