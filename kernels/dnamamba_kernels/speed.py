"""How fast this machine's kernels are, next to the published figures of the same shapes.

On a GPU it is the work of the GPU alone (replays of a CUDA graph), on a CPU the time of the call.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba_kernels.conv.causal_conv1d import causal_conv1d
from dnamamba_kernels.norm.rms_norm import rms_norm
from dnamamba_kernels.scan.selective_scan import selective_scan

REPEATS = 5
STATE = 16
GPU_BYTES = 16 << 30
"""Free memory without which no GPU is timed"""


class Published(NamedTuple):
    """A figure of kernels/README.md."""

    operator: str
    shape: tuple[int, ...]
    """(batch, channels, length); of the norm (positions, d_model)"""
    forward: float
    both: float
    """Forward and backward"""
    unit: str
    machine: str


H100 = "one H100 80GB HBM3, bf16"
PUBLISHED = {
    "cuda": (
        Published("scan", (1, 512, 131_072), 0.674, 0.674 + 1.94, "ms", H100),
        Published("conv", (1, 512, 1_048_576), 0.785, 0.785 + 1.16, "ms", H100),
        Published("norm", (1_048_576, 256), 1.08, 1.08 + 1.52, "ms", H100),
    ),
    # Published at 65,536 positions, with the same time an element.
    "cpu": (Published("scan", (1, 256, 8_192), 0.49, 1.76, "ns an element", "two cores of an AMD EPYC, fp32"),),
}
"""Type of device -> what is published"""


class Timing(NamedTuple):
    """This machine's figures, in the unit of the published ones."""

    published: Published
    forward: float
    both: float


def timings(device: torch.device) -> Iterator[Timing]:
    """Each published figure of a device's type, measured now; none on a GPU with too little free memory."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < GPU_BYTES:
        return
    for published in PUBLISHED.get(device.type, ()):
        call, given = CALLS[published.operator](published.shape, device)
        with torch.no_grad():
            weights = [torch.ones_like(y) for y in call(*given)]
            forward = seconds(partial(call, *given), device)
        leaves = [value.requires_grad_() for value in given]
        both = seconds(partial(_with_gradients, call, leaves, weights), device)
        scale = 1e3 if published.unit == "ms" else 1e9 / (leaves[0].numel() * STATE)
        yield Timing(published, forward * scale, both * scale)


def _with_gradients(call: "Call", leaves: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(call(*leaves), leaves, weights)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a call, the first left out."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return replay_ms(run, REPEATS) / 1e3
    run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def replay_ms(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call's work on the GPU: the call is captured once and its replays are timed by events."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # its outputs live as long as the graph
    times = []
    for _ in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    del kept
    return statistics.median(begin.elapsed_time(end) for begin, end in times[2:])


Call = Callable[..., tuple[Tensor, ...]]


def _scan(shape: tuple[int, ...], device: torch.device) -> tuple[Call, list[Tensor]]:
    """As a Mamba layer calls it at first: Δ about 0.02, A = −1 … −16; skip, gate and bias."""
    batch, channels, length = shape
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x, dt, z = (torch.randn(batch, length, channels, device=device, dtype=dtype) for _ in range(3))
    B, C = (torch.randn(batch, length, STATE, device=device, dtype=dtype) for _ in range(2))
    A = -torch.arange(1.0, STATE + 1, device=device).repeat(channels, 1)
    D, dt_bias = torch.ones(channels, device=device), torch.full((channels,), -4.0, device=device)

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        D, z, dt_bias = rest
        return selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias)[:1]

    return call, [x, dt, A, B, C, D, z, dt_bias]


def _conv(shape: tuple[int, ...], device: torch.device) -> tuple[Call, list[Tensor]]:
    batch, channels, length = shape
    x = torch.randn(batch, length, channels, device=device, dtype=torch.bfloat16)
    weight, bias = torch.randn(channels, 4, device=device), torch.randn(channels, device=device)
    return lambda *given: causal_conv1d(*given)[:1], [x, weight, bias]


def _norm(shape: tuple[int, ...], device: torch.device) -> tuple[Call, list[Tensor]]:
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    residual, weight = torch.randn(shape, device=device), torch.randn(shape[1], device=device)
    return lambda x, weight, residual: rms_norm(x, weight, residual=residual), [x, weight, residual]


CALLS = {"scan": _scan, "conv": _conv, "norm": _norm}
"""Operator -> a call and its differentiable arguments, x first"""
