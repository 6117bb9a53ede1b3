"""Zero-shot scores of alleles by a model that predicts masked bases: what it expects there, given both sides.

With r and a the two alleles, w(r) and w(a) a window of the genome with each of them, and q(x, i) = p(xᵢ | all of x but
xᵢ), the base masked:

    a single-base change    llr = at = ln q(w(a), i) − ln q(w(r), i) at the changed base i, masked in one pass for all
                            its alternates; after = 0
    any other allele        llr = at + after, the pseudo-log-likelihood ratio of Brandes et al. 2023 (ESM1b):
                            at    = Σ ln q(w(a), i) over the bases of a − Σ ln q(w(r), i) over those of r
                            after = Σ ln q(w(a), i) − Σ ln q(w(r), i) over `flank` reference bases on each side

A model that sees both sides of an indel says most of it at the bases around. Brandes et al. sum over a whole protein; a
genome's window is cut to the bases near the variant. A deletion saves the model bases to predict and an insertion
adds some, so that `at` favours deletions; `after` compares the same bases in both, whatever the alleles' lengths.

A window holds the variant in its middle, with as many bases on both sides (shifted at a contig's ends): so a variant
and the same one of the reverse-complemented genome are read in the same windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import BASES, TOKEN_BITS, reverse_complement
from dnamamba.analysis.variants.scores import AllelesScored, Scores, StrandScores, Tokens, Truncation
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.view import GenomeView
from dnamamba.inference.batches import padded
from dnamamba.inference.load import Inference
from dnamamba.inference.masked import masked_logits
from dnamamba.inference.shards import Shard
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.loss import next_base_log_likelihood
from dnamamba.runs.lines import Line
from dnamamba.runs.progress import si


@dataclass(frozen=True)
class MaskedPlan:
    """How alleles are scored."""

    context: int
    """Bases of a window at most"""
    flank: int
    """Bases on each side of an allele that are scored with it, single-base changes apart"""
    mask_every: int | None
    """Bases from one masked base to the next in a pass; None masks one base a pass"""
    batch_tokens: int
    """Bases in one pass through the model"""
    same_on_both_strands: bool
    """Of an equivariant model: one strand is read, and serves both"""
    shard: Shard | None = None
    """Of the batches of alleles, those to score; None scores all"""

    def score(
        self,
        inference: Inference[LanguageModel],
        store: GenomeView,
        alleles: Alleles,
        progress: AllelesScored | None = None,
    ) -> Scores:
        """`score_masked`."""
        return score_masked(inference, store, alleles, self, progress)

    def lines(self) -> list[Line]:
        """What is computed, for people."""
        strands = "one strand, which serves both" if self.same_on_both_strands else "both strands"
        masks = "alone" if self.mask_every is None else f"every {self.mask_every} in one pass"
        return [
            ("windows", f"{self.context:,} bases around each variant, {strands}"),
            ("scores", "ln p of the alternate base - ln p of the reference base, masked, given both sides"),
            (
                "",
                f"other than single bases: summed over the allele and {self.flank} bases on each side, masked {masks}",
            ),
        ]

    def bases_of_region(self, length: int) -> int:
        """Bases that go through the model to score all single-base changes of a region."""
        return length * self.context * (1 if self.same_on_both_strands else 2)

    def describe_run(self, tokens: Tokens) -> str:
        """How many bases went through the model."""
        return f"{si(tokens.tiles + tokens.alleles)}b in windows, a pass for each position that is masked"

    def provenance(self) -> dict[str, Any]:
        """What scores say of themselves."""
        every = "alone" if self.mask_every is None else self.mask_every
        return {"context": self.context, "flank": self.flank, "mask_every": every}


@torch.inference_mode()
def score_masked(
    inference: Inference[LanguageModel],
    store: GenomeView,
    alleles: Alleles,
    plan: MaskedPlan,
    progress: AllelesScored | None = None,
) -> Scores:
    """Both strands' scores of all alleles without a reason (`Alleles.reason` 0), `bases` being those of the flanks."""
    wanted = np.flatnonzero(alleles.reason == 0)
    alt_length = np.fromiter((len(alleles.alt[allele]) for allele in wanted.tolist()), np.int64, wanted.size)
    is_single = (alleles.ref_length[wanted] == 1) & (alt_length == 1)
    order = np.lexsort((alleles.start[wanted], alleles.contig[wanted]))  # the genome is read once through
    single, others = (wanted[order[chosen[order]]] for chosen in (is_single, ~is_single))
    strands: list[_MaskedStrand] = []
    done, serves = 0, 2 if plan.same_on_both_strands else 1
    for reverse in (False, True)[: 3 - serves]:
        strands.append(_MaskedStrand(inference, store, alleles, plan, reverse))
        for count in strands[-1].score(single, others):
            done += serves * count
            if progress is not None:
                progress(done, 2 * wanted.size)
    reference, alternate = (sum(getattr(strand, name) for strand in strands) for name in ("reference", "alternate"))
    return Scores(
        strands[0].scores,
        strands[-1].scores,
        Truncation(np.empty(0), np.empty(0)),
        Tokens(reference, alternate, 0, reference + alternate),
    )


