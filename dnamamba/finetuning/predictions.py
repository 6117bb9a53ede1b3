"""A classifier asked about many sequences: batches by bases, long ones in chunks, on one device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dnamamba.finetuning.tasks.examples import Target
from dnamamba.model.classifier import MambaClassifier, reverse_complement
from dnamamba.model.config import Strands


class Sequences(Protocol):
    """What can be asked about."""

    @property
    def lengths(self) -> np.ndarray:
        """(sequences,) int64"""

    def __len__(self) -> int: ...

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, longest of them) uint8 tokens padded on the right, and the lengths (rows,) int64."""


@dataclass(frozen=True)
class Compute:
    """Where and how a model runs."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    """Of the matrix products; states, features and logits are fp32 in both."""
    micro_tokens: int
    """Bases in one forward pass."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def put(self, array: np.ndarray) -> Tensor:
        """The array on the device, without waiting for what runs there."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


@torch.no_grad()
def predict_logits(model: MambaClassifier, examples: Sequences, compute: Compute) -> Tensor:
    """(examples, outputs) fp32 on the device, in the order of the examples, whatever the batches."""
    logits = torch.empty(len(examples), len(model.head_config.names), device=compute.device)
    for rows, features in pool_all(model, examples, compute, model.head_config.strands):
        logits[rows] = model.logits(features)
    return logits


def pool_all(
    model: MambaClassifier, examples: Sequences, compute: Compute, strands: Strands, *, turned: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their features fp32 as `MambaClassifier.features` gives them) until every example was there once; with
    `turned` of their reverse complements."""
    was_training = model.training
    model.eval()
    for rows in batches(examples.lengths, compute.micro_tokens):
        tokens, lengths = map(compute.put, examples.padded(rows))
        if turned:
            tokens = reverse_complement(tokens, lengths)
        with torch.no_grad(), compute.autocast():
            features = model.features(tokens, lengths, strands, compute.micro_tokens)
        yield compute.put(rows), features
    model.train(was_training)


def batches(lengths: np.ndarray, micro_tokens: int) -> Iterator[np.ndarray]:
    """Rows of about equal length together, padded to at most `micro_tokens` bases in all, one at least."""
    order = np.argsort(lengths, kind="stable")[::-1]
    first = 0
    while first < len(order):
        width = max(int(lengths[order[first]]), 1)
        count = max(micro_tokens // width, 1)
        yield order[first : first + count].copy()
        first += count


def loss_sum(logits: Tensor, labels: Tensor, target: Target) -> Tensor:
    """() fp32: summed over the examples, a mean over outputs: cross-entropy in nats (multiclass, multilabel), squared
    error of the standardised values (regression)."""
    if target.kind == "multiclass":
        return F.cross_entropy(logits, labels, reduction="sum")
    if target.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / labels.shape[1]
    return F.mse_loss(logits, labels, reduction="sum") / labels.shape[1]
