"""Measures pretraining on two GPUs of one machine: equality with one GPU, scaling, and what happens when a rank dies.

    python pipelines/two_gpus.py --out two_gpus.json [--parts equality kill scaling] [--accelerator cpu]

Every figure comes from `dnamamba.training.run.pretrain`, what `python -m dnamamba.pretrain` calls, on the bundled
E. coli (its last 300 kb for validation). What is in --out already is not measured again, and each result is written as
soon as it is there: the command may be stopped at any moment and given again. A part that fails leaves its error.

equality  20 steps on two GPUs and on one: losses, windows and gradients, in fp32 and bf16. "same passes" (DDP) cuts the
          batch on one GPU as two GPUs do, so that only the all-reduce differs; "one pass" does not. FSDP2, context
          parallelism (`context_parallel.py` measures it), and both.
kill      a rank gets SIGKILL or raises, under `--devices 2` and under torchrun: seconds until no process is left, exit
          code, last words, checkpoints. Then one GPU continues (`--resume`), and every step's windows (coordinates,
          strand, CRC-32 of the tokens) and losses are compared with a run on one GPU that was left in peace.
scaling   bases a second: 262,144 bases a step and GPU, or one window (weak); as many a step on both (strong), where
          that is one window by context parallelism.

--devices 1 and --devices 2 do the runs on one and on both: give both commands the same --scratch, which is then kept.
Prints tables in Markdown. About five minutes on two H100; --accelerator cpu tries it all on gloo with a tiny model.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from observed_training import compare_resumed, compare_runs

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "pipelines" / "observed_training.py"
GPU_VARIABLES = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off."""
RATES = {"1.4m": 5e6, "7m": 2e6, "41m": 0.6e6}
"""Bases a second to expect of one H200, for the number of steps."""
RATE = "mbases_per_second"
VALIDATION = "K-12-MG1655\t4340000\t4639675\n"


class Sizes(NamedTuple):
    """What the parts train; a small one for the CPU."""

    model: dict[str, Any]
    length: int
    windows: int
    """A step of `equality` and `kill`, over all devices."""
    presets: tuple[str, ...]
    lengths: tuple[int, ...]
    batch_tokens: int
    """A step and device of `scaling`, weak."""
    precisions: tuple[str, ...]
    kill_steps: int
    kill_after: int
    save_every: int


TINY = {"preset": "demo", "n_layer": 1, "d_model": 16, "d_state": 4}
ON_GPU = Sizes(
    {"preset": "1.4m"}, 8192, 16, ("1.4m", "7m", "41m"), (8192, 131_072, 1 << 20), 262_144, ("fp32", "bf16"), 60, 25, 10
)
ON_CPU = Sizes(TINY, 256, 4, ("demo",), (1024,), 8192, ("fp32",), 40, 15, 5)


# --- what starts them ------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """The processes that train together, and the file of their jobs."""

    process: subprocess.Popen[bytes]
    """torchrun's agent, the first rank, or the only one."""
    jobs: Path

    def words(self) -> str:
        """What they have said."""
        return self.jobs.with_suffix(".txt").read_text()

    def errors(self) -> str:
        """Their messages and the last lines of their tracebacks, torchrun's own aside."""
        found = re.findall(r"^(?:\[rank\d+\]: )?(?:error:|\w*Error\b).*", self.words(), re.MULTILINE)
        return "; ".join(found[:3]) or self.words()[-1500:]

    def ranks(self) -> list[int]:
        """The processes that train now, by rank: those that work on these jobs, but for torchrun's agent."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended, or is not ours
            if str(self.jobs).encode() in command and b"torch.distributed.run" not in command:
                [rank] = [item[11:] for item in variables if item.startswith(b"LOCAL_RANK=")] or [b"0"]
                found[int(rank)] = int(entry.name)
        return [found[rank] for rank in sorted(found)]

    def end(self) -> None:
        """Whatever has not ended by itself."""
        for pid in self.ranks():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


class Bench:
    """The measurements of one command: where they go, and how jobs are run."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.out, self.scratch = arguments.out, scratch
        self.accelerator, self.seconds = arguments.accelerator, arguments.seconds
        self.sizes = ON_GPU if arguments.accelerator == "gpu" else ON_CPU
        self.sizes = self.sizes._replace(
            presets=tuple(arguments.presets or self.sizes.presets),
            lengths=tuple(arguments.lengths or self.sizes.lengths),
        )
        self.results = json.loads(self.out.read_text()) if self.out.exists() else {}
        (scratch / "validation.bed").write_text(VALIDATION)
        self.devices = arguments.devices
        self.jobs = 0
        self.lock = threading.Lock()

    def measure(self, part: str, name: str, how: Callable[[], dict[str, Any]]) -> None:
        """One result, unless it is there already; an error is a result too, but is tried again the next time."""
        known = self.results.setdefault(part, {})
        if name in known and "error" not in known[name]:
            return
        began = time.monotonic()
        try:
            result = how()
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        result["wall_seconds"] = round(time.monotonic() - began, 1)
        with self.lock:
            known[name] = result
            print(f"[{part}] {name}: {json.dumps(result)}", file=sys.stderr, flush=True)
            self.out.write_text(json.dumps(self.results, indent=1) + "\n")

    def job(self, **settings: Any) -> dict[str, Any]:
        """A job with the settings that all share; `observe` and the like are added by the caller."""
        with self.lock:
            self.jobs += 1
            number = self.jobs
        common = {
            "validation": [str(self.scratch / "validation.bed")],
            "store": str(self.scratch / "ecoli.dnamamba"),
            "model": self.sizes.model,
            "length": self.sizes.length,
            "batch_tokens": self.sizes.windows * self.sizes.length,
            "validation_every": 1_000_000,
            "validation_tokens": 1,
            "markov_order": 0,
            "accelerator": self.accelerator,
            "out": str(self.scratch / f"run-{os.getpid()}-{number}"),
        }
        return {"settings": common | settings}

    def start(self, jobs: list[dict[str, Any]], starter: str) -> Group:
        """Processes for the jobs: one on one device, `own` as `--devices 2` starts them, or `torchrun`'s two."""
        with self.lock:
            self.jobs += 1
            file = self.scratch / f"jobs-{os.getpid()}-{self.jobs}.json"
        file.write_text(json.dumps(jobs))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *(launcher if starter == "torchrun" else []), str(WORKER), str(file)]
        folders = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | GPU_VARIABLES | {"PYTHONPATH": folders}
        if starter == "one":
            environment["CUDA_VISIBLE_DEVICES"] = "0"
        if self.accelerator == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        with file.with_suffix(".txt").open("w") as words:
            process = subprocess.Popen(command, env=environment, stdout=words, stderr=subprocess.STDOUT)
        return Group(process, file)

    def run(self, jobs: list[dict[str, Any]], starter: str) -> None:
        """To the end; raises when they fail or take too long."""
        group = self.start(jobs, starter)
        try:
            code = group.process.wait(timeout=300)
        finally:
            group.end()
        if code:
            raise RuntimeError(f"exit code {code}: {group.errors()}")

    def observing(self, name: str, clear: bool = True) -> str:
        folder = self.scratch / f"observed-{name}"
        if clear:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return str(folder)


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
            bench.measure("equality", name, partial(compare_runs, two, one, (0, steps - 1)))


