"""From window plans to the batches of a training step.

One item of the training loader is one optimiser step's share of one rank. Which windows belong to step s follows from
(seed, s) alone, whatever the devices, workers and micro-batches: a step takes the next `windows_per_step` samples of an
endless stream of epochs, and rank r of W takes the r-th W-th of them. So resuming needs the step number, nothing else.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dnamamba.genome.annotation import Annotation
from dnamamba.genome.region_classes import RegionClasses
from dnamamba.genome.windows import Window, WindowPlan, hash_bits


class WindowBatch(NamedTuple):
    """Windows as they are read: nothing is cast or complemented before the device."""

    tokens: Tensor
    """(windows, length + 1) uint8: token ids with the soft-mask bit."""
    reverse_complement: Tensor
    """(windows,) bool: windows to be reverse-complemented on the device, before the shift."""
    sequence_ids: Tensor | None = None
    """(windows, length + 1) int32 for packed windows (`--pack`): the segment of each base; None without."""
    classes: Tensor | None = None
    """(windows, length + 1) uint8: the region class of each base (`--regions`), where the loss weighs them apart."""
    keys: Tensor | None = None
    """(windows,) int64: 64 random bits for what an objective draws. Of training windows they follow from seed and
    sample, others always have the same."""

    def on(self, device: torch.device) -> "WindowBatch":
        """Copied there."""
        return WindowBatch._make(None if part is None else part.to(device, non_blocking=True) for part in self)


Rows = tuple[np.ndarray | None, ...]
"""The first fields of a `WindowBatch`, of numpy; None for a field that no window has"""


class SamplePlan(Protocol):
    """What to read in which order: `WindowPlan`, `PackedPlan` (packed windows), `MixturePlan` (several genomes)."""

    def epoch_size(self, epoch: int) -> int:
        """Rows of an epoch."""

    def batch(self, epoch: int, indices: np.ndarray) -> "Rows":
        """The first fields of a `WindowBatch` for the windows at `indices` of an epoch."""

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a window's segments lie."""


def joined(batches: Sequence[Rows]) -> Rows:
    """The rows of several batches below each other."""
    if len(batches) == 1:
        return batches[0]
    return tuple(None if fields[0] is None else np.concatenate(fields) for fields in zip(*batches, strict=True))


class SampleStream:
    """The endless sequence of training samples: epoch 0's windows, then epoch 1's, …

    Sample numbers are global (0-based); `locate` gives which (epoch, index) a range of them is.
    """

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan
        self._starts = [0]

    def locate(self, first: int, count: int) -> list[tuple[int, np.ndarray]]:
        """(epoch, indices (k,) int64) of the samples [first, first + count), in order, epoch by epoch."""
        while self._starts[-1] < first + count:
            self._starts.append(self._starts[-1] + self.plan.epoch_size(len(self._starts) - 1))
        ranges = []
        epoch = int(np.searchsorted(self._starts, first, side="right")) - 1
        while count > 0:
            taken = min(count, self._starts[epoch + 1] - first)
            if taken:
                index = first - self._starts[epoch]
                ranges.append((epoch, np.arange(index, index + taken)))
            first, count, epoch = first + taken, count - taken, epoch + 1
        return ranges


class Stage(NamedTuple):
    """Optimiser steps [first_step, next stage's) read windows of one length."""

    first_step: int
    plan: SamplePlan
    windows_per_step: int
    """Over all ranks."""
    first_sample: int = 0
    """Of the plan's samples, the first that is read: of windows that an earlier stage has begun to read, the next."""


class StepDataset(Dataset[WindowBatch]):
    """Item s is this rank's share of optimiser step s. `seed` is of the windows' keys."""

    def __init__(self, stages: Sequence[Stage], rank: int, world_size: int, seed: int = 0) -> None:
        for stage in stages:
            if stage.windows_per_step % world_size:
                raise ValueError(f"{stage.windows_per_step} windows a step do not divide over {world_size} devices")
        self.stages = list(stages)
        self.streams = [SampleStream(stage.plan) for stage in stages]
        self.rank, self.world_size, self.seed = rank, world_size, seed

    def _samples(self, step: int) -> tuple[int, int, int]:
        """The number of a step's stage, and the first and the number of this rank's samples of it."""
        number = bisect.bisect_right([stage.first_step for stage in self.stages], step) - 1
        stage = self.stages[number]
        share = stage.windows_per_step // self.world_size
        before = stage.first_sample + (step - stage.first_step) * stage.windows_per_step
        return number, before + self.rank * share, share

    def __getitem__(self, step: int) -> WindowBatch:
        number, first, share = self._samples(step)
        plan, ranges = self.stages[number].plan, self.streams[number].locate(first, share)
        rows = joined([plan.batch(epoch, indices) for epoch, indices in ranges])
        keys = window_keys(np.arange(first, first + share), self.seed, number)
        tensors: list[Any] = [None if field is None else torch.from_numpy(field) for field in rows]
        return WindowBatch(*tensors)._replace(keys=keys)

    def windows(self, step: int) -> list[Window]:
        """Where this rank's windows of a step lie: for messages that must name them."""
        number, first, share = self._samples(step)
        plan, ranges = self.stages[number].plan, self.streams[number].locate(first, share)
        rows = [(epoch, int(index)) for epoch, indices in ranges for index in indices]
        return [window for row in rows for window in plan.windows(*row)]


