"""What the rest of the application may know about the kernels; only the model itself calls them."""

from collections.abc import Iterator

import torch

from dnamamba_kernels import backends
from dnamamba_kernels.self_test import OperatorCheck, compare
from dnamamba_kernels.speed import Timing, timings

__all__ = ["OperatorCheck", "Timing", "compare_kernels", "describe_kernels", "time_kernels"]


def describe_kernels(device: torch.device | str) -> str:
    """One line for a run's header: which scan, convolution and norm run on this device, with versions."""
    return backends.describe(device)


def compare_kernels(device: torch.device | str) -> Iterator[OperatorCheck]:
    """Each operator, backend and dtype on a device against the reference in fp64."""
    return compare(torch.device(device))


def time_kernels(device: torch.device | str) -> Iterator[Timing]:
    """This machine's times next to the published ones; none on a GPU with too little free memory."""
    return timings(torch.device(device))
