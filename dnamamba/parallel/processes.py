"""Which process this is among those that train together, and what becomes of the others when one of them dies.

There are three ways to have several: `--devices N`, where the first process starts the others; torchrun; and srun. All
come down to the same variables, which Lightning's plainest environment reads: LOCAL_RANK, NODE_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. Lightning's own launcher and its guesses are not used: it ends the survivors of a crash by
SIGKILL without a word, also when a process has stopped on a signal as it should, and it takes every shell within a
SLURM allocation for one of several tasks.

A process whose peer has died waits for it within NCCL, where it hears no signal. So a thread watches:
- the first process the others that it started: when one fails, it ends itself and the rest within seconds;
- each of these, and each of torchrun's, the process that started it.
torchrun watches its own in the same way, srun with `--kill-on-bad-exit`; `PATIENCE` is for what none of them sees.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch

from dnamamba.errors import InputError

PATIENCE = timedelta(minutes=5)
"""How long a process waits for its peers in one collective operation before it gives up: the slowest writing of a
checkpoint has to fit in."""
GRACE = 5.0
"""Seconds that a process has to end by its own error after a peer has died."""
STARTED_BY = "DNAMAMBA_STARTED_BY"
"""The process id of the first process, for those that it starts."""
RUN_FOLDER = "DNAMAMBA_RUN_FOLDER"
"""The run folder that it chose, for the same."""


class ProcessRank(NamedTuple):
    """Which of the processes that train together this is."""

    rank: int
    """0 for the first process of all, and for one that is alone."""
    world_size: int | None
    """How many processes train together; None unless they were started from outside (`--devices` says it then)."""
    local_size: int | None
    """How many of them on this machine."""


def process_rank() -> ProcessRank:
    """As the environment says. Raises `InputError` for a SLURM step with unequal numbers of tasks on its nodes."""
    _adopt_slurm_step()
    if "LOCAL_RANK" not in os.environ:
        return ProcessRank(0, None, None)
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return ProcessRank(node * local + int(os.environ["LOCAL_RANK"]), world, local)


def chosen_devices(wanted: int | None, accelerator: str, *, resumed: bool) -> int:
    """How many processes train together: those that torchrun or srun have started, else as many as are `wanted`, else
    one. Raises `InputError` where these differ, but for a run that is resumed, which may have had others before; and
    where this machine has fewer GPUs."""
    here = process_rank()
    devices = (here.world_size if resumed else None) or wanted or here.world_size or 1
    if here.world_size not in (None, devices):
        raise InputError(
            f"--devices: {devices} wanted, but torchrun or srun started {here.world_size} processes; "
            "leave the flag out, or give that number"
        )
    on_this = here.local_size or devices
    if accelerator == "gpu" and on_this > (seen := torch.cuda.device_count()):
        hint = "; srun's --gpus-per-task hides the others, use --gpus-per-node" if seen and here.local_size else ""
        raise InputError(f"--devices: {on_this} wanted on this machine, torch sees {seen}{hint}")
    return devices


def own_device(accelerator: str) -> None:
    """Makes this process's GPU the current one."""
    if accelerator == "gpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def chosen_folder(wanted: Path | None, usual: Callable[[], Path]) -> Path:
    """The run folder, absolute: the one `wanted`, or of processes that the first one starts that of the first, or the
    `usual` one. Raises `InputError` where processes that started apart would each choose one."""
    here = process_rank()
    if wanted is None and RUN_FOLDER in os.environ and here.rank > 0:
        wanted = Path(os.environ[RUN_FOLDER])
    if wanted is None and here.world_size not in (None, 1):
        raise InputError("--out: name the run folder when torchrun or SLURM starts the processes")
    return (wanted or usual()).absolute()


