"""One vector a sequence from the hidden states of its positions, chunk by chunk; and what a classifier's head sees."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dnamamba.alphabet import BASES
from dnamamba.inference.stream import Chunk, embeddings
from dnamamba.model.alleles import allele_features
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.config import Pooling, Strands
from dnamamba.model.tokens import reverse_complement


def pool_mean(
    chunks: Iterable[Chunk], lengths: Tensor, *, bases_only: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(batch, d_model): the mean hidden state over each sequence's first `lengths` (batch,) positions; with
    `bases_only` over A, C, G, T alone, NaN where there are none. Summed in `dtype`."""
    total, count = None, torch.zeros_like(lengths)
    for chunk in chunks:
        counts = _within(chunk, lengths)
        if bases_only:
            counts &= chunk.tokens < BASES
        part = torch.where(counts[..., None], chunk.hidden, 0).sum(1, dtype=dtype)
        total = part if total is None else total + part
        count += counts.sum(1)
    assert total is not None
    return total / count[:, None]


def pool_last(chunks: Iterable[Chunk], lengths: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """(batch, d_model): the hidden state of each sequence's last position; `lengths` (batch,) int64, at least 1."""
    total = None
    rows = torch.arange(len(lengths), device=lengths.device)
    for chunk in chunks:
        last = lengths - 1 - chunk.begin
        width = chunk.hidden.shape[1]
        is_here = (last >= 0) & (last < width)
        part = torch.where(is_here[:, None], chunk.hidden[rows, last.clamp(0, width - 1)].to(dtype), 0)
        total = part if total is None else total + part
    assert total is not None
    return total


def pooled_part(pooling: Pooling, chunk: Chunk, lengths: Tensor) -> Tensor:
    """(batch, d_model) fp32, differentiable: what a chunk adds to `pool_mean` or `pool_last`."""
    if pooling == "last":
        return pool_last([chunk], lengths)
    total = torch.where(_within(chunk, lengths)[..., None], chunk.hidden, 0).sum(1, dtype=torch.float32)
    return total / lengths[:, None]


def _within(chunk: Chunk, lengths: Tensor) -> Tensor:
    """(batch, length of the chunk) bool: no padding."""
    return torch.arange(chunk.begin, chunk.end, device=lengths.device) < lengths[:, None]


def strand_features(model: SequenceClassifier, tokens: Tensor, lengths: Tensor, chunk: int | None = None) -> Tensor:
    """(batch, features) fp32 of the strand that is given, as the head's pooling says.

    Args:
        tokens: (batch, length) uint8 without the soft-mask bit, each padded on the right; the padding changes
            nothing: no base sees it, and it is never pooled.
        lengths: (batch,) int64, bases of each sequence, at least 1.
        chunk: positions that go through the model at a time, states handed on; None takes all at once. The result is
            the same but for rounding. Models that see both sides take all at once.
    """
    if model.head_config.pooling == "alleles":
        return allele_features(model.backbone, tokens, lengths)  # windows are short: never in chunks
    pool = pool_mean if model.head_config.pooling == "mean" else pool_last
    return pool(embeddings(model.backbone, tokens, chunk or tokens.shape[1]), lengths)


def head_features(
    model: SequenceClassifier, tokens: Tensor, lengths: Tensor, strands: Strands, chunk: int | None = None
) -> Tensor:
    """What the head sees, fp32: `strand_features` of one strand or the mean of both (batch, features), or both side by
    side (batch, 2 · features), by which a causal model looks from either end."""
    forward = strand_features(model, tokens, lengths, chunk)
    if strands == "one":
        return forward
    reverse = strand_features(model, reverse_complement(tokens, lengths), lengths, chunk)
    return joined(forward, reverse, strands)


def joined(forward: Tensor, reverse: Tensor, strands: Strands) -> Tensor:
    """Both strands' features (batch, features) as the head sees them."""
    return (forward + reverse) / 2 if strands == "mean" else torch.cat((forward, reverse), dim=1)


def classify(model: SequenceClassifier, tokens: Tensor, lengths: Tensor, chunk: int | None = None) -> Tensor:
    """(batch, outputs) fp32 logits, of the strands that the head's configuration names."""
    return model.logits(head_features(model, tokens, lengths, model.head_config.strands, chunk))
