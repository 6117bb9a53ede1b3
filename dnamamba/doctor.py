"""`dnamamba doctor`: what is installed, what works on this machine and how fast, and whether token stores are whole."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from dnamamba import __version__, verbs
from dnamamba.errors import InputError
from dnamamba.settings.fields import Settings

if TYPE_CHECKING:
    from dnamamba.model.kernels import OperatorCheck

PACKAGES = {
    "torch": "everything but genomes",
    "numba": "the scan on a CPU",
    "triton": "kernels on GPUs (comes with CUDA builds of torch)",
    "numpy": "everything",
    "lightning": "pretrain, finetune",
    "safetensors": "checkpoints",
    "polars": "tables of score, mutagenesis, embed, predict; likelihood --format parquet; the Python API's frames",
    "matplotlib": "pictures of runs and mutagenesis",
    "pyfaidx": "reading a few regions of a large FASTA without a token store",
    "biopython": "GenBank files; amino acids of annotated variants",
    "scikit-learn": "metrics and baselines of finetune",
    "tensorboard": "loss curves while a run trains",
    "snakemake": "workflows of pipelines/ (pip install 'dnamamba[pipelines]')",
    "pyBigWig": "tests of our bigWig files with another reader (pip install 'dnamamba[dev]')",
    "transformers": "models that `export` has written",
}
"""Package -> what needs it"""
PROGRAMS = {
    "a C compiler": (("cc", "gcc", "clang"), "Triton's kernels on GPUs, which build their launcher with it"),
    "git": (("git",), "the commit in a run's environment.json"),
    "a browser": (("chromium", "chromium-browser", "google-chrome"), "tests of HTML pages"),
}
"""Program -> the commands that are looked for, what needs it"""
WIDTH = 14


@dataclass(kw_only=True)
class DoctorSettings(Settings):
    """Shows what is installed, tests the kernels of each device, times them, and verifies token stores."""

    store: list[Path] | None = None
    """Token stores (*.dnamamba folders): every block is read and compared with its checksum."""


main = verbs.main("doctor")


def doctor(settings: DoctorSettings) -> None:
    """Prints the report. Ends with exit code 1 where a kernel's result is wrong, with an `InputError` for a damaged
    store of `--store`."""
    for line in describe_versions():
        print(line)
    failed = 0
    for device in devices():
        print(f"\n{describe_device(device)}", flush=True)
        wrong = check_kernels(device)
        failed += wrong
        if not wrong:
            show_speed(device)
    missing = describe_missing()
    print("\nmissing" if missing else "\nmissing       nothing")
    for line in missing:
        print(line)
    if settings.store:
        print("\ntoken stores", flush=True)
        verify_stores(settings.store)
    if failed:
        print(f"\n{failed} kernels are wrong or do not run on this machine", flush=True)
        raise SystemExit(1)


def _line(name: str, text: object) -> str:
    return f"{name:<{WIDTH}}{text}"


def describe_versions() -> list[str]:
    """dnamamba, Python, the system and the packages of `PACKAGES` that are there, one line each; nothing is imported
    for it."""
    lines = [_line("dnamamba", __version__), _line("Python", f"{platform.python_version()} on {platform.platform()}")]
    return lines + [_line(name, found) for name in PACKAGES if (found := _version(name))]


def describe_missing() -> list[str]:
    """The packages and programs that are not there, each with what needs it."""
    lines = [_line(name, f"for {use}") for name, use in PACKAGES.items() if _version(name) is None]
    for name, (commands, use) in PROGRAMS.items():
        if not any(shutil.which(command) for command in commands):
            lines.append(_line(name, f"for {use}"))
    return lines


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> list[str]:
    """cpu and every GPU that torch sees, as torch writes them."""
    import torch

    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def describe_device(device: str) -> str:
    """Two lines: what it is, and the kernels that the model uses on it."""
    import torch

    from dnamamba.model.kernels import describe_kernels

    if device == "cpu":
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        what = f"{cpus} cores, {torch.get_num_threads()} torch threads"
        if not torch.cuda.is_available():
            built = torch.version.cuda
            what += f"; no GPU ({f'torch is built for CUDA {built}' if built else 'this torch is built without CUDA'})"
    else:
        properties = torch.cuda.get_device_properties(device)
        what = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{_line(device, what)}\n{_line('  kernels', describe_kernels(device))}"


def check_kernels(device: str) -> int:
    """Compares each operator, backend and dtype with the reference, a line each; returns how many are wrong."""
    from dnamamba.model.kernels import compare_kernels

    print("  operators against the reference in fp64: largest relative error of outputs, of gradients")
    if device != "cpu":
        print("  (compiled when first used: some minutes, once)", flush=True)
    failed = 0
    for found in compare_kernels(device):
        print(f"  {found.operator:<12}{found.backend:<8}{_dtype(found):<6}{_verdict(found)}", flush=True)
        failed += not found.passed
    return failed


def _dtype(found: "OperatorCheck") -> str:
    return {"float32": "fp32", "bfloat16": "bf16"}[str(found.dtype).removeprefix("torch.")]


def _verdict(found: "OperatorCheck") -> str:
    if found.failure is not None:
        return f"FAILED: {found.failure}"
    errors = f"{found.outputs:.1e}  {found.gradients:.1e}"
    return f"{errors}  ok" if found.passed else f"{errors}  WRONG: more than {found.limit:.0e}"


def show_speed(device: str) -> None:
    """Times next to the published ones, a line each."""
    from dnamamba.model.kernels import time_kernels

    lines = []
    for found in time_kernels(device):
        published = found.published
        shape = " x ".join(f"{size:,}" for size in published.shape)
        here, there = (f"{each.forward:.3g}, {each.both:.3g}" for each in (found, published))
        where = f"{published.unit}; {published.machine}"
        lines.append(f"  {published.operator:<12}{shape:<20} {here:<14}{there:<14}{where}")
    print("  forward, forward and backward: here; published, where" if lines else "  not timed: too little free memory")
    for line in lines:
        print(line)


def verify_stores(paths: Sequence[Path]) -> None:
    """Checks every block of every store: one line for each whole one, at the end an `InputError` for the others."""
    from dnamamba.genome.store import TokenStore

    damaged = []
    for path in paths:
        try:
            store = TokenStore(path)
            store.verify()
        except InputError as error:
            damaged.append(str(error))
        else:
            print(f"{path}: whole, {store.bases:,} bases")
    if damaged:
        raise InputError("; ".join(damaged))


if __name__ == "__main__":
    verbs.run(main)
