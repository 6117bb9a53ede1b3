"""Time the CPU scan and plain PyTorch: `python kernels/bench/cpu_scan.py [--compile] [--csv results.csv]`.

First every result and gradient is compared with the fp64 reference on a smaller problem; no timing on a wrong answer.
Then ns per (position, channel, state), forward and forward + backward: the median of some runs, and the CPU seconds
of all threads over the number of threads, which is what a machine that does nothing else would need.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import commit
from torch import Tensor

from dnamamba_kernels import describe, selective_scan

BATCH, LENGTH, CHANNELS, STATE = 1, 65_536, 256, 16
PLAIN_LENGTH = 4_096  # plain PyTorch is timed on less, its time an element being the same
WORST_ERROR = 3e-6  # relative norm against fp64


def problem(length: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors as a Mamba layer makes them: Δ about 0.02, A = −1 … −16, gate, skip, bias."""
    generator = torch.Generator().manual_seed(0)
    rows, maps = (BATCH, length, CHANNELS), (BATCH, length, STATE)
    shapes = {"x": rows, "dt": rows, "B": maps, "C": maps, "z": rows, "D": (CHANNELS,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)
    tensors["dt_bias"] = torch.full((CHANNELS,), -4.0)
    return {name: value.to(dtype).requires_grad_() for name, value in tensors.items()}


def both(tensors: dict[str, Tensor], scan: Callable) -> list[Tensor]:
    """y and the gradients of Σ y² / 2."""
    y, _ = scan(**tensors)
    return [y.detach(), *torch.autograd.grad(y, list(tensors.values()), y.detach())]


def forward(tensors: dict[str, Tensor], scan: Callable) -> None:
    """The scan without a graph."""
    with torch.no_grad():
        scan(**tensors)


def backend(name: str) -> Callable:
    """`selective_scan` on one backend."""
    return lambda **tensors: selective_scan(**tensors, backend=name)


def unrolled(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor, D: Tensor, dt_bias: Tensor) -> tuple:
    """The scan as torch.compile likes it: 16 positions a compiled step."""
    state, ys = torch.zeros(x.shape[0], *A.shape), []
    for rows in zip(*(t.split(16, 1) for t in (x, dt, B, C, z)), strict=True):
        y, state = _compiled_step(*rows, A, D, dt_bias, state)
        ys.append(y)
    return torch.cat(ys, 1), state


@torch.compile(dynamic=False)
def _compiled_step(x, dt, B, C, z, A, D, dt_bias, state):
    delta, ys = torch.nn.functional.softplus(dt + dt_bias), []
    for t in range(x.shape[1]):
        step = delta[:, t, :, None]
        state = torch.exp(step * A) * state + step * B[:, t, None] * x[:, t, :, None]
        ys.append((state * C[:, t, None]).sum(-1))
    return (torch.stack(ys, 1) + D * x) * torch.nn.functional.silu(z), state


def check() -> None:
    """Raise AssertionError if any result of the fast scan is off."""
    exact = both(problem(1_000, torch.float64), backend("reference"))
    found = both(problem(1_000), backend("cpu"))
    for index, (a, b) in enumerate(zip(found, exact, strict=True)):
        error = ((a - b).norm() / b.norm()).item()
        assert error <= WORST_ERROR, f"result {index}: relative error {error:.1e}"


def measure(run: Callable, elements: int, repeats: int) -> tuple[float, float]:
    """(median wall, least CPU time over threads) in ns an element, after one run to warm up."""
    run()
    wall, cpu = [], []
    for _ in range(repeats):
        starts = time.perf_counter(), time.process_time()
        run()
        wall.append((time.perf_counter() - starts[0]) / elements * 1e9)
        cpu.append((time.process_time() - starts[1]) / elements * 1e9 / torch.get_num_threads())
    return statistics.median(wall), min(cpu)


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="time torch.compile too (minutes)")
    parser.add_argument("--csv", type=Path, help="file for the results")
    arguments = parser.parse_args()

    start = time.perf_counter()
    check()
    print(f"correct; first forward and backward took {time.perf_counter() - start:.1f} s, compilation included")
    print(f"{describe('cpu')}; load {os.getloadavg()[0]:.1f}; batch {BATCH}, channels {CHANNELS}, state {STATE}, fp32")
    methods = {"cpu": (backend("cpu"), LENGTH, 5), "reference": (backend("reference"), PLAIN_LENGTH, 3)}
    if arguments.compile:
        methods["torch.compile"] = unrolled, PLAIN_LENGTH, 3
    rows = []
    for name, (scan, length, repeats) in methods.items():
        tensors = problem(length)
        for what, run in (("forward", forward), ("forward + backward", both)):
            wall, cpu = measure(lambda: run(tensors, scan), BATCH * length * CHANNELS * STATE, repeats)  # noqa: B023
            print(f"{name:14} {what:19} length {length:6}: {wall:6.2f} ns an element, {cpu:6.2f} by CPU time")
            rows.append(
                {
                    "method": name,
                    "pass": what,
                    "length": length,
                    "wall_ns": round(wall, 3),
                    "cpu_ns": round(cpu, 3),
                    "threads": torch.get_num_threads(),
                    "load": os.getloadavg()[0],
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                    "commit": commit(),
                }
            )
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
