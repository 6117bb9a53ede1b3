"""The Triton kernels of single steps against the plain PyTorch steps in fp64.

On a GPU (``-m gpu``), or through Triton's interpreter where TRITON_INTERPRET=1 was set before Python started;
``test_triton_kernels.py`` starts such a process.
"""

import os

import pytest
import torch

pytest.importorskip("triton")

from dnamamba_kernels import backends, causal_conv1d_step, selective_scan_step
from dnamamba_kernels.conv.protocol import ConvArguments
from dnamamba_kernels.conv.triton import BACKEND as CONV
from dnamamba_kernels.scan.arguments import ScanArguments, ScanOptions
from dnamamba_kernels.scan.triton import BACKEND as SCAN

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [*(["cpu"] if INTERPRETED else []), pytest.param("cuda", marks=pytest.mark.gpu)]
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 5e-3}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def check(found, expected, bound):
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= bound * expected.norm()  # NaN fails too


def wide(tensor):
    return None if tensor is None else tensor.double()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("channels", "width"), [(5, 2), (130, 4), (128, 8)])
def test_conv_step(device, dtype, channels, width):
    torch.manual_seed(channels)
    x = torch.randn(3, 2 * channels, device=device, dtype=dtype)[:, channels:]  # a view with longer rows
    state = torch.randn(3, width - 1, channels, device=device, dtype=dtype)
    weight = torch.randn(channels, width, device=device)
    for bias, activation in ((torch.randn(channels, device=device), "silu"), (None, None)):
        y, new = CONV.step(ConvArguments(x, weight, bias, state, None, activation, False))
        expected, shifted = causal_conv1d_step(wide(x), wide(weight), wide(bias), wide(state), activation=activation)
        assert y.dtype == dtype
        check(y, expected, BOUNDS[dtype])
        assert torch.equal(new.double(), shifted)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("zoh", [False, True])
@pytest.mark.parametrize(("channels", "state", "groups"), [(130, 16, 1), (6, 5, 3), (4, 256, 1), (7, 1, 0)])
def test_scan_step(device, dtype, channels, state, groups, zoh):
    """groups 0: B and C constant; without D, gate, bias and softplus where there are groups."""
    torch.manual_seed(channels)

    def rows(columns):
        return torch.randn(2, 3 * columns, device=device, dtype=dtype)[:, columns : 2 * columns]

    def maps():
        return rows(groups * state).unflatten(1, (groups, state)) if groups else torch.randn(channels, state).to(device)

    x, z, dt = rows(channels), rows(channels), rows(channels)
    A = -torch.rand(channels, state, device=device) * 8
    A[0, 0] = 0
    B, C = maps(), maps()
    D, bias = torch.randn(2, channels, device=device)
    plain = groups == 3
    if plain:
        D = z = bias = None
        dt = dt.abs()
    before = torch.randn(2, channels, state, device=device)
    options = ScanOptions(dt_softplus=not plain, zoh=zoh)
    y, new = SCAN.step(ScanArguments(x, dt, A, B, C, D, z, bias, before, None, options))
    expected, after = selective_scan_step(
        *map(wide, (x, dt, A, B, C, before)),
        D=wide(D),
        z=wide(z),
        dt_bias=wide(bias),
        dt_softplus=not plain,
        discretization="zoh" if zoh else "euler",
    )
    assert (y.dtype, new.dtype) == (dtype, torch.float32)
    check(y, expected, BOUNDS[dtype])
    check(new, after, 3e-6)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*Profiler clears events at the end of each cycle:UserWarning")
def test_public_steps_take_the_kernels():
    """The public functions launch one kernel each without gradients, and are plain PyTorch with them."""
    x = torch.randn(2, 8, device="cuda")
    weight, conv_state = torch.randn(8, 4, device="cuda"), torch.randn(2, 3, 8, device="cuda")
    A, B, state = (
        -torch.rand(8, 4, device="cuda"),
        torch.randn(2, 4, device="cuda"),
        torch.randn(2, 8, 4, device="cuda"),
    )
    calls = (
        lambda x: causal_conv1d_step(x, weight, None, conv_state)[0],
        lambda x: selective_scan_step(x, x, A, B, B, state)[0],
    )
    for call in calls:
        call(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            fused = call(x)
            torch.cuda.synchronize()
        assert sum("step_kernel" in event.name for event in trace.events()) == 1
        with backends.preferred("conv", "reference"), backends.preferred("scan", "reference"):
            torch.testing.assert_close(fused, call(x), rtol=1e-5, atol=1e-5)
        leaf = x.clone().requires_grad_()
        call(leaf).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
