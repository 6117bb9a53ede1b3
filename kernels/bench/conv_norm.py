"""Time causal_conv1d and rms_norm, forward and backward, against the time that their bytes need.

    python kernels/bench/conv_norm.py [--out conv_norm.csv]

The kernels are first compared with the plain PyTorch reference in fp64; nothing is timed if that fails. The floor of
a row is its bytes (each input read once, each output written once) over the copy bandwidth measured in the same run.
Times are medians of CUDA-event timings with the L2 cache cleared before each run. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, not installed

import torch
import triton

from dnamamba_kernels.gpu_triton import conv, norm
from dnamamba_kernels.reference import conv as reference_conv
from dnamamba_kernels.reference import norm as reference_norm

CONV_SHAPES = [  # batch, channels, length
    (1, 512, 1 << 20), (1, 512, (1 << 20) - 1), (1, 256, 1 << 20), (1, 512, 1 << 17), (1, 256, 1 << 17),
    (1, 512, 1 << 14), (8, 512, 1 << 14), (32, 512, 1 << 10), (1, 1536, 1 << 17),
]  # fmt: skip
NORM_SHAPES = [
    (1 << 20, 64),
    (1 << 20, 128),
    (1 << 20, 256),
    (1 << 19, 512),
    (1 << 18, 1024),
    (1 << 14, 256),
]  # rows, d_model
LIMIT = 1.3
TOLERANCE = 5e-3  # relative norm, bf16 against fp64


class Row(NamedTuple):
    """One timing; bytes count every tensor once, ratio is time over floor."""

    kernel: str
    shape: str
    ms: float
    floor_ms: float
    ratio: float


def median_ms(run: Callable[[], object]) -> float:
    """Median milliseconds of a call."""
    return triton.testing.do_bench(run, warmup=10, rep=60, return_mode="median")


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a large copy on the device."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source)) * 1e-3)


def check() -> None:
    """Compare values and gradients with the reference; SystemExit on the first that is off."""
    torch.manual_seed(0)
    x, dy = (torch.randn(2, 3001, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weight, bias = torch.randn(512, 4, device="cuda"), torch.randn(512, device="cuda")
    flags = (None, None, "silu", False)
    pairs = [
        (
            conv.conv_forward(x, weight, bias, *flags),
            reference_conv.conv_forward(x.double(), weight.double(), bias.double(), *flags),
        )
    ]
    dfinal = torch.randn(2, 3, 512, device="cuda", dtype=torch.bfloat16)
    wide = (t.double() for t in (dy, dfinal, x, weight, bias))
    pairs.append((conv.conv_backward(dy, dfinal, x, weight, bias, *flags), reference_conv.conv_backward(*wide, *flags)))
    rows, scale = x[0].contiguous(), torch.randn(512, device="cuda")
    residual = torch.randn(3001, 512, device="cuda")
    found = norm.norm_forward(rows, scale, residual, 1e-5, torch.float32)
    pairs.append(
        (found, reference_norm.norm_forward(rows.double(), scale.double(), residual.double(), 1e-5, torch.float64))
    )
    arguments = (dy[0].contiguous(), residual, found[1], scale, found[2])
    exact = reference_norm.norm_backward(*(t.double() for t in arguments), torch.float64, torch.float64)
    pairs.append((norm.norm_backward(*arguments, torch.bfloat16, torch.float32), exact))
    for values, expected in pairs:
        for value, want in zip(values, expected, strict=True):
            error = ((value.double() - want).norm() / want.norm()).item()
            if not error <= TOLERANCE:
                raise SystemExit(f"wrong result, nothing timed: relative error {error:.2e} above {TOLERANCE}")


def conv_rows(bandwidth: float) -> Iterator[Row]:
    """bf16, width 4, bias, SiLU; x is the left half of a projection's output, as in the model."""
    for batch, channels, length in CONV_SHAPES:
        x = torch.randn(batch, length, 2 * channels, device="cuda", dtype=torch.bfloat16)[..., :channels]
        dy = torch.randn(batch, length, channels, device="cuda", dtype=torch.bfloat16)
        weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
        arguments = (x, weight, bias, None, None, "silu", False)
        shape = f"{batch} x {channels} x {length}"
        yield row("conv forward", shape, lambda a=arguments: conv.conv_forward(*a), 2 * dy.nbytes, bandwidth)
        yield row(
            "conv backward", shape, lambda a=arguments, g=dy: conv.conv_backward(g, None, *a), 3 * dy.nbytes, bandwidth
        )


def norm_rows(bandwidth: float) -> Iterator[Row]:
    """bf16 activations; the residual stream in fp32 and in bf16."""
    for rows, width in NORM_SHAPES:
        for residual_dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
            residual = torch.randn(rows, width, device="cuda", dtype=residual_dtype)
            weight = torch.randn(width, device="cuda")
            forward = (x, weight, residual, 1e-5, residual_dtype)
            _, total, rstd = norm.norm_forward(*forward)
            twice = None if residual_dtype == x.dtype else residual_dtype
            backward = (x, residual, total, weight, rstd, x.dtype, twice)
            shape = f"{rows} x {width} residual {str(residual_dtype)[6:]}"
            forward_bytes = 2 * x.nbytes + 2 * residual.nbytes + rstd.nbytes
            backward_bytes = 2 * x.nbytes + (2 if twice is None else 3) * residual.nbytes + rstd.nbytes
            yield row("norm forward", shape, lambda a=forward: norm.norm_forward(*a), forward_bytes, bandwidth)
            yield row("norm backward", shape, lambda a=backward: norm.norm_backward(*a), backward_bytes, bandwidth)


def row(kernel: str, shape: str, run: Callable[[], object], count: int, bandwidth: float) -> Row:
    """Time one call whose tensors have ``count`` bytes."""
    ms, floor = median_ms(run), count / bandwidth * 1e3
    return Row(kernel, shape, ms, floor, ms / floor)


def commit() -> str:
    """The checkout's commit, or "unknown"."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("conv_norm.csv"), help="CSV to write")
    out = parser.parse_args().out
    check()
    bandwidth = copy_bandwidth()
    where = [torch.cuda.get_device_name(), torch.__version__, triton.__version__, commit(), f"{bandwidth / 1e12:.3f}"]
    print(f"{where[0]}, torch {where[1]}, triton {where[2]}, copy {where[4]} TB/s; results agree with the reference")
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "gpu", "torch", "triton", "commit", "copy_TB_s"])
        for rows in (conv_rows(bandwidth), norm_rows(bandwidth)):
            for r in rows:
                writer.writerow([r.kernel, r.shape, f"{r.ms:.4f}", f"{r.floor_ms:.4f}", f"{r.ratio:.3f}", *where])
                mark = "" if r.ratio <= LIMIT else f"  above {LIMIT}"
                print(
                    f"{r.kernel:14} {r.shape:34} {r.ms:8.4f} ms  floor {r.floor_ms:8.4f}  x{r.ratio:.2f}{mark}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