class _Window(NamedTuple):
    """A window with one of the alleles in it, on the strand that is read."""

    tokens: np.ndarray
    """(length,) uint8 without the soft mask"""
    first: int
    """The allele's first base"""
    end: int
    """Where it ends"""


class _MaskedStrand:
    """The scoring of one strand."""

    def __init__(
        self, inference: Inference[LanguageModel], store: GenomeView, alleles: Alleles, plan: MaskedPlan, reverse: bool
    ) -> None:
        self.inference, self.store, self.alleles, self.plan, self.reverse = inference, store, alleles, plan, reverse
        count = len(alleles)
        self.scores = StrandScores(np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, np.int64), None)
        self.reference = self.alternate = 0
        """Bases that went through the model, with either allele"""

    def score(self, single: np.ndarray, others: np.ndarray) -> Iterator[int]:
        """Fills in the scores of the alleles, single-base changes first; yields how many at a time."""
        block = max(self.plan.batch_tokens // self.plan.context, 1)
        changes = np.flatnonzero(
            (np.diff(self.alleles.contig[single]) != 0) | (np.diff(self.alleles.start[single]) != 0)
        )
        places = np.split(single, changes + 1) if single.size else []
        shard = self.plan.shard
        for number, first in enumerate(range(0, len(places), block)):
            if shard is None or shard.takes(number):
                self._score_single(places[first : first + block])
            yield sum(map(len, places[first : first + block]))
        for number, first in enumerate(range(0, others.size, max(block // 2, 1))):
            chosen = others[first : first + max(block // 2, 1)]
            if shard is None or shard.takes(number):
                self._score_others(chosen)
            yield chosen.size

    def _score_single(self, places: Sequence[np.ndarray]) -> None:
        """Of several places, the alleles at each."""
        windows = [self._window(int(members[0]), changed=False) for members in places]
        logits, _, read = self._logits(windows, 0)
        self.reference += read
        first = torch.tensor([window.first for window in windows], device=logits.device)
        log_p = torch.log_softmax(logits[torch.arange(len(windows), device=logits.device), first], -1)
        for members, window, row in zip(places, windows, log_p.double().cpu().numpy(), strict=True):
            for allele in members.tolist():
                alt = int(self.alleles.alternate(allele, self.reverse)[0])
                self.scores.at[allele] = row[alt] - row[window.tokens[window.first]]
                self.scores.after[allele] = 0.0

    def _score_others(self, chosen: np.ndarray) -> None:
        sums = []
        for changed in (False, True):
            windows = [self._window(allele, changed) for allele in chosen.tolist()]
            logits, tokens, read = self._logits(windows, self.plan.flank)
            if changed:
                self.alternate += read
            else:
                self.reference += read
            position = torch.arange(tokens.shape[1], device=tokens.device)
            first, end = torch.tensor([window[1:] for window in windows], device=tokens.device).T[..., None]
            is_allele = (position >= first) & (position < end)
            is_near = (position >= first - self.plan.flank) & (position < end + self.plan.flank)
            is_flank = is_near & ~is_allele & (tokens < BASES)
            log_likelihood = next_base_log_likelihood(logits, tokens).double()
            sums.append([log_likelihood.where(here, 0.0).sum(1).cpu().numpy() for here in (is_allele, is_flank)])
        self.scores.at[chosen], self.scores.after[chosen] = (
            alternate - reference for reference, alternate in zip(*sums, strict=True)
        )
        self.scores.bases[chosen] = is_flank.sum(1).cpu().numpy()

    def _logits(self, windows: Sequence[_Window], flank: int) -> tuple[Tensor, Tensor, int]:
        """(windows, length, 4) logits of the alleles and so many bases on both sides, each masked, 0 elsewhere; the
        tokens (windows, length); the bases that went through the model."""
        put = self.inference.compute.put
        tokens = put(padded([window.tokens for window in windows]))
        first = np.array([max(window.first - flank, 0) for window in windows])
        end = np.array([min(window.end + flank, window.tokens.size) for window in windows])
        with self.inference.autocast():
            logits = masked_logits(
                self.inference, tokens, put(first), put(end), self.plan.mask_every, self.plan.batch_tokens
            )
        passes = np.minimum(end - first, self.plan.mask_every or tokens.shape[1])
        return logits, tokens, int(passes.sum()) * tokens.shape[1]

    def _window(self, allele: int, changed: bool) -> _Window:
        """With the alternate allele if `changed`; else as the reference is."""
        alleles, context = self.alleles, self.plan.context
        start, ref_length = int(alleles.start[allele]), int(alleles.ref_length[allele])
        alt = alleles.alternate(allele, reverse=False) if changed else None
        contig = self.store.contigs[alleles.contig[allele]]
        width = ref_length + (context - max(ref_length, len(alleles.alt[allele]))) // 2 * 2
        begin = min(max(start - (width - ref_length) // 2, 0), max(contig.length - width, 0))
        tokens = self.store.read(contig.name, begin, min(begin + width, contig.length)) & TOKEN_BITS
        first, end = start - begin, start - begin + ref_length
        if alt is not None:
            tokens = np.concatenate((tokens[:first], alt, tokens[end:]))
            end = first + alt.size
        if not self.reverse:
            return _Window(tokens, first, end)
        return _Window(reverse_complement(tokens), tokens.size - end, tokens.size - first)
