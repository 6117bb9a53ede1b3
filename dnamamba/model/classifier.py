"""A backbone and a linear head on what is pooled from it: the logits of classes, labels or values.

How sequences become the features that the head sees, whole or in chunks, is `dnamamba.inference.pooling`.

Shapes (the legend of this file):
    batch, length   sequences, right-padded, and positions
    outputs         classes, labels or regression targets
"""

from dataclasses import dataclass
from typing import get_args

import torch.nn as nn
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.model.alleles import allele_width
from dnamamba.model.config import Kind, ModelConfig, Pooling, Strands
from dnamamba.model.language_model import Backbone, LanguageModel
from dnamamba.model.precision import full_precision, without_autocast


@dataclass(frozen=True)
class HeadConfig:
    """What a classifier's checkpoint says apart from its backbone: classifier.json."""

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
        if not isinstance(self.names, tuple) or not all(isinstance(name, str) for name in self.names):
            raise InputError("a classifier's names are a list of texts")
        if not self.names or (self.kind == "multiclass" and len(self.names) < 2):
            raise InputError(f"a classifier needs two classes at least, got {list(self.names)}")
        wanted = len(self.names) if self.kind == "regression" else 0
        numbers = (*self.shift, *self.scale)
        if not len(self.shift) == len(self.scale) == wanted or not all(isinstance(x, int | float) for x in numbers):
            raise InputError("classifier: shift and scale are one number a regression target, and of no other kind")


class SequenceClassifier(nn.Module):
    """The backbone of a language model and a linear head, whose weights start small and whose bias starts at zero."""

    def __init__(self, config: ModelConfig, head: HeadConfig, backbone: Backbone | None = None) -> None:
        """`backbone` None draws new weights, as `LanguageModel` does."""
        super().__init__()
        self.config, self.head_config = config, head
        self.backbone = LanguageModel(config).backbone if backbone is None else backbone
        width = allele_width(config) if head.pooling == "alleles" else config.d_model
        self.head = nn.Linear(width * (2 if head.strands == "both" else 1), len(head.names))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, features: Tensor) -> Tensor:
        """What the head sees (batch, features) → (batch, outputs) fp32, whatever the autocast."""
        with without_autocast(features.device):
            return self.head(full_precision(features))

    def predictions(self, logits: Tensor) -> Tensor:
        """Logits (batch, outputs) → probabilities (multiclass: a row sums to 1), or the values of a regression."""
        head = self.head_config
        if head.kind == "multiclass":
            return logits.softmax(-1)
        if head.kind == "multilabel":
            return logits.sigmoid()
        return logits * logits.new_tensor(head.scale) + logits.new_tensor(head.shift)
