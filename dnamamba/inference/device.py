"""Where a model computes: its device, the precision of its matrix products, and how many bases it reads at a time."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "fp32", "bf16"]
MICRO_TOKENS_GPU, MICRO_TOKENS_CPU = 262_144, 16_384
"""Bases in one forward pass, by default"""
CHUNK_SHARE = 4
"""One part of so many of a GPU's memory is for the activations of a chunk"""
ACTIVATION_BYTES = {"bf16": 36, "fp32": 72}
"""What a block keeps of a base for the backward pass, for each unit of d_model at expand 2: 66 GiB were measured for 8
blocks of 256 on 1,048,576 bases in bf16"""


@dataclass(frozen=True)
class Compute:
    """Where and how a model runs."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    """Of the matrix products; states, features, logits and likelihoods are fp32 in both"""
    micro_tokens: int
    """Bases in one forward pass, where nothing else says how many"""

    @property
    def accelerator(self) -> Literal["cpu", "gpu"]:
        """As `--accelerator` names the device"""
        return "gpu" if self.device.type == "cuda" else "cpu"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def put(self, array: np.ndarray) -> Tensor:
        """The array on the device, without waiting for what runs there."""
        tensor = torch.from_numpy(array)
        # From pinned memory, or the copy would wait for what the GPU has still to do.
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


def choose_compute(
    accelerator: Accelerator = "auto", precision: Precision = "auto", micro_tokens: int | None = None
) -> Compute:
    """What `--accelerator`, `--precision` and `--micro_tokens` mean here: "auto" is the GPU if there is one, with bf16,
    else the CPU with fp32. Raises `InputError` for a GPU that is not there and for `micro_tokens` below 1."""
    on_gpu = uses_gpu(accelerator)
    if micro_tokens is None:
        micro_tokens = MICRO_TOKENS_GPU if on_gpu else MICRO_TOKENS_CPU
    if micro_tokens < 1:
        raise InputError(f"--micro_tokens: {micro_tokens} is below 1")
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    return Compute(torch_device("gpu" if on_gpu else "cpu"), precision, micro_tokens)


def torch_device(accelerator: str) -> torch.device:
    """torch's name of "cpu" or "gpu"; of several GPUs the current one."""
    return torch.device("cuda" if accelerator == "gpu" else "cpu")


def device_name(device: torch.device) -> str:
    """For people: the GPU's, or how many threads of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def uses_gpu(accelerator: str) -> bool:
    """What `--accelerator` auto, cpu or gpu means here. Raises `InputError` for a GPU that is not there."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("--accelerator gpu: torch sees no CUDA device here; use --accelerator cpu, or a CUDA build")
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def chunk_length(compute: Compute, config: ModelConfig) -> int:
    """Bases of a chunk in training, by default: a power of two that fits (`CHUNK_SHARE`, `ACTIVATION_BYTES`), on a GPU
    from 16,384 up to `MICRO_TOKENS_GPU`, beyond which longer ones are no faster."""
    if compute.device.type != "cuda":
        return MICRO_TOKENS_CPU
    each = ACTIVATION_BYTES[compute.precision] * config.n_layer * config.d_model * max(config.expand, 2) // 2
    fitting = torch.cuda.get_device_properties(compute.device).total_memory // CHUNK_SHARE // each
    return min(max(1 << (fitting.bit_length() - 1), MICRO_TOKENS_CPU), MICRO_TOKENS_GPU)
