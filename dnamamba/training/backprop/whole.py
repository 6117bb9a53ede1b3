"""Backpropagation through whole windows: one forward pass, one backward pass."""

from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop import MicroBatch, weighted_nll


def whole(model: LanguageModel, batch: MicroBatch, scale: Tensor) -> Tensor:
    """Adds the gradient of scale · Σ weight · −ln p(target) to the parameters' `.grad`.

    Args:
        scale: () fp32.

    Returns:
        () fp32, without a graph: Σ −ln p(target) over the counted targets, in nats, whatever their weights.
    """
    loss = model.loss(batch.inputs, batch.targets, sequence_ids=batch.sequence_ids)
    (weighted_nll(loss, batch.weights) * scale).backward()
    return loss.nll_sum.detach()
