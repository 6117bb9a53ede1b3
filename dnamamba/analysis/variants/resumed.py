"""Alleles run from kept states, in batches, and compared with the reference base by base."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import PAD
from dnamamba.inference.batches import batches_by_length
from dnamamba.inference.kept_states import KeptStates
from dnamamba.inference.load import Inference
from dnamamba.model.language_model import LanguageModel


class AlleleSequences(NamedTuple):
    """Alleles in coordinates of the sequences that they change; (alleles,) int64 each."""

    sequence: np.ndarray
    """Which one of the kept sequences"""
    offset: np.ndarray
    """First base replaced, from 1 on"""
    ref_length: np.ndarray
    """Bases replaced"""
    end: np.ndarray
    """Where the reference bases end that are scored after the allele"""
    alt: list[np.ndarray]
    """uint8 tokens that replace them"""

    def take(self, index: np.ndarray) -> "AlleleSequences":
        """Some of them."""
        sequence, offset, ref_length, end = (column[index] for column in self[:4])
        return AlleleSequences(sequence, offset, ref_length, end, [self.alt[each] for each in index.tolist()])


class AlleleScores(NamedTuple):
    """(alleles,) float64, nats"""

    at: np.ndarray
    """ln p(alternate) − ln p(reference) of the replaced bases; NaN where one of them is no base"""
    after: np.ndarray
    """The same of the bases after them; N are left out"""
    bases: np.ndarray
    """int64: how many of those count"""
    distance: np.ndarray
    """Mean Euclidean distance of their final embeddings; NaN if not wanted, or without such bases"""
    tokens: int
    """Bases that went through the model"""


@torch.inference_mode()
def score_resumed(
    inference: Inference[LanguageModel],
    kept: KeptStates,
    alleles: AlleleSequences,
    batch_tokens: int,
    distances: bool = False,
) -> AlleleScores:
    """Every allele from the last state before it: the bases up to it, the alternate allele, the reference up to `end`.

    Sequences of like length go together, at most `batch_tokens` at once (and at least one). `distances` runs the
    reference in the same batch too.
    """
    count = len(alleles.alt)
    begin = kept.before(alleles.offset)
    alt_length = np.fromiter((allele.size for allele in alleles.alt), np.int64, count)
    length = alleles.end - begin - alleles.ref_length + alt_length
    # ln p of the sequences' bases as sums from their starts; float64, so that differences of sums keep their digits.
    sums = kept.log_likelihood.nan_to_num(0.0).double().cumsum(1)
    at, after, distance = (np.full(count, np.nan) for _ in range(3))
    bases, tokens_run = np.zeros(count, np.int64), 0
    for batch in batches_by_length(length, batch_tokens):
        part = alleles.take(batch)
        tokens = _tokens(kept, part, begin[batch], int(length[batch].max()))
        state = kept.start(part.sequence, begin[batch])
        with inference.autocast():
            output = inference.model(tokens, state)
        tokens_run += tokens.numel()
        position = _Positions(kept, part, begin[batch], alt_length[batch], tokens.shape[1])
        log_likelihood = torch.full(tokens.shape, torch.nan, device=tokens.device)
        log_likelihood[:, 1:] = inference.model.objective.log_likelihood(output.logits[:, :-1], tokens[:, 1:])
        reference = kept.log_likelihood[position.sequence[:, None], position.reference]
        # Differences base by base first: they are small where their sums are large.
        change = torch.where(position.is_after, log_likelihood - reference, 0.0).nan_to_num(0.0)
        after[batch] = change.double().sum(1).cpu().numpy()
        bases[batch] = (position.is_after & ~log_likelihood.isnan()).sum(1).cpu().numpy()
        alternate = torch.where(position.is_allele, log_likelihood, 0.0).double().sum(1)
        last, first = (torch.from_numpy(part.offset + shift - 1).to(tokens.device) for shift in (part.ref_length, 0))
        at[batch] = (alternate - (sums[position.sequence, last] - sums[position.sequence, first])).cpu().numpy()
        if distances:
            plain = part._replace(ref_length=np.zeros_like(part.ref_length), alt=[np.empty(0, np.uint8)] * batch.size)
            unchanged = _tokens(kept, plain, begin[batch], int((part.end - begin[batch]).max()))
            with inference.autocast():
                hidden = inference.model(unchanged, state, logits=False).hidden
            tokens_run += unchanged.numel()
            there = (position.reference - torch.from_numpy(begin[batch]).to(tokens.device)[:, None]).clamp(min=0)
            index = there.clamp(max=hidden.shape[1] - 1)[..., None].expand(-1, -1, hidden.shape[2])
            apart = (output.hidden.float() - hidden.float().gather(1, index)).norm(dim=-1)
            mean = torch.where(position.is_after, apart, 0.0).double().sum(1) / position.is_after.sum(1)
            distance[batch] = mean.cpu().numpy()
    return AlleleScores(at, after, bases, distance, tokens_run)


class _Positions:
    """For every position of a batch of alleles, what it is; (alleles, length) each."""

    def __init__(
        self, kept: KeptStates, alleles: AlleleSequences, begin: np.ndarray, alt_length: np.ndarray, length: int
    ) -> None:
        device = kept.tokens.device
        offset, ref_length, end, start, alt = (
            torch.from_numpy(column).to(device)[:, None]
            for column in (alleles.offset, alleles.ref_length, alleles.end, begin, alt_length)
        )
        self.sequence = torch.from_numpy(alleles.sequence).to(device)
        # In coordinates of the sequence without the change.
        position = torch.arange(length, device=device)[None] + start
        self.is_allele = (position >= offset) & (position < offset + alt)
        shifted = position - alt + ref_length
        self.is_after = (position >= offset + alt) & (shifted < end)
        self.reference: Tensor = shifted.clamp(0, kept.tokens.shape[1] - 1)


def _tokens(kept: KeptStates, alleles: AlleleSequences, begin: np.ndarray, length: int) -> Tensor:
    """(alleles, length) uint8 on the device: each one's bases from its state on, PAD behind."""
    tokens = np.full((len(alleles.alt), length), PAD, np.uint8)
    reference = kept.host
    for row, sequence, start, offset, ref_length, end, alt in zip(
        tokens, *(column.tolist() for column in (alleles.sequence, begin, *alleles[1:4])), alleles.alt, strict=True
    ):
        text = reference[sequence]
        row[: offset - start] = text[start:offset]
        row[offset - start : offset - start + alt.size] = alt
        rest = text[offset + ref_length : end]
        row[offset - start + alt.size : offset - start + alt.size + rest.size] = rest
    return torch.from_numpy(tokens).to(kept.tokens.device)