# --- kill ------------------------------------------------------------------------------------------------------------


def kill(bench: Bench) -> None:
    """The first death is resumed from and compared; the others show how fast and with which words a run ends.

    All at once, to save time: they share the devices.
    """
    cases = (
        ("--devices 2, rank 1 gets SIGKILL", "own", 1, True),
        ("torchrun, rank 1 gets SIGKILL", "torchrun", 1, False),
        ("--devices 2, rank 0 gets SIGKILL", "own", 0, False),
        ("--devices 2, rank 1 raises", "own", None, False),
        ("torchrun, rank 1 raises", "torchrun", None, False),
    )
    with ThreadPoolExecutor(len(cases) if bench.accelerator == "gpu" else 1) as pool:
        for number, (name, starter, victim, resumed) in enumerate(cases):
            how = partial(die, bench, number, starter, victim, resumed)
            pool.submit(bench.measure, "kill", name, how)


def die(bench: Bench, number: int, starter: str, victim: int | None, resumed: bool) -> dict[str, Any]:
    """One death. `victim` None means that rank 1 raises by itself."""
    sizes = bench.sizes
    half = sizes.windows * sizes.length // 2
    job = bench.job(max_steps=sizes.kill_steps, log_every=5, save_every=sizes.save_every, micro_tokens=half, devices=2)
    job["observe"] = folder = bench.observing(f"kill-{number}")
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
    result: dict[str, Any] = {
        "seconds_to_exit": round(ended, 2),
        "seconds_until_no_process": round(gone, 2),
        "exit_code": code,
        "said": said[-6:],
        "last_checkpoint": last.name,
        "checkpoint_whole": {path.name for path in last.iterdir()} >= {"model.safetensors", "trainer.ckpt"},
        "half_written": [path.name for path in (run / "checkpoints").glob(".*")],
    }
    if resumed:
        again = {"settings": {"resume": True, "out": str(run), "devices": 1}, "observe": bench.observing("resumed")}
        whole = bench.job(
            max_steps=sizes.kill_steps, log_every=5, save_every=sizes.save_every, micro_tokens=half, devices=1
        )
        whole["observe"] = bench.observing("whole")
        bench.run([again, whole], "one")
        result |= compare_resumed(folder, again["observe"], whole["observe"], run, Path(whole["settings"]["out"]))
    return result


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait(seconds: float, condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"ended too early, with exit code {process.poll()}")
        time.sleep(0.005)


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
            bench.measure("scaling", row.name, partial(rate, job))


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
    """Of a finished run, from its metrics.csv: bases a second between the second row and the last."""
    import csv

    with (Path(job["settings"]["out"]) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = rows[1], rows[-1]
    rates = sorted(float(row["tokens_per_second"]) for row in rows[2:])
    return {
        RATE: (int(last["tokens"]) - int(first["tokens"])) / (float(last["seconds"]) - float(first["seconds"])) / 1e6,
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
        for row in found.values():
            if "resumed_at_step" in row:
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


def describe_machine(accelerator: str) -> dict[str, Any]:
    import torch

    from dnamamba.runs.folder import environment

    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if accelerator == "gpu" else ["CPU"]
    )
    environment_now = environment(names)
    return {
        "devices": f"{len(names)} x {names[0]}",
        "torch": torch.__version__,
        "commit": environment_now["git_commit"],
        "date": time.strftime("%Y-%m-%d"),
        "versions": environment_now["versions"],
    }


PARTS = {"equality": equality, "kill": kill, "scaling": scaling}


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
