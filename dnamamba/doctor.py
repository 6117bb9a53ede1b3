"""`dnamamba doctor`: what is installed, which devices and kernels there are, and whether token stores are whole."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dnamamba import __version__, verbs
from dnamamba.errors import InputError
from dnamamba.settings.fields import Settings

PACKAGES = ("torch", "triton", "numba", "numpy", "lightning", "safetensors", "polars")
"""Those whose versions change what a run does or what it can read."""


@dataclass(kw_only=True)
class DoctorSettings(Settings):
    """Shows what is installed, which devices and kernels there are, and whether token stores are whole."""

    store: list[Path] | None = None
    """Token stores (*.dnamamba folders): every block is read and compared with its checksum."""


main = verbs.main("doctor")


def doctor(settings: DoctorSettings) -> None:
    """Prints the report; with `--store`, verifies the stores' checksums (`InputError` for damaged ones)."""
    for line in [*describe_versions(), *describe_devices()]:
        print(line)
    if settings.store:
        verify_stores(settings.store)


def describe_versions() -> list[str]:
    """dnamamba, Python, the system and the packages of `PACKAGES`, one line each; nothing is imported for it."""
    lines = [f"dnamamba      {__version__}", f"Python        {platform.python_version()} on {platform.platform()}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name:<13} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:<13} not installed")
    return lines


def describe_devices() -> list[str]:
    """The CPU and every GPU that torch sees, with the kernels that the model would use on each."""
    import torch

    from dnamamba.model.kernels import describe_kernels

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"cpu           {cpus} cores, {torch.get_num_threads()} torch threads",
        f"  kernels     {describe_kernels('cpu')}",
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"{f'cuda:{index}':<13} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        lines.append(f"  kernels     {describe_kernels(f'cuda:{index}')}")
    if not torch.cuda.is_available():
        lines.append(f"cuda          none (torch {torch.__version__}, built for CUDA: {torch.version.cuda or 'no'})")
    return lines


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
