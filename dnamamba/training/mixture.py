"""Several genomes, or classes of regions, as one plan of samples: which comes when is computed, never drawn.

The samples of a mixture follow a fixed pattern of PERIOD samples, repeated for ever; each genome has as many of them as
its weight says, spread evenly. So the genome of sample s, and the number of that genome's samples before it, follow
from s alone, and each genome's samples are the endless stream of its own epochs: nothing to store, and neither resuming
nor workers nor devices change anything.
"""

from collections.abc import Sequence

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.windows import Window
from dnamamba.training.data import Rows, SamplePlan, SampleStream, joined

PERIOD = 1 << 14
"""Samples of the pattern: weights are rounded to this fraction of the samples."""


def shares(weights: Sequence[float]) -> np.ndarray:
    """(genomes,) int64: samples of each genome in a period, by largest remainder, so that they add up to PERIOD.

    Raises `InputError` when a genome would not get any.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * PERIOD
    counts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    counts[by_remainder[: PERIOD - counts.sum()]] += 1
    if not counts.all():
        share = np.min(exact) / PERIOD
        raise InputError(
            f"a weight of the mixture gives its genome or class {share:.1e} of the samples; 1e-4 is the least"
        )
    return counts


def pattern(counts: np.ndarray) -> np.ndarray:
    """(PERIOD,) int64 genome numbers: the k-th of n samples of a genome lies as near as can be to (k + ½) / n."""
    wanted = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(wanted, kind="stable")]


class MixturePlan:
    """A training plan whose epoch is one period of the pattern: sample s is index s mod PERIOD of epoch s div PERIOD.

    Args:
        names, plans, weights: of the genomes; the plans are training plans of one window length.
    """

    def __init__(self, names: Sequence[str], plans: Sequence[SamplePlan], weights: Sequence[float]) -> None:
        self.names = list(names)
        self.streams = [SampleStream(plan) for plan in plans]
        self.shares = shares(weights)
        self._pattern = pattern(self.shares)
        # The sample's number among those of its own genome.
        self._number = np.empty(PERIOD, np.int64)
        for genome, count in enumerate(self.shares):
            self._number[self._pattern == genome] = np.arange(count)

    def epoch_size(self, epoch: int) -> int:
        return PERIOD

    def batch(self, epoch: int, indices: np.ndarray) -> Rows:
        """What the genomes' plans give, for consecutive `indices`: rows of all genomes, mixed as the pattern says."""
        positions, batches = [], []
        for genome, own, ranges in self._located(epoch, indices):
            positions.append(own)
            batches += [self.streams[genome].plan.batch(own_epoch, numbers) for own_epoch, numbers in ranges]
        rows = joined(batches)
        if len(batches) == 1:
            return rows
        order = np.argsort(np.concatenate(positions))
        return tuple(None if field is None else field[order] for field in rows)

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a sample lies; contigs are called GENOME/CONTIG, those of a part without a name as they are."""
        [(genome, _, [(own_epoch, numbers)])] = self._located(epoch, np.array([index]))
        windows = self.streams[genome].plan.windows(own_epoch, int(numbers[0]))
        name = self.names[genome]
        return [window._replace(contig=f"{name}/{window.contig}" if name else window.contig) for window in windows]

    def _located(self, epoch: int, indices: np.ndarray) -> list[tuple[int, np.ndarray, list[tuple[int, np.ndarray]]]]:
        """A genome each: its number, its positions among `indices`, and (epoch, indices) of its own windows."""
        assert (np.diff(indices) == 1).all()
        genomes = self._pattern[indices]
        found = []
        for genome in np.unique(genomes).tolist():
            own = np.flatnonzero(genomes == genome)
            first = epoch * int(self.shares[genome]) + int(self._number[indices[own[0]]])
            found.append((genome, own, self.streams[genome].locate(first, len(own))))
        return found
