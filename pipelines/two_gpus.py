"""Measures pretraining on two GPUs of one machine: equality with one GPU, scaling, and what happens when a rank dies.

    python pipelines/two_gpus.py --out two_gpus.json [--parts equality kill resume scaling] [--accelerator cpu]

Every figure comes from `dnamamba.training.run.pretrain`, what `python -m dnamamba.pretrain` calls, on the bundled
E. coli (its last 300 kb for validation). What is in --out already is not measured again, and each result is written as
soon as it is there: the command may be stopped at any moment and given again. A part that fails leaves its error.

equality  20 steps on two GPUs and on one: losses, windows and gradients, in fp32 and bf16. "same passes" (DDP) cuts the
          batch on one GPU as two GPUs do, so that only the all-reduce differs; "one pass" does not. FSDP2, context
          parallelism (`context_parallel.py` measures it), and both.
kill      a rank gets SIGKILL or raises, under `--devices 2` and under torchrun: seconds until no process is left, exit
          code, last words, checkpoints.
resume    one GPU continues from the first of these deaths, and every step's windows (coordinates, strand, CRC-32 of the
          tokens) and losses are compared with a run on one GPU that was left in peace.
scaling   bases a second: 262,144 bases a step and GPU, or one window (weak); as many a step on both (strong), where
          that is one window by context parallelism.

--devices 1 and --devices 2 do the runs on one and on both; with --scratch, which is kept, `resume` may follow later.
Prints tables in Markdown. About five minutes on two H100; --accelerator cpu tries it all on gloo with a tiny model.
"""

import argparse
import csv
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from observed_training import compare_resumed, compare_runs
from rank_jobs import Bench, alive, describe_machine, wait

RATES = {"1.4m": 5e6, "7m": 2e6, "41m": 0.6e6}
"""Bases a second to expect of one H200, for the number of steps."""
RATE = "mbases_per_second"


# --- equality --------------------------------------------------------------------------------------------------------


def equality(bench: Bench) -> None:
    """Losses and gradients of 20 steps. All the runs on two devices share two processes, those on one another."""
    steps, half = 20, bench.sizes.windows * bench.sizes.length // 2
    ways: dict[str, tuple[dict[str, Any], int]] = {
        "same passes": ({"micro_tokens": half}, half),
        "one pass": ({"micro_tokens": 2 * half}, 2 * half),
        "FSDP2": ({"micro_tokens": half, "strategy": "fsdp"}, half),
        "context parallelism": ({"micro_tokens": half, "context_parallel": 2}, 2 * half),
        "both": ({"micro_tokens": half, "context_parallel": 2, "strategy": "fsdp"}, 2 * half),
    }
    kinds = [(precision, way) for precision in bench.sizes.precisions for way in ways]
    names = {kind: f"20 steps, {kind[1]}, {kind[0]}" for kind in kinds}
    known = bench.results.get("equality", {})
    if all(known.get(name, {"error": ""}).keys() - {"error"} for name in names.values()):
        return
    folders: dict[tuple[str, object], str] = {}
    on_two = {kind: ways[kind[1]][0] | {"devices": 2} for kind in kinds}
    on_one = {(kind[0], ways[kind[1]][1]): {"micro_tokens": ways[kind[1]][1], "devices": 1} for kind in kinds}
    for devices, starter, wanted in ((2, "torchrun", on_two), (1, "one", on_one)):
        jobs = []
        for number, (kind, settings) in enumerate(wanted.items()):
            # Gradients as they come, not clipped.
            job = bench.job(max_steps=steps, log_every=steps, precision=kind[0], gradient_clip=1e9, **settings)
            folders[kind] = bench.observing(f"{starter}-{number}", clear=devices in bench.devices)
            jobs.append(job | {"observe": folders[kind], "gradients": [0, steps - 1]})
        if devices in bench.devices:
            bench.run(jobs, starter)
    if all((Path(folder) / f"gradients-0-{steps - 1}.pt").exists() for folder in folders.values()):
        for kind, name in names.items():
            two, one = folders[kind], folders[kind[0], ways[kind[1]][1]]
            bench.keep("equality", name, partial(compare_runs, two, one, (0, steps - 1)))


# --- kill ------------------------------------------------------------------------------------------------------------


def kill(bench: Bench) -> None:
    """The first death is what `resume` continues from; the others show how fast and with which words a run ends.

    All at once, to save time: they share the devices.
    """
    cases = (
        ("--devices 2, rank 1 gets SIGKILL", "own", 1),
        ("torchrun, rank 1 gets SIGKILL", "torchrun", 1),
        ("--devices 2, rank 0 gets SIGKILL", "own", 0),
        ("--devices 2, rank 1 raises", "own", None),
        ("torchrun, rank 1 raises", "torchrun", None),
    )
    with ThreadPoolExecutor(len(cases) if bench.accelerator == "gpu" else 1) as pool:
        for number, (name, starter, victim) in enumerate(cases):
            pool.submit(bench.keep, "kill", name, partial(die, bench, number, starter, victim))


