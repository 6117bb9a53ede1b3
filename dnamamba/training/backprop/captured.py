"""Gradients of micro-batches of one shape, recorded once as a CUDA graph and replayed."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnamamba.inference.graphs import Record, Recording, own_casts, record
from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop import Gradient, MicroBatch


class Captured:
    """A gradient function that computes as `gradient` does, to the bit, without the host's part.

    The first micro-batch of a shape goes through `gradient`, which compiles kernels; the second is recorded, and from
    then on replayed. Recordings share memory and are freed when windows of another length come: in a length warm-up the
    earlier ones do not come back. Every parameter's `.grad` is there beforehand and stays where it is.
    """

    def __init__(self, gradient: Gradient, record: Record = record) -> None:
        self.gradient, self.record = gradient, record
        self.length = 0
        self.free()

    def free(self) -> None:
        """Forgets all recordings and gives back their memory."""
        self._seen: set[Any] = set()
        self._recordings: dict[Any, Recording] = {}
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def __call__(self, model: LanguageModel, batch: MicroBatch, scale: Tensor) -> Tensor:
        """As `Gradient`; what is returned holds until the next call."""
        if batch.inputs.shape[1] != self.length:
            self.free()
            self.length = batch.inputs.shape[1]
        shape = tuple(None if field is None else (field.shape, field.dtype) for field in batch)
        if shape not in self._seen:
            self._seen.add(shape)
            with own_casts(scale.device.type):
                return self.gradient(model, batch, scale)
        if shape not in self._recordings:
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "it adds to what is there"
            gradient = partial(self.gradient, model)
            self._recordings[shape] = Recording(gradient, (batch, scale), self.record, self._pool)
        nll_sum: Tensor = self._recordings[shape].replay((batch, scale))
        return nll_sum
