"""Kills a training run again and again, resumes it each time, and compares it with one that was left in peace.

    python pipelines/kill_test.py [--kills 20 | --full] [--seed 0] [--out kill_test.csv]

Both runs train the same small model on the bundled E. coli, on the CPU with one thread. SIGKILL comes at random moments
of three kinds: anywhere in a process's life (start-up included), while it trains, and while it writes a checkpoint.
Each next process is what a scheduler would start: the same command with --resume. In the end both runs must have the
same rows in metrics.csv (but for the columns that are measured), the same last validation, and, bit for bit, the same
weights and optimiser states, with nothing half-written left; after each kill the links `last` and `best` must lead to
whole checkpoints. `--full` means 200 kills.

Processes are forked from this one, which imports everything first but computes nothing: no thread has started then, and
a life costs one second instead of ten. Prints and writes a table with a row a kill; exit code 1 when the runs differ.
"""

import argparse
import csv
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from dnamamba.tables import whole_number

MODEL = ("--model.preset", "demo", "--model.n_layer", "2", "--model.d_model", "16", "--model.d_state", "4")
DATA = ("--length", "256", "--batch_tokens", "1024", "--validation_tokens", "4096", "--markov_order", "0")
RHYTHM = ("--log_every", "3", "--validation_every", "7", "--save_every", "2", "--accelerator", "cpu")
STEPS_PER_KILL = 8
MEASURED = frozenset({"seconds", "tokens_per_second", "peak_fraction", "data_wait_fraction", "peak_memory_gib"})
"""Columns of metrics.csv that differ from run to run."""
KINDS = ("anywhere", "training", "writing", "training", "writing")
CHECKPOINT_FILES = ("config.json", "model.safetensors", "provenance.json", "tokens.json", "trainer.ckpt")
LEFT_OVER = re.compile(r"\.partial|^\.")


class Kill(NamedTuple):
    """A row of the table."""

    kill: int
    kind: str
    seconds: float
    """since the process started"""
    resumed_from: int | str
    """step of the checkpoint that this process began with; 0 for none, - when it was killed before it had chosen"""
    step_reached: int
    """the last one that left a trace in the run folder"""
    last_checkpoint: int
    """step of the last whole checkpoint at the kill; 0 for none"""