class StepSampler(Sampler[int]):
    """Step numbers from the trainer's current one (so that a resumed run continues where it was) to the last.

    Without a length on purpose: Lightning then counts nothing by it, and the trainer's `max_steps` ends the run.
    """

    def __init__(self, trainer: L.Trainer, steps: int) -> None:
        self.trainer, self.steps = trainer, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.trainer.global_step, self.steps))


class EvaluationSet(NamedTuple):
    """The fixed windows of one genome that are scored, the same at every validation."""

    name: str
    """The genome's in a mixture, else ""."""
    plan: WindowPlan
    indices: np.ndarray
    """(windows,) int64, ascending"""
    annotation: Annotation | None = None
    """The genome's exons, to score them apart."""
    regions: RegionClasses | None = None
    """The genome's classes of regions, to score them apart."""


class FixedWindows(Dataset[WindowBatch]):
    """This rank's share of fixed evaluation windows: every W-th, each exactly once over all ranks, never padded."""

    def __init__(self, evaluated: EvaluationSet, batch: int, rank: int, world_size: int) -> None:
        own = evaluated.indices[rank::world_size]
        self.name, self.plan = evaluated.name, evaluated.plan
        self.annotation, self.regions = evaluated.annotation, evaluated.regions
        self.rank, self.world_size, self.of_all_ranks = rank, world_size, len(evaluated.indices)
        self.batches = [own[start : start + batch] for start in range(0, len(own), batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> WindowBatch:
        indices = self.batches[item]
        tokens, flags = map(torch.from_numpy, self.plan.batch(0, indices))
        return WindowBatch(tokens, flags, keys=window_keys(indices))

    def windows(self, item: int) -> list[Window]:
        """Where the windows of an item lie."""
        return [self.plan.window(0, int(index)) for index in self.batches[item]]

    def numbers(self, item: int) -> slice:
        """Which of `EvaluationSet.indices` the windows of an item are."""
        before = sum(map(len, self.batches[:item]))
        first = self.rank + before * self.world_size
        return slice(first, first + len(self.batches[item]) * self.world_size, self.world_size)


def window_keys(numbers: np.ndarray, *key: int) -> Tensor:
    """(windows,) int64: 64 random bits for each number (windows,) int64."""
    return torch.from_numpy(hash_bits(numbers.astype(np.uint64), *key, 8).view(np.int64))


def evenly_spread(size: int, wanted: int) -> np.ndarray:
    """`wanted` of the indices 0 … size − 1, evenly spread and ascending; all of them when `wanted` is 0 or too many."""
    if wanted <= 0 or wanted >= size:
        return np.arange(size)
    return (np.arange(wanted) * size) // wanted


class PretrainData(L.LightningDataModule):
    """The training loader, and the fixed validation windows of this rank, one set a genome.

    `micro_batch` is in validation windows; `bases_a_step` is over all ranks. So many neighbouring `ranks_a_window` read
    the same training windows; validation windows are one rank's each.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        validation: Sequence[EvaluationSet],
        *,
        steps: int,
        micro_batch: int,
        bases_a_step: int,
        num_workers: int,
        seed: int = 0,
        ranks_a_window: int = 1,
    ) -> None:
        super().__init__()
        self.stages, self.validation = stages, validation
        self.steps, self.bases_a_step = steps, bases_a_step
        self.micro_batch, self.num_workers = micro_batch, num_workers
        self.seed, self.ranks_a_window = seed, ranks_a_window

    @property
    def validation_bases(self) -> int:
        """Bases that one validation reads, over all ranks."""
        return sum(len(each.indices) * each.plan.length for each in self.validation)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank, world_size = (n // self.ranks_a_window for n in (self.trainer.global_rank, self.trainer.world_size))
        self.step_dataset = StepDataset(self.stages, rank, world_size, self.seed)
        return DataLoader(
            self.step_dataset,
            batch_size=None,  # an item is a whole step already
            sampler=StepSampler(self.trainer, self.steps),
            num_workers=self.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def validation_windows(self) -> list[FixedWindows]:
        """This rank's share of each genome's validation windows, in micro-batches."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return [FixedWindows(evaluated, self.micro_batch, rank, world_size) for evaluated in self.validation]
