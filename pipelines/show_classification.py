"""Runs workflows without a workflow engine: several small runs a GPU, within a time budget, resumable.

    python pipelines/show_classification.py pipelines/distant.yaml pipelines/gue.yaml --minutes 25 --jobs_per_gpu 3 \\
        --set splits=runs/species --set checkpoint=runs/distant/pretrain

The YAML files are those of `Snakefile` (`plan.py` explains their keys); `--set KEY=VALUE` changes a key of all of them,
`--set NAME:KEY=VALUE` of NAME.yaml alone (dots lead into mappings: `finetune.seeds=3`; the value is YAML). Runs begin
in the order of the files, one after the other waiting for a free slot of a GPU. When the time is up, running ones are
signalled to stop and continue at the next call. What is finished is collected into results.csv, results.md and
results.png.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from collect import collect
from plan import Plan, Run, make_plan

from dnamamba import cli
from dnamamba.errors import InputError

GRACE = 20.0
"""Seconds that a run gets to stop by itself."""
STEP = Path(__file__).with_name("run_step.py")


class Job:
    """A run in its slot of a GPU."""

    def __init__(self, plan: Plan, run: Run, gpu: str | None, threads: int) -> None:
        self.plan, self.run, self.gpu, self.began = plan, run, gpu, time.monotonic()
        folder = plan.folder(run)
        folder.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        line = [sys.executable, str(STEP), str(folder), run.result, *run.program, "--", *run.flags]
        self.process = subprocess.Popen(
            line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    configs = [_read(file, options.set) for file in options.workflows]
    plans = [make_plan(config) for config in configs]
    if options.only:
        plans = [plan._replace(runs=tuple(run for run in plan.runs if _wanted(run, options.only))) for plan in plans]
    if options.dry_run:
        for plan in plans:
            for run in plan.runs:
                print(plan.folder(run), " ".join(("python", *run.program, *run.flags)), sep="\n    ")
        return
    slots = [gpu for gpu in gpus() for _ in range(options.jobs_per_gpu)]
    threads = max((os.cpu_count() or 1) // len(slots), 1)
    failed = run_all(plans, slots, threads, time.monotonic() + 60 * options.minutes)
    for plan, config in zip(plans, configs, strict=True):
        print(f"\n{plan.out}")
        collect(plan, config)
    if failed:
        raise InputError(f"failed, see their logs: {', '.join(failed)}")


def run_all(plans: list[Plan], slots: list[str | None], threads: int, deadline: float) -> list[str]:
    """Runs what can be run until the deadline; returns the log files of the runs that failed."""
    waiting = [(plan, run) for plan in plans for run in plan.runs if not _is_done(plan, run)]
    running: list[Job] = []
    failed: list[str] = []
    began = time.monotonic()
    try:
        while (waiting or running) and time.monotonic() < deadline:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                slots.append(job.gpu)
                is_done = _is_done(job.plan, job.run)
                if not is_done:
                    failed.append(f"{job.plan.folder(job.run)}.log")
                took, since = time.monotonic() - job.began, time.monotonic() - began
                word = "done  " if is_done else "FAILED"
                print(f"{since:6.0f} s  {word}  {job.plan.folder(job.run)}  ({took:.0f} s)", flush=True)
            for plan, run in waiting[:]:
                needed = [plan.by_name()[name] for name in run.needs if name in plan.by_name()]
                if slots and all(_is_done(plan, other) for other in needed):
                    # The GPU with the most free slots, so that the first runs spread over all.
                    slots.sort(key=lambda gpu: (-slots.count(gpu), gpu or ""))
                    waiting.remove((plan, run))
                    running.append(Job(plan, run, slots.pop(0), threads))
                elif any(f"{plan.folder(other)}.log" in failed for other in needed):
                    waiting.remove((plan, run))
            time.sleep(0.3)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for job in running:
                job.stop(number)
            until = time.monotonic() + GRACE
            while any(job.process.poll() is None for job in running) and time.monotonic() < until:
                time.sleep(0.2)
        for job in running:
            print(f"stopped   {job.plan.folder(job.run)}", flush=True)
    return failed


def gpus() -> list[str | None]:
    """Numbers of the visible GPUs; [None] where there is none."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return list(visible.split(","))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [None]
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU")] or [None]


def _is_done(plan: Plan, run: Run) -> bool:
    return (plan.folder(run) / run.result).exists()


def _wanted(run: Run, patterns: list[str]) -> bool:
    return not run.facts or any(pattern in run.name for pattern in patterns)


def _read(file: Path, changes: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    for change in changes:
        key, divider, value = change.partition("=")
        if not divider:
            raise InputError(f"--set {change}: expected KEY=VALUE")
        name, colon, rest = key.partition(":")
        if colon and name != file.stem:
            continue
        *path, last = (rest if colon else key).split(".", 1)
        inner = config.setdefault(path[0], {}) if path else config
        inner[last] = yaml.safe_load(value)
    return config


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("workflows", type=Path, nargs="+", help="YAML files as for Snakefile")
    parser.add_argument("--minutes", type=float, default=60.0, help="time for everything but the tables")
    parser.add_argument("--jobs_per_gpu", type=int, default=3, help="runs at the same time on one GPU")
    parser.add_argument("--set", action="append", default=[], help="[NAME:]KEY=VALUE: changes the workflows")
    parser.add_argument("--only", nargs="+", help="runs whose names hold one of these texts (and what is before)")
    parser.add_argument("--dry_run", action="store_true", help="show the commands")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
