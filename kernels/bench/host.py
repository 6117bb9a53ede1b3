"""Microseconds of Python a call of each kernel: what binds where sequences are short and models narrow.

    python kernels/bench/host.py

Calls so small that the GPU waits for the host, many in a row; the best of five rounds. Needs a CUDA device.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnamamba_kernels import causal_conv1d, rms_norm, selective_scan

CALLS = 200


def microseconds(call: Callable[[], object]) -> float:
    """Wall-clock time of a call, its launches queued but not waited for."""
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - began)
    return best / CALLS * 1e6


def kernels() -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Each kernel on one layer's tensors, length 64, and those of them that get gradients."""
    channels, state = 256, 16

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    xz, x, dt, maps = (normal(1, 64, n) for n in (2 * channels, channels, channels, 2 * state))
    A, D, bias = -torch.rand(channels, state, device="cuda"), *(normal(channels, dtype=torch.float32) for _ in range(2))
    weight = normal(channels, 4, dtype=torch.float32)
    hidden, residual = normal(1, 64, 128), normal(1, 64, 128, dtype=torch.float32)
    scale = normal(128, dtype=torch.float32)

    def scan() -> Tensor:
        B, C, z = maps[..., :state], maps[..., state:], xz[..., channels:]
        return selective_scan(x, dt, A, B, C, D=D, z=z, dt_bias=bias)[0]

    return {
        "scan": (scan, [xz, x, dt, maps, A, D, bias]),
        "conv": (lambda: causal_conv1d(xz[..., :channels], weight, bias)[0], [xz, weight, bias]),
        "norm": (lambda: rms_norm(hidden, scale, residual=residual)[0], [hidden, residual, scale]),
    }


def main() -> None:
    """Time and print."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; µs of the host a call")
    for name, (call, leaves) in kernels().items():
        with torch.no_grad():
            inference = microseconds(call)
        for leaf in leaves:
            leaf.requires_grad_()
        forward = microseconds(call)
        dy = torch.randn_like(call())
        both = microseconds(lambda call=call, dy=dy, leaves=leaves: torch.autograd.grad(call(), leaves, dy))
        print(f"{name}: inference {inference:4.0f}, forward {forward:4.0f}, forward and backward {both:4.0f}")


if __name__ == "__main__":
    main()
