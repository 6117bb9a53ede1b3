"""The least precision of what must not be rounded."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_dtype(values: Tensor) -> torch.dtype:
    """fp32, or fp64 of an fp64 model's values."""
    return torch.promote_types(values.dtype, torch.float32)


def full_precision(values: Tensor) -> Tensor:
    """The values in fp32, those of an fp64 model as they are."""
    return values.to(full_dtype(values))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within it nothing is rounded to autocast's dtype; the meta device has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast makes of matrix products there; None where it is off, as it always is on the meta device."""
    is_on = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None


def data_dtype(weight: Tensor) -> torch.dtype:
    """Of what a product with this weight gives: autocast's where it is on."""
    return autocast_dtype(weight.device) or weight.dtype
