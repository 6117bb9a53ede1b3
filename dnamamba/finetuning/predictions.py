"""A classifier's predictions for many sequences: batches by bases, long ones in chunks, on one device."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dnamamba.finetuning.tasks.examples import Target
from dnamamba.genome.progress import OnProgress
from dnamamba.inference.batches import batches_by_length
from dnamamba.inference.device import Compute
from dnamamba.inference.pooling import head_features
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.config import Strands
from dnamamba.model.tokens import reverse_complement
from dnamamba.parallel.group import ALONE, Group


class Sequences(Protocol):
    """What predictions are made for."""

    @property
    def lengths(self) -> np.ndarray:
        """(sequences,) int64"""

    def __len__(self) -> int: ...

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sequences, longest of them) uint8 tokens padded on the right, and the lengths (sequences,) int64."""


@torch.no_grad()
def predict_logits(
    model: SequenceClassifier,
    examples: Sequences,
    compute: Compute,
    progress: OnProgress | None = None,
    group: Group = ALONE,
) -> Tensor:
    """(examples, outputs) fp32 on the device, in the order of the examples, whatever the batches. Ranks share the
    batches, and each gets all logits."""
    logits = torch.zeros(len(examples), len(model.head_config.names), device=compute.device)
    strands = model.head_config.strands
    for rows, features in pool_all(model, examples, compute, strands, progress=progress, group=group):
        logits[rows] = model.logits(features)
    return group.sum(logits)


def pool_all(
    model: SequenceClassifier,
    examples: Sequences,
    compute: Compute,
    strands: Strands,
    *,
    reverse_complemented: bool = False,
    progress: OnProgress | None = None,
    group: Group = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their features fp32 as `head_features` gives them) until every example was there once, on one of the ranks
    of the `group`; with `reverse_complemented` of their reverse complements."""
    was_training = model.training
    model.eval()
    batches = group.share(list(batches_by_length(examples.lengths, compute.micro_tokens)))
    done, total = 0, sum(map(len, batches))
    for rows in batches:
        tokens, lengths = map(compute.put, examples.padded(rows))
        if reverse_complemented:
            tokens = reverse_complement(tokens, lengths)
        with torch.no_grad(), compute.autocast():
            features = head_features(model, tokens, lengths, strands, compute.micro_tokens)
        yield compute.put(rows), features
        done += len(rows)
        if progress is not None:
            progress(done, total)
    model.train(was_training)


def loss_sum(logits: Tensor, labels: Tensor, target: Target) -> Tensor:
    """() fp32: summed over the examples, a mean over outputs: cross-entropy in nats (multiclass, multilabel), squared
    error of the standardised values (regression)."""
    if target.kind == "multiclass":
        return F.cross_entropy(logits, labels, reduction="sum")
    if target.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / labels.shape[1]
    return F.mse_loss(logits, labels, reduction="sum") / labels.shape[1]
