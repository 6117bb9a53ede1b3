"""Which code runs an operator: chosen once from the device and the request, never silently replaced.

    reference   plain PyTorch, any device, the only one in fp64
    cpu         numba for the scan; the others are the fp32 reference, which PyTorch already threads and vectorises
    triton      Triton, on GPUs of NVIDIA and AMD (or on CPU tensors under TRITON_INTERPRET=1, for tests)
    cuda        CUDA C++, the scan only, compiled at first use by NVRTC

A backend of an operator is the `BACKEND` of the module of its name in the operator's folder; `protocol.py` there says
what it has to do. Another GPU vendor's is such a module, a name in NAMES, and a line in AUTO.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dnamamba_kernels.context_parallel import current_ranks
from dnamamba_kernels.eager import observed

NAMES = ("reference", "cpu", "triton", "cuda")
AUTO = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "triton"),
    "rocm": ("triton", "reference"),
}
"""Platform -> what "auto" tries in this order; data in fp64, and those of the meta device, take `reference`"""

_preferred: dict[str, str] = {}
"""What "auto" means for an operator inside `preferred`."""


def platform(device: torch.device) -> str:
    """The device's type; "rocm" for AMD GPUs, which PyTorch calls "cuda", too."""
    return "rocm" if device.type == "cuda" and torch.version.hip else device.type


@contextmanager
def preferred(operator: str, backend: str) -> Iterator[None]:
    """Within it "auto" means `backend` for this operator, in all threads: so a benchmark compares backends of a model.

    What "auto" means is settled when an operator is called: its backward pass uses the same backend, within or outside.
    (Activation checkpointing calls it again in the backward pass, which must then be within, too.)
    """
    before = _preferred.get(operator, "auto")
    _preferred[operator] = backend
    try:
        yield
    finally:
        _preferred[operator] = before


def requested(operator: str, backend: str) -> str:
    """The backend that a call requests: inside `preferred` "auto" is the preferred one, else as it was given."""
    return _preferred.get(operator, "auto") if backend == "auto" else backend


@functools.cache
def load(operator: str, backend: str) -> Any:
    """An operator's backend ("scan", "conv", … is its folder), imported; ValueError if there is none."""
    if backend not in NAMES:
        raise ValueError(f"backend must be 'auto', {', '.join(map(repr, NAMES))}; got {backend!r}")
    if not _exists(operator, backend):
        raise ValueError(f"the {backend} backend has no {operator}: use backend='auto'")
    return importlib.import_module(f"dnamamba_kernels.{operator}.{backend}").BACKEND


def candidates(operator: str, backend: str, dtype: torch.dtype, where: str) -> tuple[str, ...]:
    """Backends to try in order on a platform; `preferred` plays no part here (see `requested`)."""
    if backend != "auto":
        return (backend,)
    return ("reference",) if dtype == torch.float64 or where == "meta" else of(operator, where)


def choose(operator: str, backend: str, x: Tensor, *others: Tensor) -> Any:
    """The backend that will run this operator on these tensors, within `context_parallel` over its ranks; ValueError
    with every reason if none can."""
    where, reasons = platform(x.device), []
    for candidate in candidates(operator, backend, x.dtype, where):
        reason = _absent(candidate, where)
        if reason is None:
            found = load(operator, candidate)
            reason = found.supports(x, *others)
            if reason is None:
                return _over_ranks(operator, found)
        reasons.append(f"{candidate}: {reason}")
    raise ValueError(f"no backend can run this {operator} ({'; '.join(reasons)})")


def _over_ranks(operator: str, found: Any) -> Any:
    """The backend itself, or, within `context_parallel` and of an operator that mixes positions, the one of parts."""
    ranks = current_ranks()
    parts = None if ranks is None else _of_parts(operator)
    return found if parts is None else parts(found, ranks)


@functools.cache
def _of_parts(operator: str) -> Any:
    """An operator's backend of a rank's part, made of another backend and the ranks; None where positions do not
    mix."""
    if not _exists(operator, "context_parallel"):
        return None
    return importlib.import_module(f"dnamamba_kernels.{operator}.context_parallel").OVER_RANKS


def choose_step(operator: str, reference: Any, x: Tensor, *inputs: Tensor | None) -> Any:
    """The backend of one position, for generation: `triton` on GPUs where nothing has to see inside, else `reference`.

    The latter is plain PyTorch: on the CPU, in fp64, for gradients, under torch.compile, or where `preferred` says so.
    """
    if not x.is_cuda or x.dtype == torch.float64 or requested(operator, "auto") == "reference":
        return reference
    return reference if observed(x, *inputs) or not _has_triton() else load(operator, "triton")


def describe(device: torch.device | str) -> str:
    """One line for a run's header: what "auto" runs on this device, with versions."""
    device = torch.device(device)
    where = platform(device)
    if where == "cpu":
        version = importlib.metadata.version("numba")
        scan = f"cpu (numba {version}, {torch.get_num_threads()} threads)"
        return f"scan: {scan}, conv and norm: PyTorch {torch.__version__}"
    if where not in AUTO:
        return f"no kernels for {where}: backend='reference' (PyTorch {torch.__version__}) only"
    versions = {"cuda": f"cuda (NVRTC {torch.version.cuda})", "reference": f"PyTorch {torch.__version__}"}
    if _has_triton():
        versions["triton"] = f"triton {importlib.import_module('triton').__version__}"
    scan, others = (
        " or ".join(versions[name] for name in of(operator, where) if name in versions) for operator in ("scan", "conv")
    )
    return f"scan: {scan}, conv and norm: {others}, on {torch.cuda.get_device_name(device)}"


@functools.cache
def of(operator: str, where: str) -> tuple[str, ...]:
    """What "auto" tries for an operator on a platform, in order: those of AUTO that it has."""
    if where not in AUTO:
        raise ValueError(f"no kernel for device {where}: pass backend='reference' to run plain PyTorch")
    return tuple(name for name in AUTO[where] if _exists(operator, name))


def _exists(operator: str, backend: str) -> bool:
    return importlib.util.find_spec(f"dnamamba_kernels.{operator}.{backend}") is not None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _absent(backend: str, where: str) -> str | None:
    """Why the backend cannot run on this platform, or None if it can."""
    if backend in ("cpu", "cuda"):
        return None if where == backend else f"x is on {where}"
    if backend == "triton":
        if not _has_triton():
            return "Triton is not installed"
        if where not in ("cuda", "rocm"):
            from triton import knobs

            return None if knobs.runtime.interpret else f"x is on {where} (TRITON_INTERPRET=1 runs Triton on the CPU)"
    return None
