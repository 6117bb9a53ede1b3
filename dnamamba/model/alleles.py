"""Features of a variant: the same window with the reference and with the alternate allele, through one backbone.

A variant is one sequence of tokens, `CLS reference-window SEP alternate-window`, so that it travels like any other
sequence. Its reverse complement holds both windows' reverse complements in the other order, with CLS at the end: that
says which window is which. Both windows begin and end with the same bases of the reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dnamamba.alphabet import BASES, CLS, PAD, SEP
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import Backbone
from dnamamba.model.loss import next_base_log_likelihood
from dnamamba.model.precision import full_precision, without_autocast

NEAR = 16
"""Bases from the variant on that are also taken apart: a few codons, or a splice site."""
SCALARS = 4
"""Logs of the embeddings' distances near and far, and the log-likelihood ratio in two parts."""


def allele_width(config: ModelConfig) -> int:
    """Numbers that `allele_features` gives a variant."""
    return 3 * config.d_model + SCALARS


def split_alleles(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, length) → windows (2, batch, width) uint8, reference first, PAD behind; their lengths (2, batch)."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    separator = (tokens == SEP).int().argmax(1)
    is_reverse = tokens[:, 0] != CLS
    first = torch.where(is_reverse, 0, 1)
    begins = torch.stack((first, separator + 1))
    ends = torch.stack((separator, lengths - is_reverse.long()))
    # As they stand in the sequence; of a reverse-complemented one the alternate stands first.
    begins, ends = (torch.where(is_reverse, both.flip(0), both) for both in (begins, ends))
    sizes = ends - begins
    width = int(sizes.max())
    source = (begins[..., None] + position[:width]).clamp(max=tokens.shape[1] - 1)
    windows = tokens.expand(2, *tokens.shape).gather(2, source)
    return torch.where(position[:width] < sizes[..., None], windows, PAD), sizes


def allele_features(backbone: Backbone, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(batch, 3 · d_model + 4) fp32 of sequences as this module's head describes them.

    The difference of the alleles' mean embeddings over the first bases from the variant on and over all to the window's
    end, each as its direction and the log of its length; the reference's mean embedding near the variant; the
    log-likelihood ratio of the first base that differs, and of all that follow. The likelihoods are those of a head
    tied to the embedding.
    """
    windows, sizes = split_alleles(tokens, lengths)
    hidden, _ = backbone(windows.flatten(0, 1))
    position = torch.arange(windows.shape[2], device=tokens.device)
    first = (windows[0] != windows[1]).int().argmax(1)[:, None]
    is_in = (position >= first) & (position < sizes[..., None])
    with without_autocast(tokens.device):
        hidden = full_precision(hidden).view(*windows.shape, -1)
        near, far = (_mean(hidden, is_in & (position < first + reach)) for reach in (NEAR, windows.shape[2]))
        changes = near[1] - near[0], far[1] - far[0]
        at, after = _log_likelihood_ratio(backbone, hidden, windows, is_in, first)
        scalars = [*(change.norm(dim=-1).clamp(min=1e-8).log() for change in changes), at, after]
        return torch.cat((*map(_direction, changes), _direction(near[0]), torch.stack(scalars, dim=1)), dim=1)


def _mean(hidden: Tensor, where: Tensor) -> Tensor:
    """(2, batch, length, d_model) over the positions `where` (2, batch, length)."""
    return (hidden * where[..., None]).sum(2) / where.sum(2).clamp(min=1)[..., None]


def _direction(x: Tensor) -> Tensor:
    """Scaled so that a head that starts small learns from it, however small the change."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-12)


def _log_likelihood_ratio(
    backbone: Backbone, hidden: Tensor, windows: Tensor, is_in: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """(batch,) each: of the first base that differs, and of all that follow it; N do not count."""
    logits = F.linear(hidden[:, :, :-1], backbone.embedding.weight[:BASES].to(hidden.dtype))
    targets = windows[:, :, 1:]
    counted = (targets < BASES) & is_in[:, :, 1:]
    log_likelihood = torch.where(counted, next_base_log_likelihood(logits, targets), 0.0)
    is_first = torch.arange(1, windows.shape[2], device=windows.device) == first
    at = torch.where(is_first, log_likelihood, 0.0).sum(2)
    after = log_likelihood.sum(2) - at
    return at[1] - at[0], after[1] - after[0]