class Life:
    """One process that trains: forked from this one, its output in a file."""

    def __init__(self, run: Path, steps: int, log: Path) -> None:
        self.run, self.log = run, log
        self.metrics = run / "metrics.csv"
        self._inode_before = self._inode()
        # A killed process may not have come as far as its run folder: then there is nothing to resume.
        resume = ["--resume"] if run.exists() else []
        command = [*MODEL, *DATA, *RHYTHM, "--max_steps", str(steps), "--out", str(run), *resume]
        log.unlink(missing_ok=True)
        sys.stdout.flush()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _live(command, log)
        self.exit_code: int | None = None

    def _inode(self) -> int:
        return self.metrics.stat().st_ino if self.metrics.exists() else 0

    def trains(self) -> bool:
        """Whether the training loop has begun: it renews metrics.csv first of all."""
        return self._inode() != self._inode_before

    def writes(self) -> bool:
        """Whether a checkpoint is being written right now."""
        folder = self.run / "checkpoints"
        return folder.exists() and any(name.endswith(".partial") for name in os.listdir(folder))

    def wait(self, seconds: float, condition=lambda: False) -> bool:
        """Until `condition` or the time is over; False when the process ended by itself meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not condition():
            if self.ended():
                return False
            time.sleep(0.0005)
        return True

    def ended(self) -> bool:
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self.exit_code is not None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.exit_code = os.waitstatus_to_exitcode(status)

    def resumed_from(self) -> int | str:
        said = self.log.read_text() if self.log.exists() else ""
        found = re.search(r"resuming from .*step-(\d+)", said)
        return int(found[1]) if found else 0 if self.trains() else "-"


def _live(command: list[str], log: Path) -> None:
    """The child: runs the command line and ends without the parent's clean-up."""
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from dnamamba import cli, pretrain

        code = cli.run(pretrain.main, command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def step_of(link: Path) -> int:
    """Step of the checkpoint that a link leads to, 0 without a link; raises when that checkpoint is not whole."""
    if not link.is_symlink():
        return 0
    for name in CHECKPOINT_FILES:
        if not (link / name).is_file():
            raise RuntimeError(f"{link} leads to a checkpoint without {name}")
    return int(link.resolve().name.removeprefix("step-"))


def step_reached(run: Path) -> int:
    steps = [step_saved(run)]
    if (run / "metrics.csv").exists():
        steps += [step for row in read_rows(run) if (step := whole_number(row["step"])) is not None]
    return max(steps)


def step_saved(run: Path) -> int:
    """Step of the last checkpoint that was begun, 0 for none."""
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").exists() else []
    return max((int(found[1]) for name in names if (found := re.search(r"step-(\d+)", name))), default=0)


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def uninterrupted(run: Path, steps: int, log: Path) -> tuple[float, float]:
    """Seconds from the start of the process to its first step, and seconds a step."""
    life = Life(run, steps, log)
    life.wait(600, life.trains)
    started = time.monotonic()
    life.wait(3600, lambda: step_reached(run) >= steps)
    trained = time.monotonic() - started
    life.wait(600, life.ended)
    expect_success(life)
    return started - life.began, trained / steps


def expect_success(life: Life) -> None:
    if life.exit_code != 0:
        raise RuntimeError(f"a process ended with {life.exit_code}:\n{life.log.read_text()}")


def interrupted(run: Path, steps: int, kills: int, start_up: float, step: float, chance: random.Random) -> list[Kill]:
    """Trains with `kills` SIGKILLs on the way; then lets the run end."""
    table: list[Kill] = []
    log = run.with_suffix(".log")
    while True:
        life = Life(run, steps, log)
        number = len(table) + 1
        if number > kills:
            life.wait(3600, life.ended)
            expect_success(life)
            return table
        # The steps that are left are shared among the kills that are left, so that none comes too late: not even where
        # steps take less time than they did in the run that was left in peace, on a machine that was busier then.
        reached = step_reached(run)
        share = 2 * (steps - reached) / (kills - len(table) + 1) * 0.8
        span = step * share

        def come_far(latest: float = reached + 0.8 * share) -> bool:
            return step_saved(run) >= latest

        kind = KINDS[number % len(KINDS)]
        if kind == "anywhere":
            alive = life.wait(chance.uniform(0, start_up + span), come_far)
        else:
            alive = life.wait(600, life.trains) and life.wait(chance.uniform(0, span), come_far)
            if kind == "writing":
                alive = alive and life.wait(600, life.writes) and life.wait(chance.uniform(0, 0.02))
        if not alive:
            expect_success(life)
            return table
        seconds = time.monotonic() - life.began
        life.kill()
        for name in ("best", "last"):
            step_of(run / "checkpoints" / name)
        last = step_of(run / "checkpoints" / "last")
        table.append(Kill(number, kind, round(seconds, 3), life.resumed_from(), step_reached(run), last))
        print("  ".join(f"{cell!s:>12}" for cell in table[-1]), flush=True)


def differences(killed: Path, whole: Path) -> list[str]:
    """What differs between the two runs, in words."""
    import torch

    found = []
    rows, expected = read_rows(killed), read_rows(whole)
    if len(rows) != len(expected):
        found.append(f"metrics.csv has {len(rows)} rows, not {len(expected)}")
    for row, wanted in zip(rows, expected, strict=False):
        for name in wanted.keys() - MEASURED:
            if row[name] != wanted[name]:
                found.append(f"metrics.csv, step {wanted['step']}: {name} {row[name]} instead of {wanted[name]}")
    for name in ("validation_by_class.csv", "validation_windows.csv"):
        if (killed / name).read_bytes() != (whole / name).read_bytes():
            found.append(f"{name} differs")
    for name in ("best", "last"):
        folder, other = killed / "checkpoints" / name, whole / "checkpoints" / name
        if step_of(folder) != step_of(other):
            found.append(f"{name} is step {step_of(folder)} instead of {step_of(other)}")
        elif (folder / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes():
            found.append(f"the weights of {name} differ")
    optimisers = [
        torch.load(run / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for run in (killed, whole)
    ]
    for number, state in optimisers[1].items():
        if not all(torch.equal(optimisers[0][number][name], value) for name, value in state.items()):
            found.append(f"the optimiser's state of parameter {number} differs")
    hidden = [path for path in killed.rglob("*") if LEFT_OVER.search(path.name)]
    found += [f"left over: {path.relative_to(killed)}" for path in hidden]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="200 kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("kill_test.csv"), help="the table")
    parser.add_argument("--scratch", type=Path, help="folder for the two runs (default: the system's temporary one)")
    arguments = parser.parse_args()
    kills = 200 if arguments.full else arguments.kills

    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}  # before torch is imported
    import numba  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import dnamamba.training.run  # noqa: F401

    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="kill-test-", dir=arguments.scratch))
    whole, killed, steps = scratch / "whole", scratch / "killed", max(STEPS_PER_KILL * kills, 40)
    start_up, step = uninterrupted(whole, steps, scratch / "whole.log")
    print(f"uninterrupted: {steps} steps of {1e3 * step:.0f} ms after {start_up:.1f} s of start-up", flush=True)
    print("  ".join(f"{name:>12}" for name in Kill._fields))
    table = interrupted(killed, steps, kills, start_up, step, random.Random(arguments.seed))
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Kill._fields, *table])

    found = differences(killed, whole)
    verdict = f"{len(found)} DIFFERENCES" if found else "the same metrics, weights and optimiser states, bit for bit"
    print(f"{len(table)} kills, {steps} steps: {verdict} ({time.monotonic() - began:.0f} s)")
    for line in found[:20]:
        print(f"  {line}")
    if found or len(table) < kills:
        print(f"runs kept in {scratch}")
        return 1
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
