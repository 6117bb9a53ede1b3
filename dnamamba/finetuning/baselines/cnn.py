"""A small dilated convolutional network on the same examples: what a model without pretraining and state can do.

Bases → embedding → convolution of width 11 → residual blocks of width 5 with dilations 1, 4, 16, … (each sees four
times as far; six see 5.5 kb) → mean and maximum over the sequence → linear head. About 0.15 M parameters.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnamamba.alphabet import VOCABULARY_SIZE
from dnamamba.finetuning.metrics import SELECT_BY, evaluate
from dnamamba.finetuning.predictions import loss_sum
from dnamamba.finetuning.tasks.examples import Examples, Target, TrainingSet, strand_flags
from dnamamba.inference.batches import batches_by_length
from dnamamba.inference.device import Compute
from dnamamba.model.tokens import reverse_complement
from dnamamba.runs.schedule import learning_rate

FINAL_FRACTION = 0.01
"""Of the peak learning rate at the last step."""


@dataclass(frozen=True)
class CnnSettings:
    """The network and its training."""

    channels: int = 64
    blocks: int = 6
    width: int = 5
    epochs: int = 10
    """Passes over the training examples; the one that is best on dev is kept."""
    batch_size: int = 64
    peak: float = 2e-3
    """Learning rate."""
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class CnnResult:
    """A trained network's predictions."""

    predictions: np.ndarray
    """(test examples, outputs): probabilities, or the values of a regression."""
    dev: dict[str, float]
    """Metrics on dev at the best epoch."""
    epoch: int
    """The best one, 1-based."""
    parameters: int


class DilatedCnn(nn.Module):
    """Tokens (batch, length) uint8, padded on the right → (batch, outputs) fp32 logits; padding changes nothing."""

    def __init__(self, settings: CnnSettings, outputs: int) -> None:
        super().__init__()
        channels = settings.channels
        self.embedding = nn.Embedding(VOCABULARY_SIZE, 8)
        self.stem = nn.Conv1d(8, channels, 11, padding=5)
        self.blocks = nn.ModuleList(
            _ResidualBlock(channels, settings.width, 4**number) for number in range(settings.blocks)
        )
        self.head = nn.Linear(2 * channels, outputs)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mask = inside[:, None]  # (batch, 1, length)
        x = self.stem(self.embedding(tokens.int()).transpose(1, 2) * mask) * mask
        for block in self.blocks:
            x = block(x, mask)
        x = x.float()
        mean = x.sum(2) / lengths[:, None]
        largest = x.masked_fill(~mask, -math.inf).amax(2)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(torch.cat((mean, largest), 1))


class _ResidualBlock(nn.Module):
    """x + conv(GELU(norm(x))), the norm over the channels of each position; zero beyond each sequence's end."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.spread = nn.Conv1d(channels, channels, width, padding=width // 2 * dilation, dilation=dilation)
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = F.gelu(self.norm(x.transpose(1, 2)).transpose(1, 2)) * mask
        return (x + self.mix(F.gelu(self.spread(seen)))) * mask


def train_cnn(
    train: TrainingSet,
    dev: Examples,
    test: Examples,
    target: Target,
    compute: Compute,
    settings: CnnSettings | None = None,
    report: Callable[[str], None] | None = None,
) -> CnnResult:
    """Trains on classes or labels (no regression), keeps the epoch that is best on dev, predicts test.

    Examples and strands are those of a fine-tuning with the same seed.
    """
    assert target.kind != "regression", "its labels would have to be standardised"
    settings = settings or CnnSettings()
    metric = SELECT_BY[target.kind]
    torch.manual_seed(settings.seed)
    model = DilatedCnn(settings, len(target.names)).to(compute.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.peak, weight_decay=settings.weight_decay)
    steps_per_epoch = math.ceil(train.size / settings.batch_size)
    steps = settings.epochs * steps_per_epoch
    best: tuple[tuple[float, float], int, dict[str, float], dict[str, Any]] | None = None
    for epoch in range(settings.epochs):
        model.train()
        total = torch.zeros((), device=compute.device)
        for step in range(steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    epoch * steps_per_epoch + step,
                    peak=settings.peak,
                    steps=steps,
                    warmup_fraction=settings.warmup_fraction,
                    final_fraction=FINAL_FRACTION,
                )
            first = step * settings.batch_size
            indices = np.arange(first, min(first + settings.batch_size, train.size))
            total += _step(model, train, target, compute, settings.seed, epoch, indices)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        found = evaluate(predict_cnn(model, dev, target, compute), dev.labels, target)
        loss = float(total) / train.size
        if report:
            report(f"cnn  epoch {epoch + 1}/{settings.epochs}  train {loss:.4f}  dev {metric} {found[metric]:.4f}")
        rank = (found[metric] if math.isfinite(found[metric]) else -math.inf, -loss)
        if best is None or rank > best[0]:
            best = rank, epoch + 1, found, {name: value.clone() for name, value in model.state_dict().items()}
    assert best is not None
    model.load_state_dict(best[3])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return CnnResult(predict_cnn(model, test, target, compute), best[2], best[1], parameters)


@torch.no_grad()
def predict_cnn(model: DilatedCnn, examples: Examples, target: Target, compute: Compute) -> np.ndarray:
    """(examples, outputs) probabilities, in the order of the examples."""
    model.eval()
    logits = torch.empty(len(examples), len(target.names), device=compute.device)
    for rows in batches_by_length(examples.lengths, compute.micro_tokens):
        batch = examples.take(rows)
        tokens = torch.from_numpy(batch.tokens).to(compute.device)
        with compute.autocast():
            found = model(tokens, torch.from_numpy(batch.lengths).to(compute.device))
        logits[torch.from_numpy(rows).to(compute.device)] = found.float()
    probabilities = logits.softmax(1) if target.kind == "multiclass" else logits.sigmoid()
    return probabilities.cpu().numpy()


def _step(
    model: DilatedCnn,
    train: TrainingSet,
    target: Target,
    compute: Compute,
    seed: int,
    epoch: int,
    indices: np.ndarray,
) -> Tensor:
    """Gradients of the mean loss over these examples, `micro_tokens` bases at a time; returns the summed loss."""
    total = torch.zeros((), device=compute.device)
    batch = train.batch(seed, epoch, indices)
    flags = strand_flags(seed, epoch, indices)
    per_pass = max(compute.micro_tokens // max(batch.tokens.shape[1], 1), 1)
    for first in range(0, len(indices), per_pass):
        rows = slice(first, first + per_pass)
        lengths = torch.from_numpy(batch.lengths[rows]).to(compute.device)
        tokens = torch.from_numpy(batch.tokens[rows]).to(compute.device)
        tokens = reverse_complement(tokens, lengths, torch.from_numpy(flags[rows]).to(compute.device))
        labels = torch.from_numpy(batch.labels[rows]).to(compute.device)
        with compute.autocast():
            logits = model(tokens, lengths)
        loss = loss_sum(logits.float(), labels, target)
        (loss / len(indices)).backward()
        total += loss.detach()
    return total
