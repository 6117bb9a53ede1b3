"""Times whole training steps of `python -m dnamamba.pretrain` itself on one GPU: speed, memory, idle time.

    python pipelines/pretrain_step.py GENOME [--shapes 128x256x1024 256x1x1048576 …] [--ways none-on cheap-on …]
        [--out pretrain_step.csv] [--gaps]

A shape is d_model x windows x length, all windows in one pass: 8 layers, expand 2, 16 states, bf16. A way is
--recompute and --cuda_graph. Mtoken/s and peak memory stand in the runs' metrics.csv; `foretold_gib` is what --dry_run
says of the peak; `idle` the share of the time in which the GPU did nothing, by torch's profiler. --gaps prints between
which kernels that was.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measured import Row, conditions, write_rows


class Shape(NamedTuple):
    d_model: int
    windows: int
    length: int

    @property
    def name(self) -> str:
        return "x".join(map(str, self))


class Way(NamedTuple):
    recompute: str
    cuda_graph: str

    @property
    def name(self) -> str:
        return "-".join(self)


SHAPES = (
    Shape(64, 256, 1_024),
    Shape(128, 256, 1_024),
    Shape(128, 8, 32_768),
    Shape(128, 1, 1_048_576),
    Shape(256, 8, 32_768),
    Shape(256, 1, 1_048_576),
    Shape(512, 1, 1_048_576),
)
WAYS = Way("none", "on"), Way("cheap", "on"), Way("all", "on"), Way("none", "off")
ROWS_KEPT = 3
"""Rows of metrics.csv whose median is taken, after the first, in which kernels are compiled and recorded"""
BASES_A_ROW, BASES_TRACED = 4_000_000, 6_000_000
FEWEST = 3
"""Steps of a row or trace"""


def steps_of(shape: Shape, bases: int) -> int:
    return max(bases // (shape.windows * shape.length), FEWEST)


def job_of(shape: Shape, way: Way, genome: Path, folder: Path) -> dict[str, Any]:
    """For `observed_training.py`."""
    name, every, traced = f"{shape.name}-{way.name}", steps_of(shape, BASES_A_ROW), steps_of(shape, BASES_TRACED)
    steps = every * (1 + ROWS_KEPT) + traced + 1
    bases = shape.windows * shape.length
    settings = {
        "genome": [str(genome)],
        "store": str(folder / "genome.dnamamba"),
        "out": str(folder / name),
        "model": {"preset": "7m", "n_layer": 8, "d_model": shape.d_model},
        "length": shape.length,
        "batch_tokens": bases,
        "micro_tokens": bases,
        "max_steps": steps,
        "log_every": every,
        "validation_every": steps,
        "validation_length": min(shape.length, 8192),
        "validation_tokens": 65_536,
        "markov_order": 0,
        "accelerator": "gpu",
        "precision": "bf16",
        "recompute": way.recompute,
        "cuda_graph": way.cuda_graph,
    }
    trace = [steps - traced - 1, traced, str(folder / f"{name}.json")]
    return {"settings": settings, "trace": trace, "output": str(folder / f"{name}.txt")}


def foretelling(shape: Shape, genome: Path, folder: Path) -> dict[str, Any]:
    """The job that prints the peak of each `--recompute`."""
    job = job_of(shape, WAYS[0], genome, folder)
    return {"settings": {**job["settings"], "dry_run": True}, "output": str(folder / f"{shape.name}.txt")}


def foretold(printed: str) -> dict[str, float]:
    """`--recompute` → GiB, of what --dry_run prints; nothing for those that do not fit."""
    line = next((line for line in printed.splitlines() if line.strip().startswith("--recompute")), "")
    return {name: float(gib) for name, gib in re.findall(r"(none|cheap|all) ([0-9.]+)", line)}


def result(shape: Shape, way: Way, folder: Path) -> Row:
    """Of what a job has written."""
    name = f"{shape.name}-{way.name}"
    with (folder / name / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))[1 : 1 + ROWS_KEPT]
    idle = json.loads((folder / f"{name}.json").read_text())
    traced = steps_of(shape, BASES_TRACED)
    bases = shape.windows * shape.length
    return {
        **shape._asdict(),
        **way._asdict(),
        "mtoken_per_s": round(statistics.median(float(row["tokens_per_second"]) for row in rows) / 1e6, 3),
        "peak_gib": round(float(rows[-1]["peak_memory_gib"]), 2),
        "foretold_gib": foretold((folder / f"{shape.name}.txt").read_text()).get(way.recompute, ""),
        "idle": round(idle["idle"], 4),
        "idle_over_10_us": round(idle["waits"], 4),
        "kernels_a_step": round(idle["kernels"] / traced),
        "traced_mtoken_per_s": round(traced * bases / idle["seconds"] / 1e6, 3),
        "data_wait": round(statistics.median(float(row["data_wait_fraction"]) for row in rows), 4),
    }


def measure(shape: Shape, ways: Sequence[Way], genome: Path, folder: Path) -> tuple[list[Row], list[list[Any]]]:
    """A row for each way, and the gaps of the first; all in one process, which compiles each kernel once."""
    jobs = [foretelling(shape, genome, folder), *(job_of(shape, way, genome, folder) for way in ways)]
    file = folder / f"{shape.name}.jobs.json"
    file.write_text(json.dumps(jobs))
    subprocess.run([sys.executable, str(Path(__file__).parent / "observed_training.py"), str(file)], check=True)
    gaps = json.loads((folder / f"{shape.name}-{ways[0].name}.json").read_text())["gaps"]
    return [result(shape, way, folder) for way in ways], gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genome", type=Path)
    parser.add_argument("--shapes", nargs="+", default=[shape.name for shape in SHAPES])
    parser.add_argument("--ways", nargs="+", default=[way.name for way in WAYS])
    parser.add_argument("--out", type=Path, default=Path("pretrain_step.csv"))
    parser.add_argument("--gaps", action="store_true", help="print between which kernels the GPU did nothing")
    given = parser.parse_args()
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    shapes = [Shape(*map(int, text.split("x"))) for text in given.shapes]
    ways = [Way(*text.split("-")) for text in given.ways]
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes:
            try:
                rows, gaps = measure(shape, ways, given.genome.absolute(), Path(name))
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"{shape.name}: {error}", flush=True)
                continue
            for row in rows:
                print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
            if given.gaps:
                print(*(f"{share:7.3%} {times:5d} times  {a} -> {b}" for share, times, a, b in gaps), sep="\n")
            found += [{**row, **where} for row in rows]
            write_rows(found, given.out)


if __name__ == "__main__":
    main()
