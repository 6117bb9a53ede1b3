"""A backbone, a pooling and a linear head: sequences in, the logits of classes, labels or values out.

Shapes (the legend of this file):
    batch, length   sequences, right-padded, and positions
    d_model         width of the residual stream
    outputs         classes, labels or regression targets
"""

from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn as nn
from torch import Tensor

from dnamamba.alphabet import BASES
from dnamamba.errors import InputError
from dnamamba.model.alleles import allele_features, allele_width
from dnamamba.model.config import Kind, ModelConfig, Pooling, Strands
from dnamamba.model.language_model import MambaBackbone, MambaLM, ModelState


@dataclass(frozen=True)
class HeadConfig:
    """What a classifier's checkpoint says besides its backbone: classifier.json."""

    kind: Kind
    """multiclass: one of `names` (two are binary); multilabel: any of them; regression: a number for each."""
    names: tuple[str, ...]
    """Of the outputs, in their order: classes are sorted."""
    pooling: Pooling = "last"
    strands: Strands = "one"
    """What the head sees when predicting."""
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    """Regression: the value of an output is output · scale + shift (the training labels' mean and deviation)."""

    def __post_init__(self) -> None:
        for name, kinds in (("kind", Kind), ("pooling", Pooling), ("strands", Strands)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"a classifier's {name} is one of {get_args(kinds)}, not {getattr(self, name)!r}")
        if not self.names or (self.kind == "multiclass" and len(self.names) < 2):
            raise InputError(f"a classifier needs two classes at least, got {list(self.names)}")
        wanted = len(self.names) if self.kind == "regression" else 0
        if not len(self.shift) == len(self.scale) == wanted:
            raise InputError("classifier: shift and scale are one number a regression target, and of no other kind")


class MambaClassifier(nn.Module):
    """The backbone of a language model and a linear head, whose weights start small and whose bias starts at zero."""

    def __init__(self, config: ModelConfig, head: HeadConfig, backbone: MambaBackbone | None = None) -> None:
        """`backbone` None draws new weights, as `MambaLM` does."""
        super().__init__()
        self.config, self.head_config = config, head
        self.backbone = MambaLM(config).backbone if backbone is None else backbone
        width = allele_width(config) if head.pooling == "alleles" else config.d_model
        self.head = nn.Linear(width * (2 if head.strands == "both" else 1), len(head.names))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def pooled(self, tokens: Tensor, lengths: Tensor, chunk: int | None = None) -> Tensor:
        """Features of the strand that is given, (batch, d_model) fp32.

        Args:
            tokens: (batch, length) uint8 without the soft-mask bit, each row padded on the right; the padding changes
                nothing, for the model is causal and padding is never pooled.
            lengths: (batch,) int64, bases of each row, at least 1.
            chunk: positions that go through the model at a time, states handed on; None takes all at once. The result
                is the same but for rounding.
        """
        if self.head_config.pooling == "alleles":
            return allele_features(self.backbone, tokens, lengths)  # windows are short: never in chunks
        width = tokens.shape[1]
        chunk = width if chunk is None else chunk
        state: ModelState | None = None
        total: Tensor | None = None
        for first in range(0, width, chunk):
            hidden, state = self.backbone(tokens[:, first : first + chunk], state)
            part = self._pool(hidden, lengths - first)
            total = part if total is None else total + part
        assert total is not None
        return total / lengths[:, None] if self.head_config.pooling == "mean" else total

    def _pool(self, hidden: Tensor, left: Tensor) -> Tensor:
        """A chunk's share of the features; `left` (batch,) bases of each row from the chunk's start on, maybe < 0."""
        width = hidden.shape[1]
        if self.head_config.pooling == "mean":
            mask = torch.arange(width, device=hidden.device) < left[:, None]
            return (hidden * mask[..., None]).sum(1, dtype=torch.float32)
        is_here = (left > 0) & (left <= width)
        last = hidden[torch.arange(len(left), device=hidden.device), (left - 1).clamp(0, width - 1)]
        return torch.where(is_here[:, None], last.float(), 0.0)

    def features(self, tokens: Tensor, lengths: Tensor, strands: Strands, chunk: int | None = None) -> Tensor:
        """What the head sees, fp32: `pooled` of one strand or the mean of both (batch, d_model), or both side by side
        (batch, 2 · d_model), by which a causal model looks from either end."""
        forward = self.pooled(tokens, lengths, chunk)
        if strands == "one":
            return forward
        reverse = self.pooled(reverse_complement(tokens, lengths), lengths, chunk)
        return (forward + reverse) / 2 if strands == "mean" else torch.cat((forward, reverse), dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """What `features` gives → (batch, outputs) fp32, whatever the autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def forward(self, tokens: Tensor, lengths: Tensor, chunk: int | None = None) -> Tensor:
        """(batch, outputs) fp32 logits, of the strands that the head's configuration names."""
        return self.logits(self.features(tokens, lengths, self.head_config.strands, chunk))

    def predictions(self, logits: Tensor) -> Tensor:
        """Logits (batch, outputs) → probabilities (multiclass: a row sums to 1), or the values of a regression."""
        head = self.head_config
        if head.kind == "multiclass":
            return logits.softmax(-1)
        if head.kind == "multilabel":
            return logits.sigmoid()
        return logits * logits.new_tensor(head.scale) + logits.new_tensor(head.shift)


def reverse_complement(tokens: Tensor, lengths: Tensor, where: Tensor | None = None) -> Tensor:
    """The other strand of right-padded rows, padding again on the right.

    Args:
        tokens: (batch, length) uint8 without the soft-mask bit.
        lengths: (batch,) bases of each row.
        where: (batch,) bool, the rows to turn; None turns all.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    source = lengths[:, None] - 1 - position
    turned = tokens.gather(1, source.clamp(min=0))
    turned = torch.where(turned < BASES, (BASES - 1) - turned, turned)
    turned = torch.where(source >= 0, turned, tokens)  # the padding stays
    return turned if where is None else torch.where(where[:, None], turned, tokens)
