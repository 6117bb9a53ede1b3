"""Questions to ask of a model's parameters as a whole."""

from typing import Any

import torch.nn as nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: matrices decay, everything that sets a scale or a time constant does not.

    Without decay: A_log, D, biases (dt's too) and norm weights. Decayed: projections, convolution taps and the
    embedding with the head tied to it, as mamba-ssm's marks (`_no_weight_decay`) leave them.
    """
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():  # a tied weight comes once
        if parameter.requires_grad:
            (keep if parameter.ndim < 2 or name.endswith("A_log") else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers, tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
