"""Ways to the gradient of a micro-batch. Each adds it to the parameters' `.grad`, and steps nothing."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.model.objectives.objective import LossSums
from dnamamba.model.tokens import PreparedBatch
from dnamamba.training.loss_weights import EQUAL, LossWeights


class MicroBatch(NamedTuple):
    """Windows that go through the model together; all (batch, length)."""

    inputs: Tensor
    """uint8 tokens"""
    targets: Tensor
    """uint8 tokens"""
    weights: Tensor | None = None
    """fp32: of each target in the loss, zero where it does not count; None where all that count weigh 1"""
    sequence_ids: Tensor | None = None
    """int32 for packed windows; None where a window is one sequence"""


Gradient = Callable[[LanguageModel, MicroBatch, Tensor], Tensor]
"""(model, micro-batch, scale () fp32) → () fp32 without a graph: adds the gradient of scale · Σ weight · −ln p(target)
to the parameters' `.grad`; returns Σ −ln p(target) over the counted targets, in nats, whatever their weights."""


def micro_batch(prepared: PreparedBatch, weights: LossWeights = EQUAL) -> MicroBatch:
    """With the weights of its targets."""
    return MicroBatch(prepared.inputs, prepared.targets, weights.of(prepared), prepared.sequence_ids)


def weighted_nll(loss: LossSums, weights: Tensor | None) -> Tensor:
    """() fp32, differentiable: Σ weight · −ln p(target), in nats."""
    return loss.nll_sum if weights is None else (torch.where(weights > 0, loss.nll, 0.0) * weights).sum()
