"""How much each base weighs in the training loss: by its region class and by the soft mask."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dnamamba.alphabet import BASES
from dnamamba.model.tokens import PreparedBatch


class LossWeights:
    """A weight for each class of bases; a base's is its class's, times `soft_mask` where it is soft-masked.

    Args:
        soft_mask: of soft-masked bases, compared with others.
        classes: of each region class, by its number; without, batches have no classes and all bases weigh alike.
    """

    def __init__(self, soft_mask: float = 1.0, classes: Sequence[float] = (1.0,)) -> None:
        self.soft_mask = soft_mask
        self.table = tuple((weight, weight * soft_mask) for weight in classes)
        """(classes, 2): without and with the soft mask"""
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def of(self, prepared: PreparedBatch) -> Tensor | None:
        """(batch, length) fp32: the weight of each target, zero where it does not count; None where all that count
        weigh 1."""
        if all(weight == 1.0 for pair in self.table for weight in pair):
            return None
        if prepared.classes is None:
            [(plain, masked)] = self.table
            weights = torch.where(prepared.soft_mask, masked, plain)
        else:
            weights = self._table(prepared.targets.device, torch.float32)[
                prepared.classes.int(), prepared.soft_mask.int()
            ]
        return weights * (prepared.targets < BASES)

    def count(self, prepared: PreparedBatch) -> Tensor:
        """(2 · classes,) int64: how many targets that count are of each class, without and with the soft mask."""
        counted = prepared.targets < BASES
        sums = []
        for number in range(len(self.table)):
            own = counted if prepared.classes is None else counted & (prepared.classes == number)
            masked = (own & prepared.soft_mask).sum()
            sums += [own.sum() - masked, masked]
        return torch.stack(sums)

    def total(self, counts: Tensor) -> Tensor:
        """() fp64: the weight of so many targets, as `count` counts them."""
        return (counts.double() * self._table(counts.device, torch.float64).flatten()).sum()

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self._tables:
            self._tables[device, dtype] = torch.tensor(self.table, device=device, dtype=dtype)
        return self._tables[device, dtype]


EQUAL = LossWeights()
"""All bases weigh 1"""
