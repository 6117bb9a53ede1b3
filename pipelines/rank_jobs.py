"""Processes that train together, for `two_gpus.py`: jobs of `observed_training.py`, their groups, and what is kept."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measured import KeptResults

ROOT = Path(__file__).resolve().parent.parent
WORKER = ROOT / "pipelines" / "observed_training.py"
GPU_VARIABLES = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""NVLink multicast stays off."""
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
        return ranks_of(self.jobs)

    def end(self) -> None:
        """Whatever has not ended by itself."""
        for pid in self.ranks():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


class Bench(KeptResults):
    """The measurements of one command: where they go, and how jobs are run."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        super().__init__(arguments.out)
        self.scratch = scratch
        self.accelerator, self.seconds = arguments.accelerator, arguments.seconds
        self.sizes = ON_GPU if arguments.accelerator == "gpu" else ON_CPU
        self.sizes = self.sizes._replace(
            presets=tuple(arguments.presets or self.sizes.presets),
            lengths=tuple(arguments.lengths or self.sizes.lengths),
        )
        (scratch / "validation.bed").write_text(VALIDATION)
        self.devices = arguments.devices
        self.jobs = 0

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


def ranks_of(path: Path) -> list[int]:
    """The processes that train now, by rank: those with this path in their command, but for torchrun's agent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended, or is not ours
        if str(path).encode() in command and b"torch.distributed.run" not in command:
            [rank] = [item[11:] for item in variables if item.startswith(b"LOCAL_RANK=")] or [b"0"]
            found[int(rank)] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


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
