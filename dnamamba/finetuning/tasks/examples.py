"""Labelled sequences in memory, and the training sets that a task offers. numpy only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dnamamba.alphabet import reverse_complement
from dnamamba.genome.windows import hash_bits, hash_key, permute
from dnamamba.inference.batches import padded
from dnamamba.model.config import Kind


class Target(NamedTuple):
    """What is predicted."""

    kind: Kind
    names: tuple[str, ...]
    """Classes (sorted), labels or regression targets: one output each."""


class Origin(NamedTuple):
    """Where a sequence comes from: contig and 0-based half-open interval, or the name of a record."""

    contig: str
    start: int
    end: int
    group: str
    """What is resampled as a whole for confidence intervals: neighbours are no independent samples."""
    variant: tuple[str, str, str] | None = None
    """Of a variant its ID, REF and ALT as written; `start` and `end` are then REF's"""


class ExampleBatch(NamedTuple):
    """Some examples."""

    tokens: np.ndarray
    """(batch, width) uint8 without the soft-mask bit, padded on the right"""
    lengths: np.ndarray
    """(batch,) int64"""
    labels: np.ndarray
    """multiclass (batch,) int64; multilabel and regression (batch, outputs) float32"""


@dataclass(frozen=True)
class Examples:
    """A split, whole in memory."""

    tokens: np.ndarray
    """(examples, width) uint8 without the soft-mask bit, padded on the right"""
    lengths: np.ndarray
    """(examples,) int64"""
    labels: np.ndarray
    """multiclass (examples,) int64; multilabel and regression (examples, outputs) float32"""
    origins: list[Origin] = field(default_factory=list)
    """One an example."""

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of these examples, no wider than the longest of them, and their lengths."""
        lengths = self.lengths[rows]
        return self.tokens[rows, : int(lengths.max())], lengths

    def take(self, rows: np.ndarray) -> ExampleBatch:
        """These examples with their labels."""
        return ExampleBatch(*self.padded(rows), self.labels[rows])

    def sequences(self) -> list[np.ndarray]:
        """The tokens of each example without padding."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)]


class TrainingSet(Protocol):
    """What a training run draws from: every example is a function of (seed, epoch, index)."""

    size: int
    """Examples an epoch."""

    def batch(self, seed: int, epoch: int, indices: np.ndarray, length: int | None = None) -> ExampleBatch:
        """The examples `indices` of an epoch; `length` shortens windows during a length warm-up."""

    def sample(self, count: int) -> Examples:
        """About `count` examples, spread over the set, for the baselines."""


class FixedSet:
    """The examples of files: an epoch shows each once, in an order drawn by (seed, epoch)."""

    def __init__(self, examples: Examples) -> None:
        self.examples, self.size = examples, len(examples)

    def rows(self, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
        """Which rows of `examples` these are."""
        return permute(np.asarray(indices, np.int64), self.size, hash_key(seed, epoch, 6))

    def batch(self, seed: int, epoch: int, indices: np.ndarray, length: int | None = None) -> ExampleBatch:
        assert length is None, "sequences of files have their own lengths"
        return self.examples.take(self.rows(seed, epoch, indices))

    def sample(self, count: int) -> Examples:
        return self.examples


def strand_flags(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """(k,) bool: which examples of an epoch are shown as their reverse complement."""
    return (hash_bits(indices.astype(np.uint64), seed, epoch, 3) >> np.uint64(63)).astype(bool)


def pad(sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token arrays to (examples, longest) uint8 padded with PAD, and their lengths int64."""
    return padded(sequences), np.array([len(sequence) for sequence in sequences], np.int64)


def canonical(sequence: np.ndarray) -> bytes:
    """The same bytes for a sequence and its reverse complement."""
    return min(sequence.tobytes(), reverse_complement(sequence).tobytes())


@dataclass(frozen=True)
class Task:
    """All that tasks differ in; everything else is shared (`dnamamba.finetuning.run`)."""

    target: Target
    train: TrainingSet
    dev: Examples
    test: "HeldOut"
    length: int
    """Bases of the longest example."""
    notes: list[tuple[str, str]]
    """Labelled lines for the header: data, classes, splits, warnings."""
    facts: dict[str, Any]
    """The same for the model card and summary.json: files, fingerprints, counts, overlaps."""
    measure: Callable[[Examples, list[np.ndarray], list[np.ndarray]], dict[str, Any]] | None = None
    """Further figures for summary.json, from the test examples and each seed's predictions for them and for dev."""
    keep: Callable[[Path], None] | None = None
    """Writes what the task itself has trained into a run folder."""


class HeldOut:
    """A test split that can be read once. What is to be known of it before (its size, classes, overlaps with train) is
    found out by whoever makes it."""

    def __init__(self, examples: Examples) -> None:
        self.size = len(examples)
        self._examples: Examples | None = examples
        self.selection: dict[str, Any] | None = None

    def read(self, selection: dict[str, Any]) -> Examples:
        """The examples, once; `selection` says what was chosen without them, and is kept with the results."""
        examples, self._examples = self._examples, None
        if examples is None:
            raise AssertionError(f"the test split was read before, for {self.selection}")
        self.selection = selection
        return examples
