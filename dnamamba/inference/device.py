"""Which device a job runs on, and how much goes through a model at a time there."""

import torch

from dnamamba.errors import InputError

MICRO_TOKENS_GPU, MICRO_TOKENS_CPU = 262_144, 16_384
"""Bases in one forward pass, by default"""


def uses_gpu(accelerator: str) -> bool:
    """What `--accelerator` auto, cpu or gpu means here. Raises `InputError` for a GPU that is not there."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator gpu: torch sees no CUDA device here; use --accelerator cpu, or a CUDA build")
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
