"""What is counted or grouped over all of a model's parameters."""

from typing import Any

import torch.nn as nn

from dnamamba.alphabet import BASES
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers.mixer import Mixer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: matrices decay, everything that sets a scale or a time constant does not.

    Without decay: vectors (biases, norm weights, Mamba's D) and what a mixer names, too (its A_log). Decayed:
    projections, convolution taps and the embedding with the head tied to it, as mamba-ssm's marks (`_no_weight_decay`)
    leave them.
    """
    mixers = (module for module in model.modules() if isinstance(module, Mixer))
    undecayed = {id(parameter) for mixer in mixers for parameter in mixer.undecayed_parameters()}
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for parameter in model.parameters():  # a tied weight comes once
        if parameter.requires_grad:
            (keep if parameter.ndim < 2 or id(parameter) in undecayed else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]


def training_flops_per_token(model: LanguageModel, length: int) -> int:
    """Floating-point operations that the forward and backward pass of one position need, from the model's shapes, the
    mean over windows of this length.

    Forward, each mixer says its own, twice where both strands are read; the head counts with its four rows of bases;
    looking up an embedding is no operation, that of a k-mer is a product. Backward takes twice that, for inputs and
    weights. Of these a scan's run on the general units, not the matrix units whose peak a fraction is taken of: a wide
    state lowers the fraction that can be reached.

    Left out as too small to matter: norms, activations, biases, the loss, the optimiser. What is computed twice
    (activation checkpointing, the scan's states in the backward pass) counts once.
    """
    strands = 2 if model.config.rc_equivariant else 1
    mixers = sum(block.mixer.flops_per_token(length) for block in model.backbone.layers)
    context = 0 if model.backbone.context is None else model.backbone.context.weight.numel()
    return 3 * strands * (mixers + 2 * context + 2 * BASES * model.config.d_model)


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers, tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
