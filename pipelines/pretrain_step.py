"""Times whole training steps of `python -m dnamamba.pretrain` itself on one GPU: speed, memory, idle time.

    python pipelines/pretrain_step.py GENOME [--runs 128x256x1024-none-on 256x1x1048576-cheap-on …] [--minutes 9]
        [--out pretrain_step.csv] [--gaps]

A run is d_model x windows x length, all windows in one pass, then --recompute and --cuda_graph: 8 layers, expand 2, 16
states, bf16. Mtoken/s and peak memory stand in the runs' metrics.csv; `foretold_gib` is what --dry_run says of the
peak; `idle` the share of the time in which the GPU did nothing, by torch's profiler. --gaps prints between which
kernels that was. A row is written as soon as its run has ended, and runs whose rows --out holds are not measured again.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measured import Row, conditions, kept_rows, write_rows


class Run(NamedTuple):
    d_model: int
    windows: int
    length: int
    recompute: str
    cuda_graph: str

    @property
    def shape(self) -> str:
        return f"{self.d_model}x{self.windows}x{self.length}"

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.recompute}-{self.cuda_graph}"

    @classmethod
    def of(cls, name: str) -> "Run":
        shape, recompute, cuda_graph = name.split("-")
        return cls(*map(int, shape.split("x")), recompute, cuda_graph)


SHAPES = [
    "64x256x1024",
    "128x256x1024",
    "128x8x32768",
    "128x1x1048576",
    "256x8x32768",
    "256x1x1048576",
    "512x1x1048576",
]
WAYS = ["none-on", "cheap-on", "all-on", "none-off"]
TOO_LARGE = ("512x1x1048576-none",)
"""For 139 GiB"""
RUNS = [f"{shape}-{way}" for shape in SHAPES for way in WAYS if not f"{shape}-{way}".startswith(TOO_LARGE)]
ROWS_KEPT = 3
"""Rows of metrics.csv whose median is taken, after the first, in which kernels are compiled and recorded"""
WORKER = Path(__file__).with_name("observed_training.py")
BASES_A_ROW, BASES_TRACED = 4_000_000, 8_000_000
FEWEST = 3
"""Steps of a row; of a trace one more"""


def steps_of(run: Run) -> tuple[int, int]:
    """Of a row of metrics.csv, and those that are traced."""
    bases = run.windows * run.length
    return max(BASES_A_ROW // bases, FEWEST), max(BASES_TRACED // bases, FEWEST + 1)


def job_of(run: Run, genome: Path, folder: Path) -> dict[str, Any]:
    """For `observed_training.py`."""
    every, traced = steps_of(run)
    steps, bases = every * (1 + ROWS_KEPT) + traced + 1, run.windows * run.length
    settings = {
        "genome": [str(genome)],
        "store": str(folder / "genome.dnamamba"),
        "out": str(folder / run.name),
        "model": {"preset": "7m", "n_layer": 8, "d_model": run.d_model},
        "length": run.length,
        "batch_tokens": bases,
        "micro_tokens": bases,
        "max_steps": steps,
        "log_every": every,
        "validation_every": steps,
        "validation_length": min(run.length, 8192),
        "validation_tokens": 65_536,
        "markov_order": 0,
        "accelerator": "gpu",
        "precision": "bf16",
        "recompute": run.recompute,
        "cuda_graph": run.cuda_graph,
    }
    trace = [steps - traced - 1, traced, str(folder / f"{run.name}.json")]
    return {"settings": settings, "trace": trace, "output": str(folder / f"{run.name}.txt")}


def foretelling(run: Run, genome: Path, folder: Path) -> dict[str, Any]:
    """The job that prints the peak of each `--recompute`, of all runs of this shape."""
    settings = job_of(run, genome, folder)["settings"]
    return {"settings": {**settings, "dry_run": True}, "output": str(folder / f"{run.shape}.txt")}


def foretold(printed: str) -> dict[str, float]:
    """`--recompute` → GiB, of what --dry_run prints; nothing for those that do not fit."""
    line = next((line for line in printed.splitlines() if line.strip().startswith("--recompute")), "")
    return {name: float(gib) for name, gib in re.findall(r"(none|cheap|all) ([0-9.]+)", line)}


def result(run: Run, folder: Path) -> tuple[Row, list[list[Any]]]:
    """Of what a job has written: the row, and the gaps."""
    with (folder / run.name / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))[1 : 1 + ROWS_KEPT]
    idle = json.loads((folder / f"{run.name}.json").read_text())
    return {
        **run._asdict(),
        "mtoken_per_s": round(statistics.median(float(row["tokens_per_second"]) for row in rows) / 1e6, 3),
        "peak_gib": round(float(rows[-1]["peak_memory_gib"]), 2),
        "foretold_gib": foretold((folder / f"{run.shape}.txt").read_text()).get(run.recompute, ""),
        "idle": round(idle["idle"], 4),
        "idle_over_10_us": round(idle["waits"], 4),
        "data_wait": round(statistics.median(float(row["data_wait_fraction"]) for row in rows), 4),
    }, idle["gaps"]


def measured(runs: Sequence[Run], genome: Path, folder: Path, minutes: float) -> Iterator[Run]:
    """Trains all in one process, which compiles each kernel once, and yields each that has ended."""
    jobs, shapes = [], set()
    for run in runs:
        if run.shape not in shapes:
            jobs.append(foretelling(run, genome, folder))
            shapes.add(run.shape)
        jobs.append(job_of(run, genome, folder))
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    left, until = list(runs), time.monotonic() + 60 * minutes
    process = subprocess.Popen([sys.executable, str(WORKER), str(file)])
    try:
        while True:
            ended = process.poll() is not None
            while left and (folder / left[0].name / "summary.json").exists():
                yield left.pop(0)
            if ended or time.monotonic() > until:
                break
            time.sleep(0.1)
    finally:
        process.kill()
        code = process.wait()
    if left:
        print(f"ended early ({code}), not measured: {' '.join(run.name for run in left)}", flush=True)


def name_of(row: Row) -> str:
    """Of the run that a row is of."""
    return Run(*(row[field] for field in Run._fields)).name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genome", type=Path)
    parser.add_argument("--runs", nargs="+", default=RUNS)
    parser.add_argument("--minutes", type=float, default=30.0, help="what is not done by then is left out")
    parser.add_argument("--out", type=Path, default=Path("pretrain_step.csv"))
    parser.add_argument("--gaps", action="store_true", help="print between which kernels the GPU did nothing")
    given = parser.parse_args()
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    rows = kept_rows(given.out)
    done = {name_of(row) for row in rows}
    runs = [run for run in map(Run.of, given.runs) if run.name not in done]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in measured(runs, given.genome.absolute(), folder, given.minutes):
            row, gaps = result(run, folder)
            print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
            if given.gaps:
                lines = (f"{share:7.3%} {times:5d} times  {a} -> {b}" for share, times, a, b in gaps)
                print(*lines, sep="\n", flush=True)
            rows.append({**row, **where})
            write_rows(rows, given.out)


if __name__ == "__main__":
    main()
