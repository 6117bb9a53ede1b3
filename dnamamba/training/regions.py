"""Windows drawn, and bases weighed, by class of region: what `--regions`, its shares and its weights mean.

The classes that have a share are parts of a mixture (`dnamamba.training.mixture`): which class a sample shows follows
from its number, and each class goes through epochs of its own. `genome` among them is the whole training split, tiled
as without regions. The loss weighs each base by its own class, whatever class its window was drawn for.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError, quoted
from dnamamba.genome.intervals import Interval
from dnamamba.genome.region_classes import BACKGROUND, UNCLASSED, RegionClasses
from dnamamba.genome.region_windows import RegionPlan
from dnamamba.genome.windows import Window, WindowPlan
from dnamamba.tables import number
from dnamamba.training.data import Rows
from dnamamba.training.mixture import MixturePlan

WHOLE = "genome"
"""In shares: windows of the whole training split"""
LOOKED_AT = 512
"""Windows of which `RegionMixture.content` counts the bases"""


class Regions(NamedTuple):
    """The classes of a genome and the share of the samples that shows each."""

    classes: RegionClasses
    shares: dict[str, float]
    """Class, or `WHOLE` → its relative share, above 0"""

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with classes and shares."""
        return hashlib.sha256(json.dumps([self.classes.fingerprint, self.shares]).encode()).hexdigest()


class RegionMixture(MixturePlan):
    """Windows of the classes that have a share, all of one length."""

    def __init__(self, plans: dict[str, WindowPlan | RegionPlan], regions: Regions) -> None:
        super().__init__([""] * len(plans), list(plans.values()), [regions.shares[name] for name in plans])
        self.plans, self.classes = plans, regions.classes

    def skipped(self, epoch: int) -> int:
        """Windows left out of all classes' epochs for too many N."""
        return sum(plan.skipped(epoch) for plan in self.plans.values())

    def positions(self, epoch: int, indices: np.ndarray) -> np.ndarray:
        """(windows,) int64: where in the store the windows at consecutive `indices` (windows,) of an epoch begin."""
        plans, found = list(self.plans.values()), np.empty(len(indices), np.int64)
        for part, own, ranges in self._located(epoch, indices):
            found[own] = np.concatenate([plans[part].positions(at, numbers) for at, numbers in ranges])
        return found

    def content(self, length: int) -> dict[str, float]:
        """Class → its share of the bases in the first windows, `UNCLASSED` at last."""
        starts = self.positions(0, np.arange(LOOKED_AT)).tolist()
        counts = np.sum([self.classes.bases(start, start + length + 1) for start in starts], axis=0)
        return dict(zip((*self.classes.names, UNCLASSED), (counts / counts.sum()).tolist(), strict=True))


class ClassedPlan:
    """A training plan whose windows come with the number of each base's class in the loss.

    Args:
        length: of the windows, less 1.
        classes: of the genome; without, all bases have number 0.
        weighed: the classes that have a number in the loss, from 1 on; others have 0.
    """

    def __init__(
        self, plan: WindowPlan | RegionMixture, length: int, classes: RegionClasses | None, weighed: Sequence[str]
    ) -> None:
        self.plan, self.length, self.classes = plan, length, classes
        names = () if classes is None else classes.names
        numbers = [weighed.index(name) + 1 if name in weighed else 0 for name in names]
        self._number = np.array([*numbers, 0], np.uint8)

    def epoch_size(self, epoch: int) -> int:
        return self.plan.epoch_size(epoch)

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a window lies."""
        return self.plan.windows(epoch, index)

    def batch(self, epoch: int, indices: np.ndarray) -> Rows:
        """Tokens, flags, no ids, and (windows, length + 1) uint8 numbers of classes."""
        tokens, flags, *_ = self.plan.batch(epoch, indices)
        found = np.zeros((len(indices), self.length + 1), np.uint8)
        if self.classes is not None:
            for row, start in zip(found, self.plan.positions(epoch, indices).tolist(), strict=True):
                row[:] = self._number[self.classes.at(start, start + self.length + 1)]
        return tokens, flags, None, found


def region_mixture(
    whole: WindowPlan, regions: Regions, intervals: tuple[Interval, ...], max_n_fraction: float
) -> RegionMixture:
    """The windows of each class that has a share, by the settings of `whole`, the plan of all the training split."""

    def plan(name: str) -> WindowPlan | RegionPlan:
        if name == WHOLE:
            return whole
        store, length, seed, flags = whole.store, whole.length, whole.seed, whole.reverse_complement
        return RegionPlan(store, intervals, regions.classes, name, length, seed, max_n_fraction, flags)

    return RegionMixture({name: plan(name) for name in regions.shares}, regions)


def shares_of(classes: RegionClasses, given: Sequence[str] | None) -> dict[str, float]:
    """The shares as the user gives them (`CDS`, `CDS=2`); by default all classes alike but those of `BACKGROUND`.

    Raises `InputError` for classes that the genome's regions lack, a class that is called `WHOLE`, and numbers that are
    not above 0.
    """
    if WHOLE in classes.names:
        raise InputError(f"--regions: a class is called {WHOLE}, which means the whole training split; rename it")
    if not classes.names:
        raise InputError("--regions: the files have no region of this genome; give others, or leave them out")
    if given is None:
        shares = dict.fromkeys((name for name in classes.names if name not in BACKGROUND), 1.0)
        if not shares:
            names = " ".join(classes.names)
            raise InputError(f"--region_shares: say which classes to show; the regions have only {names}")
        return shares
    shares = numbers_of("region_shares", given, above_zero=True)
    for name in shares:
        if name not in (*classes.names, WHOLE):
            raise InputError(f"--region_shares: no region is a {name}; there are {' '.join((*classes.names, WHOLE))}")
    return shares


def numbers_of(flag: str, given: Sequence[str], above_zero: bool = False) -> dict[str, float]:
    """Name → number of texts such as `CDS=2`; 1 where there is none. Raises `InputError` naming the flag."""
    found: dict[str, float] = {}
    for item in given:
        name, equals, text = item.partition("=")
        value = number(text) if equals else 1.0
        if not name or value is None or not 0 <= value < math.inf or (above_zero and value == 0):
            least = "above 0" if above_zero else "0 or above"
            raise InputError(f"--{flag}: {quoted(item)} is not a class, or a class=number {least}")
        if name in found:
            raise InputError(f"--{flag}: {name} stands there twice")
        found[name] = value
    return found
