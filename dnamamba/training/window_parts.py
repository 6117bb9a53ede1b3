"""A step's windows made ready for the model part by part: some of them, or a chunk of their positions at a time.

The tokens stay where they are, one byte a base: in the host's memory for windows that go through in chunks. Nothing
else of their whole length is ever made there or on the device.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dnamamba.alphabet import PAD
from dnamamba.model.objectives.objective import Objective
from dnamamba.model.tokens import PreparedBatch
from dnamamba.training.data import WindowBatch
from dnamamba.training.loss_weights import EQUAL, LossWeights

COUNTED_AT_ONCE = 1 << 24
"""Positions whose masks stand on the device together while they are counted"""


class WindowParts:
    """Windows of one length and their parts on `device`; positions are those of the strand that is read. `training`:
    as of `Objective.prepare_batch`."""

    def __init__(
        self, batch: WindowBatch, objective: Objective, device: torch.device, *, training: bool = False
    ) -> None:
        self.batch, self.objective, self.device, self.training = batch, objective, device, training
        self.count, self.length = batch.tokens.shape[0], batch.tokens.shape[1] - 1

    def split(self, windows: int) -> Iterator["WindowParts"]:
        """So many windows at a time, and the rest."""
        for first in range(0, self.count, windows):
            rows = slice(first, first + windows)
            part = WindowBatch._make(None if field is None else field[rows] for field in self.batch)
            yield WindowParts(part, self.objective, self.device, training=self.training)

    def whole(self) -> PreparedBatch:
        """All positions."""
        batch = self.batch.on(self.device)
        tensors = batch.tokens, batch.reverse_complement, batch.sequence_ids, batch.keys
        prepared = self.objective.prepare_batch(*tensors, training=self.training)
        return prepared if batch.classes is None else self._classed(prepared, batch.classes)

    def chunk(self, first: int, last: int) -> PreparedBatch:
        """Positions [first, last) of each window, with their targets; of an objective that predicts the next base."""
        if (first, last) == (0, self.length):
            return self.whole()
        prepared = self.objective.prepare_batch(*self.stored(first, last + 1), training=self.training)
        classes = self.batch.classes
        return prepared if classes is None else self._classed(prepared, self._cut(classes, first, last + 1))

    def stored(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens [first, last) of each window on the device, (windows, last − first) uint8, counted on the strand that
        is read but as they are stored; which to reverse-complement; and the ids, of the same shape, if any."""
        batch = self.batch
        ids = None if batch.sequence_ids is None else self._cut(batch.sequence_ids, first, last)
        flags = batch.reverse_complement.to(self.device, non_blocking=True)
        return self._cut(batch.tokens, first, last), flags, ids

    def continues(self, position: int) -> Tensor | None:
        """(windows,) bool: the token at `position` belongs to the same sequence as the one before; None where all
        do."""
        if self.batch.sequence_ids is None:
            return None
        before, here = self._cut(self.batch.sequence_ids, position - 1, position + 1, on_host=True).unbind(1)
        same = before == here
        return None if bool(same.all()) else same.to(self.device, non_blocking=True)

    def counts(self, weights: LossWeights = EQUAL) -> Tensor:
        """(3,) fp64 over all windows: targets that are A, C, G or T, inputs that are no padding, and the targets'
        weights."""
        read = torch.zeros((), dtype=torch.int64, device=self.device)
        counts = torch.zeros(2 * len(weights.table), dtype=torch.int64, device=self.device)
        for windows in self.split(max(COUNTED_AT_ONCE // self.length, 1)):
            for first in range(0, self.length, COUNTED_AT_ONCE):
                part = windows.chunk(first, min(first + COUNTED_AT_ONCE, self.length))
                counts += weights.count(part)
                read += (part.inputs != PAD).sum()
        return torch.stack([counts.sum().double(), read.double(), weights.total(counts)])

    def _classed(self, prepared: PreparedBatch, classes: Tensor) -> PreparedBatch:
        """With the classes of its targets, of those of its bases as they are stored, (windows, positions + 1)."""
        flags = self.batch.reverse_complement.to(self.device, non_blocking=True)
        return prepared._replace(classes=torch.where(flags[:, None], classes.flip(1), classes)[:, 1:])

    def _cut(self, values: Tensor, first: int, last: int, on_host: bool = False) -> Tensor:
        """Window by window: slices of pinned memory are copied without making the host wait, which it would for windows
        that are on the device."""
        width = values.shape[1]
        found = torch.empty(
            (len(values), last - first), dtype=values.dtype, device=values.device if on_host else self.device
        )
        for row, window, flag in zip(found, values, self.batch.reverse_complement.tolist(), strict=True):
            row.copy_(window[width - last : width - first] if flag else window[first:last], non_blocking=True)
        return found
