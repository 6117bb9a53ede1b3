"""Checks of arguments that operators share; each ValueError says what was expected and what to do."""

import torch
from torch import Tensor

DATA_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of states and arithmetic: fp64 for fp64 data, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_rows(name: str, values: Tensor, shape: tuple[int, ...], meaning: str, x: Tensor) -> None:
    """Check shape, floating dtype, device and unit stride of the last dimension."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must be {meaning} = {shape}, got {tuple(values.shape)}")
    if values.dtype not in DATA_DTYPES:
        raise ValueError(f"{name} must be float32, bfloat16 or float16, got {values.dtype}")
    if values.device != x.device:
        raise ValueError(f"{name} is on {values.device}, x on {x.device}: move one of them")
    if values.stride(-1) != 1 and values.shape[-1] != 1:
        strides = values.stride()
        raise ValueError(
            f"{name} must have unit stride in its last dimension, got strides {strides}: call .contiguous()"
        )


def check_sequence_ids(sequence_ids: Tensor | None, x: Tensor) -> None:
    """Check that ids are (batch, length) int32 on x's device."""
    if sequence_ids is None:
        return
    shape, given = tuple(x.shape[:2]), tuple(sequence_ids.shape)
    if given != shape or sequence_ids.dtype != torch.int32:
        raise ValueError(f"sequence_ids must be (batch, length) = {shape} int32, got {given} {sequence_ids.dtype}")
    if sequence_ids.device != x.device:
        raise ValueError(f"sequence_ids is on {sequence_ids.device}, x on {x.device}")


def unit_stride(values: Tensor) -> Tensor:
    """The tensor itself, or a copy if its last dimension has another stride than 1: a compiler may have changed it, and
    gradients of expanded tensors have 0."""
    return values if values.stride(-1) == 1 else values.contiguous()
