"""Which code runs a kernel: chosen once from the device and the request, never silently replaced.

    reference   plain PyTorch, any device, the only one in fp64
    cpu         numba for the scan; conv and norm are the fp32 reference, which PyTorch already threads and vectorises
    triton      Triton, on CUDA tensors (or on CPU tensors under TRITON_INTERPRET=1, for tests)
    cuda        CUDA C++, the scan only, compiled at first use by NVRTC

"auto" takes `reference` for fp64, else `cpu` on the CPU; on CUDA `cuda` for what it serves, else `triton`.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

_preferred: dict[str, str] = {}
"""What "auto" means for a kernel inside `preferred`."""

PACKAGES = ("reference", "cpu", "triton", "cuda")


@contextmanager
def preferred(kernel: str, backend: str) -> Iterator[None]:
    """Within it "auto" means `backend` for this kernel, in all threads: so a benchmark compares backends of a model.

    What "auto" means is settled when a kernel is called: its backward pass uses the same backend, within or outside.
    (Activation checkpointing calls it again in the backward pass, which must then be within, too.)
    """
    before = _preferred.get(kernel, "auto")
    _preferred[kernel] = backend
    try:
        yield
    finally:
        _preferred[kernel] = before


def requested(kernel: str, backend: str) -> str:
    """What a call for this backend asks for: inside `preferred` "auto" is the preferred one, else as it was given."""
    return _preferred.get(kernel, "auto") if backend == "auto" else backend


@functools.cache
def load(kernel: str, backend: str) -> ModuleType:
    """Import a backend's module for a kernel ("scan", "conv", "norm"); ValueError if there is none."""
    if backend not in PACKAGES:
        raise ValueError(f"backend must be 'auto', {', '.join(map(repr, PACKAGES))}; got {backend!r}")
    package = "reference" if backend == "cpu" and kernel != "scan" else backend
    name = f"dnamamba_kernels.{kernel}.{package}"
    if kernel == "scan" and package != "reference":
        name += ".scan"
    if kernel == "step":
        name = "dnamamba_kernels.scan.triton.step"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"the {backend} backend has no {kernel}: use backend='auto'")
    return importlib.import_module(name)


def candidates(kernel: str, backend: str, x: Tensor) -> list[str]:
    """Backends to try in order; `preferred` plays no part here (see `requested`)."""
    if backend != "auto":
        return [backend]
    if x.dtype == torch.float64:
        return ["reference"]
    if x.device.type == "cpu":
        return ["cpu"]
    if x.device.type == "cuda":
        return ["cuda", "triton"] if kernel == "scan" and _has_cuda_sources() else ["triton"]
    raise ValueError(f"no kernel for device {x.device}: pass backend='reference' to run plain PyTorch")


def choose(kernel: str, backend: str, x: Tensor, *others: Tensor) -> ModuleType:
    """The module that will run this kernel on these tensors; ValueError with every reason if none can."""
    reasons = []
    for candidate in candidates(kernel, backend, x):
        reason = _device_mismatch(candidate, x)
        if reason is None:
            module = load(kernel, candidate)
            reason = module.supports(x, *others) if hasattr(module, "supports") else None
            if reason is None:
                return module
        reasons.append(f"{candidate}: {reason}")
    raise ValueError(f"no backend can run this {kernel} ({'; '.join(reasons)})")


def describe(device: torch.device | str) -> str:
    """One line for a run's header: what "auto" runs on this device, with versions."""
    device = torch.device(device)
    if device.type == "cpu":
        version = importlib.metadata.version("numba")
        scan = f"cpu (numba {version}, {torch.get_num_threads()} threads)"
        return f"scan: {scan}, conv and norm: PyTorch {torch.__version__}"
    if device.type == "cuda":
        triton = f"triton {importlib.metadata.version('triton')}"
        scan = f"cuda (NVRTC {torch.version.cuda}) or {triton}" if _has_cuda_sources() else triton
        return f"scan: {scan}, conv and norm: {triton}, on {torch.cuda.get_device_name(device)}"
    return f"no kernels for {device.type}: backend='reference' (PyTorch {torch.__version__}) only"


@functools.cache
def _has_cuda_sources() -> bool:
    return importlib.util.find_spec("dnamamba_kernels.scan.cuda") is not None


def _device_mismatch(backend: str, x: Tensor) -> str | None:
    if backend == "cpu" and x.device.type != "cpu":
        return f"x is on {x.device}"
    if backend == "cuda" and x.device.type != "cuda":
        return f"x is on {x.device}"
    if backend == "triton" and x.device.type != "cuda":
        from triton import knobs

        if not knobs.runtime.interpret:
            return f"x is on {x.device} (only TRITON_INTERPRET=1 runs Triton on the CPU)"
    return None