def killed_job(bench: Bench, out: Path, devices: int) -> dict[str, Any]:
    """What dies on two devices, and is left in peace on one."""
    sizes = bench.sizes
    half = sizes.windows * sizes.length // 2
    shutil.rmtree(out, ignore_errors=True)
    return bench.job(
        out=str(out),
        devices=devices,
        max_steps=sizes.kill_steps,
        log_every=5,
        save_every=sizes.save_every,
        micro_tokens=half,
    )


def die(bench: Bench, number: int, starter: str, victim: int | None) -> dict[str, Any]:
    """One death. `victim` None means that rank 1 raises by itself."""
    sizes = bench.sizes
    job = killed_job(bench, bench.scratch / f"killed-{number}", 2)
    job["observe"] = folder = bench.observing(f"killed-{number}")
    job["pause"] = 0.1
    if victim is None:
        job["raise_at"] = [1, sizes.kill_after]
    group = bench.start([job], starter)
    process = group.process
    steps = Path(folder) / "steps-1.jsonl"
    try:
        wait(120, lambda: steps.exists() and steps.read_text().count("\n") >= sizes.kill_after - 5, process)
        pids = group.ranks()
        wait(120, lambda: steps.read_text().count("\n") >= sizes.kill_after, process)
        began = time.monotonic()
        if victim is not None:
            os.kill(pids[victim], signal.SIGKILL)
        code = process.wait(timeout=400)
        ended = time.monotonic() - began
        wait(60, lambda: not any(alive(pid) for pid in pids))
        gone = time.monotonic() - began
    finally:
        group.end()
    run = Path(job["settings"]["out"])
    last = (run / "checkpoints" / "last").resolve()
    said = [line for line in group.words().splitlines() if re.search(r"^error:|^ +exitcode|on purpose$", line)]
    return {
        "seconds_to_exit": round(ended, 2),
        "seconds_until_no_process": round(gone, 2),
        "exit_code": code,
        "said": said[-6:],
        "last_checkpoint": last.name,
        "checkpoint_whole": {path.name for path in last.iterdir()} >= {"model.safetensors", "trainer.ckpt"},
        "half_written": [path.name for path in (run / "checkpoints").glob(".*")],
    }


def resume(bench: Bench) -> None:
    """On one device, from the first death on; and all of it there."""
    bench.keep("resume", "on one device", partial(resumed, bench))


def resumed(bench: Bench) -> dict[str, Any]:
    run, whole = bench.scratch / "killed-0", killed_job(bench, bench.scratch / "whole", 1)
    again = {"settings": {"resume": True, "out": str(run), "devices": 1}, "observe": bench.observing("resumed")}
    whole["observe"] = bench.observing("whole")
    bench.run([again, whole], "one")
    killed = bench.observing("killed-0", clear=False)
    return compare_resumed(killed, again["observe"], whole["observe"], run, Path(whole["settings"]["out"]))


# --- scaling ---------------------------------------------------------------------------------------------------------


