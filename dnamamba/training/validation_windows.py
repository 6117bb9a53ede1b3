"""The validation windows one by one: where each lies, what it holds, and how well it is predicted."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from dnamamba.alphabet import SOFT_MASK_BIT
from dnamamba.genome.region_classes import UNCLASSED
from dnamamba.training.data import EvaluationSet
from dnamamba.training.validation import bits_per_base

Row = dict[str, str | float | int]


class WindowTable:
    """Makes the rows of validation_windows.csv. What does not change from validation to validation is read once."""

    def __init__(self, sets: Sequence[EvaluationSet]) -> None:
        self._facts = [facts for evaluated in sets for facts in _facts(evaluated)]

    def rows(self, sums: Tensor, step: int) -> Iterator[Row]:
        """Those of the validation after `step`; `sums` are `ValidationScores.windows`."""
        for facts, (nats, bases) in zip(self._facts, sums.tolist(), strict=True):
            yield {"step": step, **facts, "bits_per_base": bits_per_base(nats, bases), "bases": int(bases)}


def _facts(evaluated: EvaluationSet) -> Iterator[Row]:
    """Of each window: where it lies, its repeats, and the class of region that most of its bases are of."""
    store, width = evaluated.plan.store, evaluated.plan.length + 1
    starts = evaluated.plan.positions(0, evaluated.indices)
    contigs = np.searchsorted([contig.offset for contig in store.contigs], starts, side="right") - 1
    for start, number in zip(starts.tolist(), contigs.tolist(), strict=True):
        contig, region = store.contigs[number], ""
        share: float | str = ""
        if evaluated.regions is not None:
            bases = evaluated.regions.bases(start, start + width)
            region = (*evaluated.regions.names, UNCLASSED)[int(bases.argmax())]
            share = float(bases.max() / width)
        yield {
            "genome": evaluated.name,
            "contig": contig.name,
            "start": start - contig.offset,
            "end": start - contig.offset + width,
            "soft_masked": np.count_nonzero(store.tokens[start : start + width] >= SOFT_MASK_BIT) / width,
            "region": region,
            "region_share": share,
        }
