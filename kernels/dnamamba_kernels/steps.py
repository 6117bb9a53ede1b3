"""Which code runs one position of a kernel, for generation."""

from types import ModuleType

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.eager import observed


def step_module(kernel: str, x: Tensor, *inputs: Tensor | None) -> ModuleType | None:
    """The module with the Triton kernels of steps where they can run and nothing has to see inside; None where plain
    PyTorch has to: on the CPU, in fp64, for gradients, under torch.compile, or where `backends.preferred` says
    "reference"."""
    if not x.is_cuda or x.dtype == torch.float64 or backends.requested(kernel, "auto") == "reference":
        return None
    return None if observed(x, *inputs) else backends.load("step", "triton")
