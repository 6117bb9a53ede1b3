"""Questions to ask of a model's parameters as a whole."""

from typing import Any

import torch.nn as nn

from dnamamba.alphabet import BASES
from dnamamba.model.language_model import MambaLM


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


def training_flops_per_token(model: MambaLM) -> int:
    """Floating-point operations that the forward and backward pass of one position need, from the model's shapes.

    - Matrices and convolution taps: 2 a weight forward (multiply, add), twice that backward, for inputs and weights.
      The head counts with its four rows of bases; looking up an embedding is no operation.
    - Scan: 7 a channel and state forward (Δ·A, exp, Δx·B, the update's and the output's multiply and add; D, the
      step's softplus and the gate are left out), twice that backward. They run on the general units, not the matrix
      units whose peak a fraction is taken of: a wide state lowers the fraction that can be reached.

    Left out as too small to matter: norms, activations, biases, the loss, the optimiser. What is computed twice
    (activation checkpointing, the scan's states in the backward pass) counts once.
    """
    forward = 2 * BASES * model.config.d_model
    for name, parameter in model.backbone.layers.named_parameters():  # type: ignore[attr-defined]
        if name.endswith("A_log"):
            forward += 7 * parameter.numel()
        elif parameter.ndim >= 2:
            forward += 2 * parameter.numel()
    return 3 * forward


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers, tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
