"""Time causal_conv1d and rms_norm, forward and backward, against the time that their bytes need.

    python kernels/bench/conv_norm.py [--out conv_norm.csv]

The kernels are first compared with the plain PyTorch reference in fp64; nothing is timed if that fails. The floor of
a row is its bytes (each input read once, each output written once) over the copy bandwidth measured in the same run;
next to it is the time in which torch copies as many bytes, which for small tensors is far above the floor. Times are
the GPU's alone: replays of a CUDA graph of calls on as many sets of tensors as do not fit the L2 cache, a call's share.
Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, not installed

import torch
import triton
from measuring import commit

from dnamamba_kernels.conv.protocol import ConvArguments
from dnamamba_kernels.conv.reference import BACKEND as REFERENCE_CONV
from dnamamba_kernels.conv.triton import BACKEND as CONV
from dnamamba_kernels.norm.reference import BACKEND as REFERENCE_NORM
from dnamamba_kernels.norm.triton import BACKEND as NORM
from dnamamba_kernels.speed import replay_ms

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
L2_BYTES = 200_000_000  # more than four times the L2 cache of an H100
REPEATS = 18


class Row(NamedTuple):
    """One timing; bytes count every tensor once, ratio is time over floor."""

    kernel: str
    shape: str
    ms: float
    floor_ms: float
    ratio: float
    copy_ms: float


def median_ms(make: Callable[[], Callable[[], object]], count: int) -> float:
    """Median milliseconds of a call of `count` bytes; `make` returns one with tensors of its own."""
    runs = [make() for _ in range(min(32, -(-L2_BYTES // count)))]
    return replay_ms(lambda: [run() for run in runs], REPEATS) / len(runs)


def copy_ms(count: int) -> float:
    """Milliseconds in which torch copies count / 2 bytes, that is, moves `count`."""

    def make() -> Callable[[], object]:
        source = torch.zeros(count // 2, device="cuda", dtype=torch.uint8)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return median_ms(make, count)


def copy_bandwidth() -> float:
    """Bytes a second, read plus written, of a large copy on the device; not in a graph, whose copies are slower."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    ms = triton.testing.do_bench(lambda: target.copy_(source), warmup=10, rep=60, return_mode="median")
    return 2 * source.nbytes / (ms * 1e-3)


def check() -> None:
    """Compare values and gradients with the reference; SystemExit on the first that is off."""
    torch.manual_seed(0)
    x, dy = (torch.randn(2, 3001, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weight, bias = torch.randn(512, 4, device="cuda"), torch.randn(512, device="cuda")
    a = ConvArguments(x, weight, bias, None, None, "silu", False)
    wide = a._replace(x=x.double(), weight=weight.double(), bias=bias.double())
    dfinal = torch.randn(2, 3, 512, device="cuda", dtype=torch.bfloat16)
    exact = REFERENCE_CONV.backward(wide, dy.double(), dfinal.double())
    pairs = [(CONV.forward(a), REFERENCE_CONV.forward(wide)), (CONV.backward(a, dy, dfinal), exact)]
    rows, scale = x[0].contiguous(), torch.randn(512, device="cuda")
    residual = torch.randn(3001, 512, device="cuda")
    found = NORM.forward(rows, scale, residual, 1e-5, torch.float32)
    pairs.append((found, REFERENCE_NORM.forward(rows.double(), scale.double(), residual.double(), 1e-5, torch.float64)))
    arguments = (dy[0].contiguous(), residual, found[1], scale, found[2])
    exact = REFERENCE_NORM.backward(*(t.double() for t in arguments), torch.float64, torch.float64)
    pairs.append((NORM.backward(*arguments, torch.bfloat16, torch.float32), exact))
    for values, expected in pairs:
        for value, want in zip(values, expected, strict=True):
            error = ((value.double() - want).norm() / want.norm()).item()
            if not error <= TOLERANCE:
                raise SystemExit(f"wrong result, nothing timed: relative error {error:.2e} above {TOLERANCE}")


def conv_rows(bandwidth: float) -> Iterator[Row]:
    """bf16, width 4, bias, SiLU; x is the left half of a projection's output, as in the model."""
    for batch, channels, length in CONV_SHAPES:
        weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
        rest = (weight, bias, None, None, "silu", False)

        def inputs(size: tuple[int, int, int] = (batch, length, channels)) -> torch.Tensor:
            return torch.randn(*size[:2], 2 * size[2], device="cuda", dtype=torch.bfloat16)[..., : size[2]]

        def forward(inputs=inputs, rest=rest) -> Callable[[], object]:
            a = ConvArguments(inputs(), *rest)
            return lambda: CONV.forward(a)

        def backward(inputs=inputs, rest=rest) -> Callable[[], object]:
            a = ConvArguments(inputs(), *rest)
            dy = torch.randn_like(a.x, memory_format=torch.contiguous_format)
            return lambda: CONV.backward(a, dy, None)

        shape, tensor = f"{batch} x {channels} x {length}", 2 * batch * channels * length
        yield row("conv forward", shape, forward, 2 * tensor, bandwidth)
        yield row("conv backward", shape, backward, 3 * tensor, bandwidth)


def norm_rows(bandwidth: float) -> Iterator[Row]:
    """bf16 activations; the residual stream in fp32 and in bf16."""
    for rows, width in NORM_SHAPES:
        weight = torch.randn(width, device="cuda")
        for dtype in (torch.float32, torch.bfloat16):

            def inputs(size=(rows, width), dtype=dtype) -> tuple[torch.Tensor, torch.Tensor]:
                x = torch.randn(size, device="cuda", dtype=torch.bfloat16)
                return x, torch.randn(size, device="cuda", dtype=dtype)

            def forward(inputs=inputs, weight=weight, dtype=dtype) -> Callable[[], object]:
                x, residual = inputs()
                return lambda: NORM.forward(x, weight, residual, 1e-5, dtype)

            def backward(inputs=inputs, weight=weight, dtype=dtype) -> Callable[[], object]:
                x, residual = inputs()
                _, total, rstd = NORM.forward(x, weight, residual, 1e-5, dtype)
                twice = None if dtype == x.dtype else dtype
                return lambda: NORM.backward(x, residual, total, weight, rstd, x.dtype, twice)

            shape, elements = f"{rows} x {width} residual {str(dtype)[6:]}", rows * width
            other = 4 if dtype == torch.float32 else 2
            yield row("norm forward", shape, forward, elements * (4 + 2 * other) + 4 * rows, bandwidth)
            written = 2 if other == 2 else 2 + other
            yield row("norm backward", shape, backward, elements * (2 + 2 * other + written) + 4 * rows, bandwidth)


def row(kernel: str, shape: str, make: Callable[[], Callable[[], object]], count: int, bandwidth: float) -> Row:
    """Time a call whose tensors have ``count`` bytes."""
    ms, floor = median_ms(make, count), count / bandwidth * 1e3
    torch.cuda.empty_cache()
    return Row(kernel, shape, ms, floor, ms / floor, copy_ms(count))


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
                figures = f"{r.ms:.4f}", f"{r.floor_ms:.4f}", f"{r.ratio:.3f}", f"{r.copy_ms:.4f}"
                writer.writerow([r.kernel, r.shape, *figures, *where])
                mark = "" if r.ratio <= LIMIT else f"  above {LIMIT}"
                print(
                    f"{r.kernel:14} {r.shape:34} {r.ms:8.4f} ms  floor {r.floor_ms:8.4f}  x{r.ratio:.2f}  "
                    f"copy {r.copy_ms:8.4f}{mark}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
