"""One training: a seed and a candidate, from the first weights to the best ones on dev.

A trial's folder, RUN/trials/seed-0-lr-0.001-test/, holds last.ckpt (all that the next epoch needs; gone when the trial
is finished) and, when it is finished, best.safetensors and trial.json. Every draw is a function of (seed, epoch,
index), so that a resumed trial continues as if nothing had happened.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dnamamba.alphabet import PAD
from dnamamba.errors import InputError
from dnamamba.finetuning.chunks import ChunkedFeatures
from dnamamba.finetuning.metrics import SELECT_BY, evaluate
from dnamamba.finetuning.predictions import loss_sum, pool_all, predict_logits
from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import ExampleBatch, FixedSet, Task, strand_flags
from dnamamba.formats.files import read_json
from dnamamba.inference.device import Compute
from dnamamba.inference.pooling import head_features
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.config import Strands
from dnamamba.model.parameters import parameter_groups
from dnamamba.model.tokens import reverse_complement
from dnamamba.outputs import os_errors, whole_file, write_atomically
from dnamamba.parallel.group import ALONE, Group
from dnamamba.parallel.weights import ShardedWeights, WholeWeights, is_finite
from dnamamba.runs.pace import Pace
from dnamamba.runs.progress import LINE_EVERY, job_bar
from dnamamba.runs.schedule import learning_rate

BETAS = (0.9, 0.95)
"""AdamW's, as in pretraining."""
FINAL_FRACTION = 0.01
"""Of the peak learning rate at the last step."""
WARMUP_FROM = 1024
"""Shortest windows of a length warm-up."""
LAST, BEST, RESULT = "last.ckpt", "best.safetensors", "trial.json"

EpochRow = dict[str, float | int | str]
Features = Callable[[ExampleBatch, Tensor, np.ndarray, int], tuple[Tensor, Callable[[], None]]]
"""(batch, which ones are reverse-complemented, their indices, epoch) → what the head sees, fp32, and what there is to
do when the loss's backward pass has reached it."""


class StrandUse(NamedTuple):
    """What the head sees."""

    training: Strands
    predicting: Strands
    description: str
    """For people"""


STRAND_USES = {
    "no": StrandUse("one", "one", "one strand"),
    "test": StrandUse("one", "mean", "mean of both strands in dev and test"),
    "always": StrandUse("mean", "mean", "mean of both strands"),
    "concatenate": StrandUse("both", "both", "both strands side by side"),
}
"""What `--conjoin` means."""


class Candidate(NamedTuple):
    """What is selected on dev."""

    learning_rate: float
    conjoin: str

    @property
    def strands(self) -> StrandUse:
        return STRAND_USES[self.conjoin]

    @property
    def rate(self) -> str:
        """The learning rate as text, different for any two numbers."""
        short = f"{self.learning_rate:g}"
        return short if float(short) == self.learning_rate else repr(self.learning_rate)

    def __str__(self) -> str:
        return f"lr-{self.rate}-{self.conjoin}"


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    seed: int
    candidate: Candidate
    epoch: int
    """The best one, 1-based."""
    dev: dict[str, float]
    """Loss and metrics on dev at that epoch."""
    rows: list[EpochRow]
    """metrics.csv's, one an epoch."""
    seconds: float
    folder: Path

    def rank(self, metric: str) -> tuple[float, float]:
        """Higher is better."""
        return _rank(self.dev, metric)


class Diverged(InputError):
    """A training whose numbers stopped being finite before dev was scored once."""


