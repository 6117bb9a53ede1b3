"""Backpropagation through whole windows: one forward pass, one backward pass."""

import torch
from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop import Backward, MicroBatch


def whole(model: LanguageModel, batch: MicroBatch, scale: Tensor, backward: Backward = Tensor.backward) -> Tensor:
    """Adds the gradient of scale · Σ weight · −ln p(target) to the parameters' `.grad`.

    Args:
        scale: () fp32.

    Returns:
        () fp32, without a graph: Σ −ln p(target) over the counted targets, in nats, whatever their weights.
    """
    loss = model.loss(batch.inputs, batch.targets, sequence_ids=batch.sequence_ids)
    weighted = loss.nll_sum
    if batch.weights is not None:
        weighted = (torch.where(batch.weights > 0, loss.nll, 0.0) * batch.weights).sum()
    backward(weighted * scale)
    return loss.nll_sum.detach()
