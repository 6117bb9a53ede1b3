"""What the rest of the application may know about the kernels; only the model itself calls them."""

import torch

from dnamamba_kernels import backends


def describe_kernels(device: torch.device | str) -> str:
    """One line for a run's header: which scan, convolution and norm run on this device, with versions."""
    return backends.describe(device)
