"""S4D's three ways, its convolution, its scan and its recurrence: forward and backward passes at growing lengths.

    python pipelines/s4d_ways.py [--lengths 1024 32768 …] [--out s4d_ways.csv] [--accelerator gpu]

262 144 positions of 256 channels and 16 numbers of state, as preset 1.4m has them, in bf16 as they come in training;
real and complex states. Complex states are scanned in chunks of 64 positions by the host's loop, and the recurrence is
a loop over positions: both are timed where that is at most `--loops` turns. First the values and gradients of all three
are compared in fp32 at 1 000 positions: nothing is timed of ways that differ.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measured import conditions, median_ms, write_rows
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.diagonal import CHUNK, DiagonalSSM

LENGTHS = (1_024, 4_096, 32_768, 131_072, 1_048_576)
POSITIONS = 262_144
TOLERANCE = 1e-4
"""Of values and gradients in fp32, relative to the largest one"""
COLUMNS = ("states", "way", "batch", "length", "forward_ms", "both_ms", "peak_gib")
Way = Callable[[Tensor], Tensor]


def ways(ssm: DiagonalSSM) -> dict[str, Way]:
    """x (batch, length, channels) → y of the same shape, from a state of zeros."""

    def recurrence(x: Tensor) -> Tensor:
        state, parts = ssm.init_state(len(x)), []
        for position in x.unbind(1):
            y, state = ssm.step(position, state)
            parts.append(y)
        return torch.stack(parts, 1)

    return {"convolution": lambda x: ssm.convolve(x)[0], "scan": lambda x: ssm.scan(x)[0], "recurrence": recurrence}


def turns(way: str, is_real: bool, length: int) -> int:
    """Of the host's loop."""
    if way == "recurrence":
        return length
    return 1 if way == "convolution" or is_real else -(-length // CHUNK)


def passes(way: Way, ssm: DiagonalSSM, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """y, and the gradients of x and of all parameters."""
    x = x.detach().requires_grad_()
    y = way(x)
    return (y, *torch.autograd.grad((y * weight).sum(), [x, *ssm.parameters()]))


def largest_difference(ssm: DiagonalSSM, device: str) -> float:
    x, weight = (torch.randn(2, 1_000, len(ssm.D), device=device) for _ in range(2))
    expected, *others = (passes(way, ssm, x, weight) for way in reversed(ways(ssm).values()))
    return max(
        ((value - wanted).abs().max() / wanted.abs().max()).item()
        for found in others
        for value, wanted in zip(found, expected, strict=True)
    )


def measure(way: Way, ssm: DiagonalSSM, batch: int, length: int, device: str) -> dict[str, float]:
    x, weight = (torch.randn(batch, length, len(ssm.D), dtype=torch.bfloat16, device=device) for _ in range(2))
    if device == "cpu":
        began = time.perf_counter()
        passes(way, ssm, x, weight)
        return {"both_ms": (time.perf_counter() - began) * 1e3}
    with torch.no_grad():
        forward = median_ms(lambda: way(x), 5)
    torch.cuda.reset_peak_memory_stats()
    both = median_ms(lambda: passes(way, ssm, x, weight), 5)
    return {"forward_ms": forward, "both_ms": both, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--loops", type=int, default=1_024, help="turns of the host's loop at most")
    parser.add_argument("--positions", type=int, default=POSITIONS, help="of a batch, where a length is no longer")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path, help="CSV file to write, after each row")
    arguments = parser.parse_args()
    device = "cuda" if arguments.accelerator == "gpu" else "cpu"
    where = conditions() if device == "cuda" else {}
    print(", ".join(where.values()) or device)
    results: list[dict[str, Any]] = []
    for init in ("real", "lin"):
        torch.manual_seed(0)
        ssm = DiagonalSSM(ModelConfig(mixer="s4d", d_model=128, s4d_init=init)).to(device)
        error = largest_difference(ssm, device)
        print(f"{init}: the three ways differ by {error:.1e}", flush=True)
        if not error <= TOLERANCE:
            raise SystemExit(f"{init}: not the same, not timed")
        for length in arguments.lengths:
            batch = max(arguments.positions // length, 1)
            for name, way in ways(ssm).items():
                if turns(name, init == "real", length) > arguments.loops:
                    continue
                row: dict[str, Any] = dict.fromkeys(COLUMNS, float("nan"))
                row |= {"states": init, "way": name, "batch": batch, "length": length}
                try:
                    row |= measure(way, ssm, batch, length, device)
                except torch.cuda.OutOfMemoryError:
                    print(f"{init} {name} {batch} x {length}: out of memory", flush=True)
                results.append(row | where)
                print("{states:5} {way:12} {batch:4d} x {length:9,d}  forward {forward_ms:8.2f} ms, both passes "
                      "{both_ms:8.2f} ms, peak {peak_gib:.1f} GiB".format(**row), flush=True)  # fmt: skip
                if arguments.out:
                    write_rows(results, arguments.out)


if __name__ == "__main__":
    main()
