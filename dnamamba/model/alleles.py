"""Features of a variant: the same window with the reference and with the alternate allele, through one backbone.

A variant is one sequence of tokens, `CLS reference-window SEP alternate-window`, so that it travels like any other
sequence. Its reverse complement holds both windows' reverse complements in the other order, with CLS at the end: that
says which window is which. Both windows begin and end with the same bases of the reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dnamamba.alphabet import BASES, CLS, PAD, SEP
from dnamamba.model.abilities import Ability, abilities_of
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import Backbone
from dnamamba.model.loss import next_base_log_likelihood
from dnamamba.model.precision import full_precision, without_autocast

NEAR = 16
"""Bases from the variant on (on both sides of it, of a model that sees them) that are also taken apart: a few codons,
or a splice site."""
DISTANCES, RATIOS = 2, 2
"""Numbers apart from the embeddings' directions: logs of their distances near and far; the log-likelihood ratio in two
parts, of a causal model."""


def allele_width(config: ModelConfig) -> int:
    """Numbers that `allele_features` gives a variant."""
    return 3 * config.d_model + DISTANCES + (RATIOS if Ability.CAUSAL in abilities_of(config) else 0)


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
    """(batch, `allele_width`) fp32 of sequences as this module's head describes them.

    The difference of the alleles' mean embeddings over the first bases from the variant on and over all to the window's
    end, each as its direction and the log of its length; the reference's mean embedding near the variant; the
    log-likelihood ratio of the first base that differs, and of all that follow. The likelihoods are those of a head
    tied to the embedding.

    Of a model that sees both sides: near are the variant and the bases on both sides of it, far is the whole window;
    and there is no ratio, as no base is masked.
    """
    windows, sizes = split_alleles(tokens, lengths)
    hidden, _ = backbone(windows.flatten(0, 1))
    position = torch.arange(windows.shape[2], device=tokens.device)
    first = (windows[0] != windows[1]).int().argmax(1)[:, None]
    is_in = position < sizes[..., None]
    if backbone.is_causal:
        is_in &= position >= first
        is_near = is_in & (position < first + NEAR)
    else:
        low, high = _changed(windows, sizes)
        is_near = is_in & (position >= low - NEAR) & (position < high + NEAR)
    with without_autocast(tokens.device):
        hidden = backbone.embeddings(full_precision(hidden)).view(*windows.shape, -1)
        near, far = _mean(hidden, is_near), _mean(hidden, is_in)
        changes = near[1] - near[0], far[1] - far[0]
        scalars = [change.norm(dim=-1).clamp(min=1e-8).log() for change in changes]
        if backbone.is_causal:
            scalars += _log_likelihood_ratio(backbone, hidden, windows, is_in, first)
        return torch.cat((*map(_direction, changes), _direction(near[0]), torch.stack(scalars, dim=1)), dim=1)


def _changed(windows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(2, batch, 1) each: where the bases begin and end that both alleles do not share, in each window; the same on
    either strand. Of an indel that may stand in several places, all of them."""
    position = torch.arange(windows.shape[2], device=windows.device)
    left = (windows[0] != windows[1]).int().argmax(1)
    from_the_right = sizes[..., None] - 1 - position
    backwards = torch.where(from_the_right >= 0, windows.gather(2, from_the_right.clamp(min=0)), PAD)
    right = sizes - (backwards[0] != backwards[1]).int().argmax(1)
    return torch.minimum(left, right)[..., None], torch.maximum(left, right)[..., None]


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
