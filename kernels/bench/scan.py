"""The selective scan on a GPU: checked, then timed, with mamba-ssm's figures and the chip's ceilings.

    python kernels/bench/scan.py --backends cuda triton --out results/scan

Every backend is first compared with the fp64 reference (outputs and all gradients, odd lengths); one that is wrong is
not timed. Writes scan.csv (GPU, versions, commit) and scan.png into --out and prints a table last. Times are medians of
CUDA events around replays of the captured call, that is of the GPU's work without Python's.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from measuring import commit
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnamamba_kernels import backends, selective_scan
from dnamamba_kernels.scan.selective_scan import scan_backward_op, scan_op
from dnamamba_kernels.speed import replay_ms

STATE = 16


class Case(NamedTuple):
    """A shape with mamba-ssm 2.3.2's times on an H100 (bf16, gate, skip, bias, softplus) and our targets, in ms."""

    batch: int
    channels: int
    length: int
    mamba_forward: float | None
    mamba_backward: float | None
    target_forward: float | None
    target_backward: float | None


CASES = (
    Case(1, 512, 1_048_576, 11.71, 60.5, 4.7, 15.0),
    Case(1, 256, 1_048_576, 10.06, 26.3, 2.5, 7.5),
    Case(1, 512, 131_072, 1.49, 7.43, 0.65, 2.0),
    Case(1, 256, 131_072, 1.31, 3.19, 0.36, 1.0),
    Case(1, 512, 16_384, 0.198, 0.99, 0.10, 0.30),
    Case(8, 512, 16_384, 1.43, 5.12, 0.60, 2.0),
    Case(32, 512, 1_024, 0.295, 1.22, 0.20, 0.60),
    Case(1, 1536, 131_072, 4.52, 15.8, 1.9, 6.0),
    Case(8, 2048, 2_048, 0.595, 2.44, None, None),
)
ODD = (Case(1, 512, 131_071, None, None, 0.65, 2.0), Case(1, 512, 1_048_575, None, None, 4.7, 15.0))
CEILING_FORWARD = 0.25  # ps an element: one exp2 on the special-function unit
CEILING_BACKWARD = 1.0  # ps an element, about: two to three exp2 and 13 FMAs, and the sums over channels
DIRECTIONS = "forward", "inference", "backward"
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 5e-3}  # relative norm of the error