def scaling(bench: Bench) -> None:
    """Three rates for each preset and length. All runs on two devices share two processes, those on one another."""
    wanted = [
        row for length in bench.sizes.lengths for preset in bench.sizes.presets for row in rates(bench, preset, length)
    ]
    for starter, devices in (("torchrun", 2), ("one", 1)):
        known = bench.results.get("scaling", {})
        missing = [row for row in wanted if row.devices == devices and "error" in known.get(row.name, {"error": ""})]
        if not missing or devices not in bench.devices:
            continue
        jobs = []
        for row in missing:
            steps = max(round(bench.seconds * RATES.get(row.preset, 5e4) * devices / row.tokens), 10)
            jobs.append(
                bench.job(
                    model={"preset": row.preset} if bench.accelerator == "gpu" else bench.sizes.model,
                    length=row.length,
                    validation_length=min(row.length, 131_072),
                    batch_tokens=row.tokens,
                    max_steps=steps,
                    log_every=max(steps // 10, 1),
                    devices=devices,
                    context_parallel=devices if row.tokens < devices * row.length else 1,
                )
            )
        try:
            bench.run(jobs, starter)
        except Exception as error:  # the runs before the one that failed count all the same
            print(f"[scaling] {error}", file=sys.stderr)
        for row, job in zip(missing, jobs, strict=True):
            bench.keep("scaling", row.name, partial(rate, job))


class Rate(NamedTuple):
    """A row of `scaling`."""

    preset: str
    length: int
    devices: int
    tokens: int
    """A step, of all devices"""

    @property
    def name(self) -> str:
        return f"{self.preset}, length {self.length}, {self.devices} x {self.tokens // self.devices}"


def rates(bench: Bench, preset: str, length: int) -> list[Rate]:
    """Weak, strong, and what both are compared with."""
    batch = max(bench.sizes.batch_tokens, length)
    return [Rate(preset, length, devices, tokens) for devices, tokens in ((2, 2 * batch), (2, batch), (1, batch))]


def rate(job: dict[str, Any]) -> dict[str, Any]:
    """Of a finished run, from its metrics.csv: bases a second, the median of its rows but the first two. A row that is
    written late makes the next one short: a mean would count a step too few or too many."""

    with (Path(job["settings"]["out"]) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = rows[1], rows[-1]
    rates = sorted(float(row["tokens_per_second"]) for row in rows[2:])
    return {
        RATE: statistics.median(rates) / 1e6,
        "lowest": rates[0] / 1e6,
        "highest": rates[-1] / 1e6,
        "steps": int(last["step"]) - int(first["step"]),
        "peak_memory_gib": float(last["peak_memory_gib"]) if last["peak_memory_gib"] else None,
        "peak_fraction": float(last["peak_fraction"]) if last["peak_fraction"] else None,
        "data_wait_fraction": float(last["data_wait_fraction"]),
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(bench: Bench) -> Iterator[str]:
    """All results so far, in Markdown."""
    machine = bench.results["machine"]
    yield f"{machine['devices']}, torch {machine['torch']}, commit {machine['commit']}, {machine['date']}"
    if found := without_errors(bench, "equality"):
        yield from head("20 steps, 2 devices against 1", "losses", "gradients, first step", "last step", "windows")
        for name, row in found.items():
            losses = "bit-equal" if row["losses_bit_equal"] else f"{row['max_relative_loss_difference']:.1e}"
            gradients = [value for key, value in row.items() if key.startswith("gradients")]
            cells = [
                f"{g['max_relative_difference']:.1e} ({g['bit_equal_to_one_device']}/{g['parameters']} bit-equal)"
                for g in gradients
            ]
            windows = "the same" if row["same_windows"] else "DIFFER"
            yield cells_of(name.removeprefix("20 steps, "), losses, *cells, windows)
    if found := without_errors(bench, "kill"):
        yield from head("death", "no process after", "exit code", "last checkpoint")
        for name, row in found.items():
            whole = "" if row["checkpoint_whole"] else " BROKEN"
            yield cells_of(
                name, f"{row['seconds_until_no_process']} s", row["exit_code"], row["last_checkpoint"] + whole
            )
    for row in without_errors(bench, "resume").values():
        windows = "the same, in the same order" if row["same_windows_in_same_order"] else "DIFFERENT"
        weights = "bit-equal" if row["weights_bit_equal"] else "not bit-equal"
        yield (
            f"\nResumed on one device at step {row['resumed_at_step']}: {row['windows_compared']} windows "
            f"{windows}; losses within {row['max_relative_loss_difference']:.1e}; last weights {weights} to "
            "those of the run left in peace"
        )
    if found := without_errors(bench, "scaling"):
        yield from head("Mbases/s", "1 GPU", "2 GPUs, weak", "efficiency", "strong", "efficiency", "GiB a GPU")
        for length in bench.sizes.lengths:
            for preset in bench.sizes.presets:
                rows = [found.get(row.name, {}) for row in rates(bench, preset, length)]
                weak, strong, one = (row.get(RATE, math.nan) for row in rows)
                if all(map(math.isnan, (weak, strong, one))):
                    continue
                cells = [f"{one:.2f}"]
                for two in (weak, strong):
                    cells += [f"{two:.2f}", f"{two / 2 / one:.3f}"]
                memory = ", ".join(f"{row['peak_memory_gib']:.1f}" for row in rows if row.get("peak_memory_gib"))
                yield cells_of(f"{preset}, {length:,}", *cells, memory or "-")
    for part in PARTS:
        for name, row in bench.results.get(part, {}).items():
            if "error" in row:
                yield f"\nFAILED {part}, {name}: {row['error'][-300:]}"


def head(*names: str) -> Iterator[str]:
    yield ""
    yield cells_of(*names)
    yield cells_of(*["---"] * len(names))


def cells_of(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def without_errors(bench: Bench, part: str) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in bench.results.get(part, {}).items() if "error" not in row}


PARTS = {"equality": equality, "kill": kill, "resume": resume, "scaling": scaling}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("two_gpus.json"), help="results; those in it are kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="of training a rate of `scaling`")
    parser.add_argument("--presets", nargs="+", help="of `scaling`")
    parser.add_argument("--lengths", type=int, nargs="+", help="of `scaling`")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="runs of `equality` and `scaling` to do")
    parser.add_argument("--scratch", type=Path, help="folder for the runs, kept (default: a temporary one)")
    arguments = parser.parse_args()
    began = time.monotonic()
    scratch = arguments.scratch or Path(tempfile.mkdtemp(prefix="two-gpus-"))
    scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments, scratch)
    bench.results["machine"] = describe_machine(arguments.accelerator)
    for part in arguments.parts:
        bench.results.get(part, {}).pop("all", None)  # the error of an earlier time
        try:
            PARTS[part](bench)
        except Exception as error:
            traceback.print_exc()
            bench.results.setdefault(part, {})["all"] = {"error": f"{type(error).__name__}: {error}"[-2000:]}
        bench.out.write_text(json.dumps(bench.results, indent=1) + "\n")
    report = "\n".join(tables(bench))
    bench.out.with_suffix(".md").write_text(report + "\n")
    print(report)
    print(f"\n{time.monotonic() - began:.0f} s", file=sys.stderr)
    if "FAILED" in report:
        print(f"runs and their words are kept in {scratch}", file=sys.stderr)
        return 1
    if arguments.scratch is None:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
