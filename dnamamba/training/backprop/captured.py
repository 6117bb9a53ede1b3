"""Gradients of micro-batches of one shape, recorded once as a CUDA graph and replayed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dnamamba.inference.graphs import Work, own_casts, record
from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop import Gradient, MicroBatch

Record = Callable[[Work, Any], Work]
"""`dnamamba.inference.graphs.record`, or what tests put in its place."""


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
        self._recordings: dict[Any, _Recording] = {}
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
            self._recordings[shape] = _Recording(self.gradient, model, batch, scale, self.record, self._pool)
        return self._recordings[shape].replay(batch, scale)


class _Recording:
    """The gradient of one micro-batch after the other, read from where the first was."""

    def __init__(
        self, gradient: Gradient, model: LanguageModel, batch: MicroBatch, scale: Tensor, record: Record, pool: Any
    ) -> None:
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad), "a graph adds to what is there"
        fields = {name: field.clone() for name, field in batch._asdict().items() if field is not None}
        self.batch = inputs = MicroBatch(**fields)
        self.scale = factor = scale.clone()
        self.nll_sum = result = torch.zeros_like(scale)

        def work() -> None:
            result.copy_(gradient(model, inputs, factor))

        self._run = record(work, pool)

    def replay(self, batch: MicroBatch, scale: Tensor) -> Tensor:
        for kept, new in zip((*self.batch, self.scale), (*batch, scale), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        self._run()
        return self.nll_sum