class Trial:
    """Trains `model` on a task; `run` gives the result, from disk if there is one."""

    def __init__(
        self,
        task: Task,
        settings: ResolvedFinetuneSettings,
        compute: Compute,
        seed: int,
        candidate: Candidate,
        trials: Path,
        group: Group = ALONE,
    ) -> None:
        self.task, self.settings, self.compute, self.seed, self.candidate = task, settings, compute, seed, candidate
        self.group = group
        self.weights = ShardedWeights() if settings.is_sharded else WholeWeights()
        self.folder = trials / f"seed-{seed}-{candidate}"
        self.strands = candidate.strands.training
        wanted = settings.reverse_complement
        self.shows_both_strands = self.strands == "one" if wanted is None else wanted and self.strands != "mean"
        """Whether training shows the other strand at random: it makes no difference to the mean of both."""
        self.steps_per_epoch = math.ceil(task.train.size / settings.batch_size)
        self.steps = settings.steps or settings.epochs * self.steps_per_epoch
        self.epochs = math.ceil(self.steps / self.steps_per_epoch)
        self.metric = SELECT_BY[task.target.kind]

    def run(
        self, make_model: Callable[[], SequenceClassifier], report: Callable[[list[EpochRow]], None]
    ) -> TrialResult:
        """Trains unless the folder holds the result already. `make_model` gives the model before training. All ranks
        call this; `report` is called on the first."""
        if self.group.as_first((self.folder / RESULT).is_file()):
            return self._stored()
        if self.group.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in (*self.folder.glob(".*.partial*"), *self.folder.glob(".tmp*")):  # of a save killed
                left_over.unlink()
        model = make_model()
        if self.settings.mode == "probe":
            model.backbone.requires_grad_(False)
        self.weights.place(model)
        model.to(self.compute.device)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, self.settings.weight_decay),
            lr=self.candidate.learning_rate,
            betas=BETAS,
            fused=True,
        )
        self.gradients = self.weights.gradients(each for each in model.parameters() if each.requires_grad)
        self.pace = Pace()
        state = _State()
        if self.group.as_first((self.folder / LAST).is_file()):
            state = self._load(model, optimizer)
        step_features = self._features(model)
        labels = self.task.dev.labels
        while state.epoch < self.epochs and not state.is_out_of_patience(self.settings.patience):
            began = time.perf_counter()
            loss, seen = self._train_epoch(model, optimizer, state, step_features)
            trained = time.perf_counter()
            self.group.agree(self.compute.device)
            broken = torch.tensor(float(not (math.isfinite(loss) and is_finite(model))), device=self.compute.device)
            if self.group.sum(broken) > 0:
                self._report_divergence(state)
                break
            with self.weights.gathered(model):
                logits = predict_logits(model, self.task.dev, self.compute, group=self.group)
            shown = self._labels(labels)
            dev = {"loss": float(loss_sum(logits, shown, self.task.target)) / len(labels)}
            dev |= evaluate(model.predictions(logits).cpu().numpy(), labels, self.task.target)
            dev = self.group.as_first(dev)  # what is selected by it must be the same on machines that round otherwise
            state.seconds += time.perf_counter() - began
            state.epoch += 1
            row: EpochRow = {
                "seed": self.seed,
                "peak_learning_rate": self.candidate.learning_rate,
                "conjoin": self.candidate.conjoin,
                "epoch": state.epoch,
                "step": min(state.epoch * self.steps_per_epoch, self.steps),
                "seconds": state.seconds,
                "examples_per_second": seen / (trained - began),
                "train_loss": loss,
                **{f"dev_{name}": value for name, value in dev.items()},
            }
            state.rows.append(row)
            if state.best is None or _rank(dev, self.metric) > _rank(state.best, self.metric):
                state.best, state.best_epoch = dev, state.epoch
                state.weights = {name: value.detach().clone() for name, value in self._tensors(model).items()}
            self._save(model, optimizer, state)
            if self.group.is_first:
                report(state.rows)
            self.group.agree(self.compute.device)
        return self._finish(state)

    def _report_divergence(self, state: "_State") -> None:
        """The best epoch so far stays the result; raises `Diverged` if there is none."""
        what = f"seed {self.seed}, learning rate {self.candidate.rate}: numbers are no longer finite"
        if state.best is None:
            raise Diverged(f"{what} in the first epoch; begin a new run with a lower --learning_rate")
        if self.group.is_first:
            print(f"{what} in epoch {state.epoch + 1}: stopped, epoch {state.best_epoch} was the best", flush=True)

    def window_length(self, step: int) -> int | None:
        """Of the examples of a step during the length warm-up; None is the full length."""
        lengths = warmup_lengths(self.settings.length_warmup, self.task.length)
        stage = int(step / max(self.settings.length_warmup * self.steps, 1e-9) * len(lengths))
        return lengths[stage] if stage < len(lengths) else None

    def _features(self, model: SequenceClassifier) -> Features:
        """Examples → what the head sees: computed, or of a probe looked up."""
        fixed = self.task.train
        if self.settings.mode == "probe" and isinstance(fixed, FixedSet):
            known = [self._pooled(model, fixed, reverse) for reverse in (False, True)[: 1 + self.shows_both_strands]]

            def look_up(
                batch: ExampleBatch, flags: Tensor, indices: np.ndarray, epoch: int
            ) -> tuple[Tensor, Callable[[], None]]:
                rows = self.compute.put(fixed.rows(self.seed, epoch, indices))
                return torch.where(flags[:, None], known[-1][rows], known[0][rows]), _nothing

            return look_up

        def compute(
            batch: ExampleBatch, flags: Tensor, indices: np.ndarray, epoch: int
        ) -> tuple[Tensor, Callable[[], None]]:
            tokens, lengths = self.compute.put(batch.tokens), self.compute.put(batch.lengths)
            tokens = reverse_complement(tokens, lengths, flags)
            is_full, chunk = self.settings.mode == "full", self.settings.chunk
            if chunk is not None and self.settings.is_sharded:  # ranks that share weights run as many chunks
                width = self.group.most(tokens.shape[1], tokens.device)
                tokens = torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=PAD)
            if is_full and chunk is not None:
                is_truncated = self.settings.backprop == "truncated"
                chunked = ChunkedFeatures(
                    model,
                    tokens,
                    lengths,
                    self.strands,
                    chunk=chunk,
                    truncated=is_truncated,
                    context=self.compute.autocast,
                )
                return chunked.features, chunked.backward
            with self.compute.autocast(), torch.set_grad_enabled(is_full):
                return head_features(model, tokens, lengths, self.strands, chunk), _nothing

        return compute

    def _pooled(self, model: SequenceClassifier, fixed: FixedSet, reverse: bool) -> Tensor:
        features = torch.zeros(fixed.size, model.head.in_features, device=self.compute.device)
        with (
            self.weights.gathered(model),
            job_bar("features of the frozen model", "examples", self.group.is_first) as progress,
        ):
            for rows, part in pool_all(
                model,
                fixed.examples,
                self.compute,
                self.strands,
                reverse_complemented=reverse,
                progress=progress,
                group=self.group,
            ):
                features[rows] = part
        self.group.agree(self.compute.device)
        return self.group.sum(features)

    def _train_epoch(
        self, model: SequenceClassifier, optimizer: torch.optim.Optimizer, state: "_State", features: Features
    ) -> tuple[float, int]:
        """Mean loss of the epoch's examples, and their number. The host never waits for the device within it, unless
        ranks that share weights agree on chunks; with several ranks it is at most some steps ahead, to read their
        votes."""
        model.train()
        total = torch.zeros((), device=self.compute.device)
        seen = 0
        first = state.epoch * self.steps_per_epoch
        last = min(first + self.steps_per_epoch, self.steps)
        line = time.perf_counter()
        for step in range(first, last):
            if self.group.is_first and time.perf_counter() - line > LINE_EVERY:
                line = time.perf_counter()
                done = f"epoch {state.epoch + 1}/{self.epochs}, step {step - first}/{last - first}"
                print(f"seed {self.seed}  {done}", flush=True)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step,
                    peak=self.candidate.learning_rate,
                    steps=self.steps,
                    warmup_fraction=self.settings.warmup_fraction,
                    final_fraction=FINAL_FRACTION,
                )
            low = (step - first) * self.settings.batch_size
            indices = np.arange(low, min(low + self.settings.batch_size, self.task.train.size))
            total += self._step(model, optimizer, state.epoch, indices, self.window_length(step), features)
            seen += len(indices)
        return float(self.group.sum(total)) / seen, seen

    def _step(
        self,
        model: SequenceClassifier,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        indices: np.ndarray,
        length: int | None,
        features: Features,
    ) -> Tensor:
        """One optimiser step on the examples `indices`; the summed loss of this rank's, still on the device.

        Every rank takes as many passes, as ranks that share weights must: one that has fewer examples repeats some,
        which do not count."""
        own = self.group.share(indices)
        counted, count = len(own), math.ceil(len(indices) / self.group.size)
        own = np.resize(own if counted else indices, count)
        total = torch.zeros((), device=self.compute.device)
        width = min(length or self.task.length, self.settings.chunk or self.task.length)
        passes = 1 if self.strands == "one" else 2
        rows = max(self.compute.micro_tokens // (width * passes), 1)
        self.gradients.zero()
        for micro in np.array_split(own, math.ceil(count / rows)):
            batch = self.task.train.batch(self.seed, epoch, micro, length)
            flags = strand_flags(self.seed, epoch, micro) & self.shows_both_strands
            seen, reached = features(batch, self.compute.put(flags), micro, epoch)
            here = min(len(micro), counted)
            counted -= here
            loss = loss_sum(model.logits(seen)[:here], self._labels(batch.labels)[:here], self.task.target)
            (loss * self.gradients.scale / len(indices)).backward()
            reached()
            total += loss.detach()
        votes = None
        if self.group.size > 1:
            votes = self.gradients.sum_over_ranks(self.group.vote(self.compute.device))
        self.gradients.clip(self.settings.gradient_clip)
        optimizer.step()
        if votes is not None and (arrived := self.pace.step_queued(votes)) is not None:
            self.group.follow(arrived[0])
        return total

    def _labels(self, labels: np.ndarray) -> Tensor:
        """On the device; those of a regression standardised."""
        tensor = self.compute.put(labels)
        if self.task.target.kind == "regression":
            assert isinstance(self.task.train, FixedSet)
            shift, scale = standardisation(self.task.train.examples.labels)
            tensor = (tensor - tensor.new_tensor(shift)) / tensor.new_tensor(scale)
        return tensor

    def _tensors(self, model: SequenceClassifier) -> dict[str, Tensor]:
        """The whole state dict, on the first rank."""
        tensors = self.weights.tensors(model)
        return model.state_dict() if tensors is None else tensors

    def _save(self, model: SequenceClassifier, optimizer: torch.optim.Optimizer, state: "_State") -> None:
        """The same file whatever the number of ranks, which all take part."""
        moments = self.weights.optimizer_state(model, optimizer)
        stored = {"model": self._tensors(model), "optimizer": moments, "state": vars(state)}
        if self.group.is_first:
            with whole_file(self.folder / LAST, overwrite=True) as partial, partial.open("wb") as file:
                torch.save(stored, file)

    def _load(self, model: SequenceClassifier, optimizer: torch.optim.Optimizer) -> "_State":
        stored = torch.load(self.folder / LAST, map_location="cpu", weights_only=True)
        self.weights.load(model, optimizer, stored["model"], stored["optimizer"])
        return _State(**stored["state"])

    def _finish(self, state: "_State") -> TrialResult:
        assert state.best is not None
        if self.group.is_first:
            with whole_file(self.folder / BEST, overwrite=True) as partial:
                save_file({name: value.cpu().contiguous() for name, value in state.weights.items()}, partial)
            result = {"epoch": state.best_epoch, "dev": state.best, "rows": state.rows, "seconds": state.seconds}
            write_atomically(self.folder / RESULT, json.dumps(result, indent=2) + "\n")
            (self.folder / LAST).unlink()
        return self._stored()

    def _stored(self) -> TrialResult:
        """On all ranks what the first one reads."""
        found = self.group.as_first(read_json(self.folder / RESULT) if self.group.is_first else {})
        return TrialResult(self.seed, self.candidate, folder=self.folder, **found)


def _nothing() -> None:
    """Is to be done where the loss's backward pass has gone through the backbone."""


@dataclass
class _State:
    """Where a trial stands: all that is neither the model's nor the optimiser's."""

    epoch: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best: dict[str, float] | None = None
    weights: Any = None
    """The best epoch's."""
    rows: Any = None

    def __post_init__(self) -> None:
        self.rows = self.rows or []

    def is_out_of_patience(self, patience: int) -> bool:
        return patience > 0 and self.epoch - self.best_epoch >= patience


def best_weights(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """Of a finished trial, for `load_state_dict`."""
    with os_errors(folder / BEST):
        return load_file(folder / BEST, device=str(device))


def standardisation(labels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each regression target (examples, outputs); a constant target has deviation 1."""
    scale = labels.std(0)
    return tuple(labels.mean(0).tolist()), tuple(np.where(scale > 0, scale, 1.0).tolist())


def warmup_lengths(share: float, length: int) -> list[int]:
    """The lengths below `length` of a warm-up, doubling; none where there is no warm-up."""
    lengths: list[int] = []
    shorter = length
    while share and shorter % 2 == 0 and shorter // 2 >= WARMUP_FROM:
        shorter //= 2
        lengths.insert(0, shorter)
    return lengths


def selected_by(results: Sequence[TrialResult], metric: str) -> str:
    """What decided between epochs and candidates: the metric on dev, or the loss where the metric is not defined."""
    if all(math.isfinite(result.dev[metric]) for result in results):
        return f"dev {metric}"
    return f"dev loss ({metric} is undefined on dev)"


def _rank(dev: dict[str, float], metric: str) -> tuple[float, float]:
    value = dev[metric]
    return (value if math.isfinite(value) else -math.inf, -dev["loss"])