def _adopt_slurm_step() -> None:
    """Says in torchrun's words what srun says in its own; nothing outside a step of several tasks.

    Not SLURM_NTASKS: a plain command in a batch script or in salloc's shell has that one, too.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1 or "LOCAL_RANK" in os.environ:
        return
    per_node = os.environ["SLURM_STEP_TASKS_PER_NODE"]
    found = re.fullmatch(r"(\d+)(?:\(x\d+\))?", per_node)
    if found is None:
        raise InputError(f"srun: {per_node} tasks on the nodes; give each node as many by --ntasks-per-node")
    first_host = re.sub(r"^([^,\[]*)\[(\w+)[^\]]*\]", r"\1\2", os.environ["SLURM_STEP_NODELIST"]).split(",")[0]
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    variables = {
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "NODE_RANK": os.environ["SLURM_NODEID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": found[1],
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", first_host),
        # The same in all tasks, and another one for each step that may run on the same node.
        "MASTER_PORT": os.environ.get("MASTER_PORT", str(15_000 + (job + step) % 10_000)),
    }
    os.environ.update(variables)


@contextmanager
def together(devices: int, folder: Path, advice: str) -> Iterator[None]:
    """Inside, all processes of the run in `folder` are there, and none outlives a peer for long.

    Starts the other processes of `--devices` unless torchrun or srun has. When one of them fails, the first process
    names it on stderr with `advice` behind, and exits with code 1. One that fails by itself does not linger either.
    """
    os.environ[RUN_FOLDER] = str(folder)  # for the processes that this one starts
    try:
        with _in_company(devices, advice):
            yield
    except BaseException as error:
        # The library's leave-taking may wait for a peer that is gone; who has stopped by agreement waits for nobody.
        if devices > 1 and (isinstance(error, Exception) or torch.distributed.is_initialized()):
            end = threading.Timer(GRACE, os._exit, [2 if isinstance(error, InputError) else 1])
            end.daemon = True
            end.start()
        raise


@contextmanager
def _in_company(devices: int, advice: str) -> Iterator[None]:
    if "LOCAL_RANK" in os.environ:
        if STARTED_BY in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
            parent = int(os.environ.get(STARTED_BY, os.getppid()))
            threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
        yield
    elif devices == 1:
        yield
    else:
        variables = {
            "LOCAL_RANK": "0",
            "NODE_RANK": "0",
            "WORLD_SIZE": str(devices),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            STARTED_BY: str(os.getpid()),
        }
        os.environ.update(variables)
        try:
            with _Started(devices, advice):
                yield
        finally:
            for name in variables:
                os.environ.pop(name, None)


class _Started:
    """The processes that the first one starts, each the same command as its own, and the thread that watches them."""

    def __init__(self, devices: int, advice: str) -> None:
        command = [sys.executable, *sys.orig_argv[1:]]
        self.processes = [
            subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank)}) for rank in range(1, devices)
        ]
        self.advice = advice
        self.over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.over.set()
        self._wait(PATIENCE.total_seconds() if error is None else GRACE)  # they may have the same to say
        failure = self._failure()
        self._kill()
        if failure and isinstance(error, Exception) and not isinstance(error, InputError):
            # A peer's death reaches the first process as an error of gloo's or NCCL's: name the cause, not that alone.
            first_line = str(error).partition("\n")[0]
            print(f"rank 0: {type(error).__name__}: {first_line}", file=sys.stderr)
            self._name(failure)
            raise SystemExit(1) from None

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            if failure := self._failure():
                if not self.over.wait(GRACE):
                    self._kill()
                    self._name(failure)
                    os._exit(1)  # the main thread hears nothing within NCCL
                return

    def _failure(self) -> str | None:
        for rank, process in enumerate(self.processes, start=1):
            if code := process.poll():
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"rank {rank} (process {process.pid}) {how}"
        return None

    def _name(self, failure: str) -> None:
        print(f"error: {failure}, so the run ends; {self.advice}", file=sys.stderr, flush=True)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()  # nothing happens to one that has ended
            process.wait()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    print(f"error: rank {process_rank().rank} ends with the process that started it", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread hears nothing within NCCL


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
