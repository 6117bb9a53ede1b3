"""Time ssd_scan, forward and backward, next to mamba-ssm's Triton SSD where it can be imported.

    python kernels/bench/ssd.py [--peer] [--out ssd.csv]

The kernels are first compared with the plain PyTorch reference in fp64; nothing is timed if that fails. Times are the
GPU's alone: replays of a CUDA graph. "floor" is the time in which the bytes of inputs and outputs are read and written
once at the copy bandwidth of the same run. --peer times mamba_ssm's mamba_chunk_scan_combined on the same data. It
needs `mamba_ssm` (its Python files suffice) and einops on the path. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, not installed

import torch
import triton
from conv_norm import copy_bandwidth
from measuring import commit
from torch import Tensor

from dnamamba_kernels import ssd_scan
from dnamamba_kernels.speed import replay_ms
from dnamamba_kernels.ssd.protocol import SSDArguments
from dnamamba_kernels.ssd.reference import BACKEND as REFERENCE
from dnamamba_kernels.ssd.triton import BACKEND as SSD

SHAPES = [  # batch, length, heads, head, state
    (8, 1 << 15, 4, 64, 16), (1, 1 << 20, 4, 64, 16), (8, 1 << 15, 4, 64, 128), (1, 1 << 20, 4, 64, 128),
    (8, 1 << 15, 16, 64, 64), (1, 1 << 14, 8, 64, 16), (256, 1 << 10, 4, 64, 16),
]  # fmt: skip
TOLERANCE = 5e-3  # relative norm, bf16 against fp64
REPEATS = 10


class Row(NamedTuple):
    """One shape; milliseconds of the forward pass, and of forward and backward."""

    shape: str
    forward_ms: float
    both_ms: float
    forward_floor_ms: float
    both_floor_ms: float
    peer_forward_ms: float = float("nan")
    peer_both_ms: float = float("nan")


def draw(batch: int, length: int, heads: int, head: int, state: int) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D, dt_bias as of an untrained Mamba-2; x, B and C are parts of one tensor, as in the model."""
    channels = heads * head
    inside = torch.randn(batch, length, channels + 2 * state, device="cuda", dtype=torch.bfloat16)
    x, B, C = inside.split([channels, state, state], dim=-1)
    dt = torch.randn(batch, length, heads, device="cuda", dtype=torch.bfloat16)
    A = -torch.empty(heads, device="cuda").uniform_(1, 16)
    step = torch.empty(heads, device="cuda").uniform_(-6.9, -2.3).exp()
    bias = step + torch.log(-torch.expm1(-step))
    D = torch.ones(heads, device="cuda")
    return x.unflatten(-1, (heads, head)), dt, A, B[:, :, None], C[:, :, None], D, bias


def ours(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    delta = torch.nn.functional.softplus(dt.float() + bias)
    return ssd_scan(x, delta * A, delta, B, C, D=D)[0]


def peer(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(x, dt, A, B, C, 256, D=D, dt_bias=bias, dt_softplus=True)


def times(function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of both passes."""
    leaves = [each.detach().requires_grad_() for each in tensors]
    dy = torch.randn(tensors[0].shape, device="cuda", dtype=torch.bfloat16)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*tensors)

    def both() -> object:
        return torch.autograd.grad(function(*leaves), leaves, dy)

    return replay_ms(forward, REPEATS), replay_ms(both, REPEATS)


def check() -> None:
    """Compare values and gradients with the reference; SystemExit on the first that is off."""
    torch.manual_seed(0)
    for state in (16, 128):
        x, dt, A, B, C, D, bias = draw(2, 3001, 4, 64, state)
        delta = torch.nn.functional.softplus(dt.float() + bias)
        initial = torch.randn(2, 4, 64, state, device="cuda")
        ids = (torch.rand(2, 3001, device="cuda") < 0.01).cumsum(1).int()
        a = SSDArguments(x, delta * A, delta, B, C, D, initial, ids)
        wide = SSDArguments(*(each if each is ids else each.double() for each in a))
        dy, dfinal = torch.randn(x.shape, device="cuda", dtype=torch.bfloat16), torch.randn_like(initial)
        names = ["y", "final_state", *(f"d{name}" for name in SSDArguments._fields)]
        found = (*SSD.forward(a), *SSD.backward(a, dy, dfinal))
        expected = (*REFERENCE.forward(wide), *REFERENCE.backward(wide, dy.double(), dfinal.double()))
        for name, value, want in zip(names, found, expected, strict=False):
            error = ((value.double() - want).norm() / want.norm()).item()
            if not error <= TOLERANCE:
                raise SystemExit(f"wrong result, nothing timed: {name}: relative error {error:.2e} above {TOLERANCE}")
        again = SSD.backward(a, dy, dfinal)
        if not all(torch.equal(one, other) for one, other in zip(found[2:], again, strict=True)):
            raise SystemExit("wrong result, nothing timed: not the same bits twice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ssd.csv"), help="CSV to write")
    parser.add_argument("--peer", action="store_true", help="time mamba-ssm's, too")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only so many of the shapes")
    arguments = parser.parse_args()
    check()
    bandwidth = copy_bandwidth()
    where = [torch.cuda.get_device_name(), torch.__version__, triton.__version__, commit(), f"{bandwidth / 1e12:.3f}"]
    print(f"{where[0]}, torch {where[1]}, triton {where[2]}, copy {where[4]} TB/s; results agree with the reference")
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Row._fields, "gpu", "torch", "triton", "commit", "copy_TB_s"])
        for shape in SHAPES[: arguments.shapes]:
            batch, length, heads, head, state = shape
            tensors = draw(*shape)
            channels, maps, steps = heads * head * 2, 4 * state, 8 * heads
            floor = batch * length * (2 * channels + maps + steps) / bandwidth * 1e3
            back = batch * length * (3 * channels + 2 * maps + 2 * steps) / bandwidth * 1e3
            row = Row(" x ".join(map(str, shape)), *times(ours, tensors), floor, floor + back)
            if arguments.peer:
                row = Row(*row[:5], *times(peer, tensors))
            torch.cuda.empty_cache()
            writer.writerow([row.shape, *(f"{value:.4f}" for value in row[1:]), *where])
            print(
                f"{row.shape:28} forward {row.forward_ms:7.3f} ms (x{row.forward_ms / row.forward_floor_ms:4.1f} floor)"
                f"  both {row.both_ms:7.3f} (x{row.both_ms / row.both_floor_ms:4.1f})"
                f"  mamba-ssm {row.peer_forward_ms:7.3f} {row.peer_both_ms:7.3f}"
                f"  ratio {row.peer_forward_ms / row.forward_ms:5.2f} {row.peer_both_ms / row.both_ms:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
