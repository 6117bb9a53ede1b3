"""Are tensors of more than 2³¹ and 2³² elements computed right? Ours and, with --peer, mamba-ssm's and causal-conv1d's.

    python kernels/bench/long_offsets.py [--peer] [--out long_offsets.csv]

One sequence as long as it takes, 512 channels (norm: d_model 512), bf16, forward and backward: scan, causal convolution
of width 4, RMSNorm, in mamba-ssm's layouts. Its first and last 65 536 positions, of all channels, are compared with the
same positions of two short sequences: both ends with 8 192 positions more, which the states have forgotten by far.
Errors are relative norms, the largest of y and the gradients. Each implementation runs in a process of its own, which
continues with the next operator where one ended it. Needs a GPU with 90 GiB.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CHANNELS, ENDS, MORE = 512, 65_536, 8_192
SIZES = (2**31, 2**32)
LENGTHS = tuple(size // CHANNELS + 128 * 1024 for size in SIZES)
"""Even, as mamba-ssm's scan is slow of odd rows"""
IMPLEMENTATIONS = "ours", "peer"
DEVICE = "cuda"


class Case(NamedTuple):
    """Tensors as long as the sequence, and what is computed of them."""

    shapes: list[tuple[int, ...]]
    """Of one position"""
    axis: int
    """Where the positions stand"""
    function: Callable[..., Tensor]


def scan(which: str) -> Case:
    if which == "ours":
        from dnamamba_kernels.compat import selective_scan_fn
    else:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    A = -torch.arange(1.0, 17.0, device=DEVICE).repeat(CHANNELS, 1)

    def function(u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan_fn(u, delta, A, B, C, delta_softplus=True)

    return Case([(CHANNELS,), (CHANNELS,), (16,), (16,)], 2, function)


def convolution(which: str) -> Case:
    taps = torch.linspace(-1, 1, 4 * CHANNELS, device=DEVICE).view(CHANNELS, 4).to(torch.bfloat16)
    if which == "ours":
        from dnamamba_kernels import causal_conv1d

        return Case([(CHANNELS,)], 1, lambda x: causal_conv1d(x, taps)[0])
    from causal_conv1d import causal_conv1d_fn

    return Case([(CHANNELS,)], 2, lambda x: causal_conv1d_fn(x, taps, activation="silu"))


def norm(which: str) -> Case:
    weight = torch.linspace(0.5, 2, CHANNELS, device=DEVICE)
    if which == "ours":
        from dnamamba_kernels import rms_norm

        return Case([(CHANNELS,)], 1, lambda x: rms_norm(x, weight)[0])
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    return Case([(CHANNELS,)], 1, lambda x: rms_norm_fn(x, weight, None, eps=1e-5))


OPERATORS = {"norm": norm, "convolution": convolution, "scan": scan}


def differentiated(case: Case, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """y and the gradients of the inputs."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    y = case.function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def error(case: Case, length: int) -> float:
    """The largest at either end."""
    own = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(1, length, *shape) if case.axis == 1 else (1, *shape, length) for shape in case.shapes]
    *inputs, dy = (
        torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_(generator=own) for shape in (*shapes, shapes[0])
    )
    found = [
        (each.narrow(case.axis, 0, ENDS).clone(), each.narrow(case.axis, length - ENDS, ENDS).clone())
        for each in differentiated(case, inputs, dy)
    ]
    errors = []
    for end, start in enumerate((0, length - ENDS - MORE)):
        short = [each.narrow(case.axis, start, ENDS + MORE).contiguous() for each in (*inputs, dy)]
        expected = differentiated(case, short[:-1], short[-1])
        for whole, part in zip(found, expected, strict=True):
            part = part.narrow(case.axis, 0 if end == 0 else MORE, ENDS).float()
            errors.append((whole[end].float() - part).norm() / part.norm())
    return float(torch.stack(errors).max())  # NaN where one is


def work(which: str, keys: list[tuple[str, int]]) -> None:
    """Prints a line before and after each case."""
    for name, length in keys:
        print(json.dumps([name, length]), flush=True)
        try:
            said = f"{error(OPERATORS[name](which), length):.1e}"
        except Exception as exception:
            if isinstance(exception, torch.OutOfMemoryError) or "CUDA" not in str(exception):
                said = f"{type(exception).__name__}: {str(exception).splitlines()[0]}"
            else:
                raise  # nothing more can be computed in this process
        print(json.dumps([name, length, said]), flush=True)
        torch.cuda.empty_cache()


def error_in(printed: str) -> str:
    """The last line that names one: CUDA's are followed by advice."""
    lines = printed.strip().splitlines() or ["?"]
    return next((line for line in reversed(lines) if "rror: " in line), lines[-1])


def results(which: str) -> list[dict[str, str]]:
    """A row for each operator and length."""
    left = [(name, length) for length in LENGTHS for name in OPERATORS]
    rows = []
    while left:
        command = [sys.executable, __file__, "--work", which, json.dumps(left)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        for name, length, said in [line for line in lines if len(line) == 3]:
            rows.append({"which": which, "operator": name, "elements": str(length * CHANNELS), "error": said})
        ended = [tuple(line) for line in lines if len(line) == 2]
        if done.returncode:
            last = error_in(done.stderr)
            name, length = ended[-1] if ended else left[0]
            rows.append({"which": which, "operator": name, "elements": str(length * CHANNELS), "error": last})
            ended = ended or left[:1]
        left = left[len(ended) :]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="mamba-ssm and causal-conv1d, too")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work[0], json.loads(given.work[1]))
        return
    rows: list[dict[str, str]] = []
    for which in IMPLEMENTATIONS[: 1 + given.peer]:
        for row in results(which):
            print(*row.values(), flush=True)
            rows.append(row)
            if given.out:
                lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in each.values()) for each in rows)]
                given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