def arguments(batch: int, length: int, channels: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """What a Mamba layer gives the scan at first: Δ about 1e-3 to 0.1, A = −1 … −16, x and z halves of one tensor."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=dtype)

    xz = normal(batch, length, 2 * channels)
    step = torch.exp(torch.rand(channels, generator=generator, device="cuda") * 4.6 - 6.9)
    return {
        "x": xz[..., :channels],
        "dt": normal(batch, length, channels).mul_(0.5),
        "A": -torch.arange(1, STATE + 1, device="cuda", dtype=torch.float32).repeat(channels, 1),
        "B": normal(batch, length, STATE),
        "C": normal(batch, length, STATE),
        "D": torch.ones(channels, device="cuda"),
        "z": xz[..., channels:],
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }


def with_gradients(tensors: dict[str, Tensor], backend: str, dy: Tensor) -> dict[str, Tensor]:
    """y and the gradient of every argument."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    y, _ = selective_scan(**leaves, backend=backend)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **{f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}}


def check(backend: str) -> None:
    """Raise ValueError if an output or gradient is farther from the fp64 reference than its dtype allows."""
    for (dtype, limit), length in itertools.product(LIMITS.items(), (515, 4099)):
        tensors = arguments(2, length, 96, dtype)
        dy = torch.randn_like(tensors["x"])
        want = with_gradients({k: v.double() for k, v in tensors.items()}, "reference", dy.double())
        got = with_gradients(tensors, backend, dy)
        for name, value in want.items():
            error = ((got[name].double() - value).norm() / value.norm()).item()
            if not error <= limit:
                raise ValueError(f"{backend} {dtype}: {name} is off by {error:.1e} (limit {limit:.0e}); not timed")


def time_case(case: Case, backend: str, dtype: torch.dtype, repeats: int) -> tuple[float, float, float]:
    """Forward, forward without the states for a backward pass, and backward of a shape in ms."""
    tensors = arguments(case.batch, case.length, case.channels, dtype)
    inputs = [tensors[name] for name in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    inputs[3:5] = [rows.unsqueeze(2) for rows in inputs[3:5]]
    switches = True, False, False
    forward = replay_ms(lambda: scan_op(*inputs, None, None, *switches, True, backend), repeats)
    inference = replay_ms(lambda: scan_op(*inputs, None, None, *switches, False, backend), repeats)
    y, _, states = scan_op(*inputs, None, None, *switches, True, backend)
    dy = torch.randn_like(y)
    backward = replay_ms(lambda: scan_backward_op(dy, None, *inputs, None, states, *switches, backend), repeats)
    return forward, inference, backward


def rows_for(case: Case, backend: str, dtype: torch.dtype, repeats: int) -> list[dict[str, object]]:
    """One row a direction: times, ps an element and ratios."""
    elements = case.batch * case.length * case.channels * STATE
    measured = time_case(case, backend, dtype, repeats)
    rows: list[dict[str, object]] = []
    for direction, ms, mamba, target, ceiling in zip(
        DIRECTIONS,
        measured,
        (case.mamba_forward, case.mamba_forward, case.mamba_backward),
        (case.target_forward, case.target_forward, case.target_backward),
        (CEILING_FORWARD, CEILING_FORWARD, CEILING_BACKWARD),
        strict=True,
    ):
        ps = ms * 1e9 / elements
        rows.append(
            {
                "backend": backend,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": case.batch,
                "channels": case.channels,
                "length": case.length,
                "direction": direction,
                "ms": round(ms, 4),
                "ps_per_element": round(ps, 3),
                "target_ms": target,
                "faster_than_mamba_ssm": None if mamba is None else round(mamba / ms, 2),
                "times_ceiling": round(ps / ceiling, 2),
            }
        )
    return rows


def conditions() -> dict[str, str]:
    """What a time depends on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
    }


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """ps an element for every shape and backend, with the ceilings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    for axis, direction, ceiling in zip(
        axes, ("forward", "backward"), (CEILING_FORWARD, CEILING_BACKWARD), strict=True
    ):
        mine = [row for row in rows if row["direction"] == direction and row["faster_than_mamba_ssm"]]
        shapes = list(dict.fromkeys((row["batch"], row["channels"], row["length"]) for row in mine))
        names = list(dict.fromkeys(row["backend"] for row in mine))
        width = 0.8 / (len(names) + 1)
        by_key = {(row["backend"], row["batch"], row["channels"], row["length"]): row for row in mine}
        for i, name in enumerate([*names, "mamba-ssm"]):
            heights = []
            for shape in shapes:
                row = by_key.get((name if name in names else names[0], *shape))
                ps = float(row["ps_per_element"]) if row else 0.0  # type: ignore[arg-type]
                heights.append(ps if name in names or row is None else ps * float(row["faster_than_mamba_ssm"]))  # type: ignore[arg-type]
            axis.bar([k + i * width for k in range(len(shapes))], heights, width, label=name)
        axis.axhline(ceiling, color="black", linewidth=0.8, label="ceiling")
        axis.set_xticks(range(len(shapes)), [f"{b}×{d}\n{n:,}" for b, d, n in shapes], fontsize=7)
        axis.set_title(f"{direction}: ps an element (batch × channels, length)")
        axis.set_ylim(top=1.25 * axis.get_ylim()[1])
        axis.legend(ncols=4, loc="upper center")
    figure.savefig(path, dpi=120)


def table(rows: list[dict[str, object]]) -> str:
    """One line a shape and backend: ms (target), both ways."""
    lines = [f"{'backend':8} {'batch, channels, length':>24} {'forward':>16} {'inference':>10} {'backward':>16}"]
    for _, group in itertools.groupby(rows, key=lambda r: (r["backend"], r["batch"], r["channels"], r["length"])):
        shape = list(group)
        forward, inference, backward = shape
        where = f"{forward['batch']}, {forward['channels']}, {forward['length']:,}"
        both = [f"{row['ms']:.3f} ({row['target_ms'] or '-'})" for row in (forward, backward)]
        ms = f"{inference['ms']:.3f}"
        lines.append(f"{forward['backend']:8} {where:>24} {both[0]:>16} {ms:>10} {both[1]:>16}")
    return "\n".join(lines)


def main() -> None:
    """Check and time the backends of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"], choices=sorted(backends.NAMES))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each shape")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of scan.csv and scan.png")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("scan.py: no CUDA device here; this benchmark times GPU kernels only")
    given.out.mkdir(parents=True, exist_ok=True)
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ")
    rows: list[dict[str, object]] = []
    for backend in given.backends:
        try:
            check(backend)
        except ValueError as error:
            print(f"FAILED: {error}")
            continue
        for case in (*CASES, *ODD):
            rows += rows_for(case, backend, getattr(torch, given.dtype), given.repeats)
            torch.cuda.empty_cache()
    if not rows:
        sys.exit("scan.py: no backend passed the check")
    with (given.out / "scan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    draw(rows, given.out / "scan.png")
    print(table(rows))


if __name__ == "__main__":
    main()
