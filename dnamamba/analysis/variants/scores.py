"""Zero-shot scores of alleles by a causal model: log-likelihood ratios from resumed states. Those of models that see
both sides are in `masked_scores`.

A causal model has read the reference up to a variant once for all alleles that begin after it. So the reference of a
tile (`tiles`) goes through the model once, states are kept on the way (`kept_states`), and each allele starts from
the state before it: the bases up to the variant, the alternate allele, and the same reference bases after it as those
that the reference is scored on. With r and a the two alleles, u the bases before and d the bases after:

    llr = ln p(a d | u) − ln p(r d | u) = at + after
    at    = ln p(a | u) − ln p(r | u)
    after = ln p(d | u a) − ln p(d | u r)

Exact but for d, of which `suffix` bases are taken; how much the rest would have added is measured on a sample. The same
on the reverse complement gives the other strand's scores. A deletion saves the model bases to predict and an insertion
adds some, so that `at` favours deletions; `after` compares the same bases in both, whatever the alleles' lengths.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils._pytree import tree_leaves

from dnamamba.alphabet import TOKEN_BITS, reverse_complement
from dnamamba.analysis.variants.resumed import AlleleSequences, score_resumed
from dnamamba.analysis.variants.tiles import Tiling, on_reverse_strand
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.view import GenomeView
from dnamamba.inference.kept_states import pass_and_keep, states_needed
from dnamamba.inference.load import Inference
from dnamamba.inference.shards import Shard
from dnamamba.model.language_model import LanguageModel
from dnamamba.runs.lines import Line
from dnamamba.runs.progress import compared, si

STATE_BYTES = 1 << 30
"""States kept at a time take no more, unless those of one tile do."""
AllelesScored = Callable[[int, int], None]
"""Called with (allele-strands scored so far, in all)."""


@dataclass(frozen=True)
class ScorePlan:
    """How alleles are scored."""

    tiling: Tiling
    state_every: int
    """Bases between kept states"""
    batch_tokens: int
    """Bases in one pass through the model"""
    exact: bool = False
    """Score to the tile's end and not the suffix alone"""
    check: int = 0
    """Alleles scored both ways, to measure the difference"""
    embedding_distance: bool = False
    shard: Shard | None = None
    """Of the groups of tiles that are passed together, those to score; None scores all"""

    @property
    def context(self) -> int:
        return self.tiling.context

    def score(
        self,
        inference: Inference[LanguageModel],
        store: GenomeView,
        alleles: Alleles,
        progress: AllelesScored | None = None,
    ) -> "Scores":
        """`score_alleles`."""
        return score_alleles(inference, store, alleles, self, progress)

    def lines(self) -> list[Line]:
        """What is computed, for people."""
        after = "to the tile's end" if self.exact else f"{self.tiling.suffix:,} bases after each allele"
        tiles = f"{self.context:,} bases every {self.context // 2:,}"
        return [("tiles", f"{tiles}, {after}, states every {self.state_every:,}")]

    def bases_of_region(self, length: int) -> int:
        """Bases that go through the model to score all single-base changes of a region, about."""
        return 6 * length * (1 + self.tiling.suffix + self.state_every // 2)

    def describe_run(self, tokens: "Tokens") -> str:
        """How many bases went through the model."""
        run = tokens.tiles + tokens.alleles
        parts = f"{si(tokens.tiles)}b in tiles, {si(tokens.alleles)}b after kept states; {si(tokens.check)}b to check"
        return f"{si(run)}b ({parts}): {compared(run, tokens.full, 'four windows an allele')}"

    def provenance(self) -> dict[str, Any]:
        """What scores say of themselves."""
        return {"context": self.context, "suffix": "to the tile's end" if self.exact else self.tiling.suffix}


@dataclass(frozen=True)
class StrandScores:
    """One strand's scores in nats, (alleles,) float64; NaN where there is none."""

    at: np.ndarray
    after: np.ndarray
    bases: np.ndarray
    """(alleles,) int64: bases after the variant that count; of a model of both sides, those around it"""
    distance: np.ndarray | None
    """Mean Euclidean distance of the final embeddings over these bases"""

    @property
    def llr(self) -> np.ndarray:
        return self.at + self.after


class Truncation(NamedTuple):
    """What leaving out the bases beyond the suffix changes, on a sample."""

    truncated: np.ndarray
    """(k,) llr with the suffix"""
    exact: np.ndarray
    """(k,) llr to the tile's end"""


class Tokens(NamedTuple):
    """Bases that went through the model."""

    tiles: int
    """Passes of the reference"""
    alleles: int
    """Passes of alleles"""
    check: int
    """To measure the truncation"""
    full: int
    """What a window of the context's length for the reference and one for each allele would have taken"""


@dataclass(frozen=True)
class Scores:
    forward: StrandScores
    reverse: StrandScores
    truncation: Truncation
    tokens: Tokens


def score_alleles(
    inference: Inference[LanguageModel],
    store: GenomeView,
    alleles: Alleles,
    plan: ScorePlan,
    progress: AllelesScored | None = None,
) -> Scores:
    """Both strands' scores of all alleles without a reason (`Alleles.reason` 0).

    An allele that begins with a strand's first base has no score on that strand: nothing predicts that base.
    """
    wanted = np.flatnonzero(alleles.reason == 0)
    lengths = np.array([contig.length for contig in store.contigs], np.int64)[alleles.contig[wanted]]
    counts = np.zeros(3, np.int64)
    strands, truncated, exact = [], [], []
    done = 0
    for reverse in (False, True):
        start = alleles.start[wanted]
        if reverse:
            start = on_reverse_strand(start, alleles.ref_length[wanted], lengths)
        keep = start > 0
        strand = _Strand(inference, store, alleles, plan, reverse)

        def report(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, 2 * wanted.size)

        scores, sample = strand.score(wanted[keep], start[keep], lengths[keep], report)
        done += wanted.size
        strands.append(scores)
        truncated.append(sample.truncated)
        exact.append(sample.exact)
        counts += strand.tokens
    tiles, resumed, check = counts.tolist()
    return Scores(
        strands[0],
        strands[1],
        Truncation(np.concatenate(truncated), np.concatenate(exact)),
        Tokens(tiles, resumed, check, 4 * plan.tiling.context * wanted.size),
    )


class _Strand:
    """The scoring of one strand."""

    def __init__(
        self, inference: Inference[LanguageModel], store: GenomeView, alleles: Alleles, plan: ScorePlan, reverse: bool
    ) -> None:
        self.inference, self.store, self.alleles, self.plan, self.reverse = inference, store, alleles, plan, reverse
        self.tokens = np.zeros(3, np.int64)
        """tiles, alleles, check"""

    def score(
        self, wanted: np.ndarray, start: np.ndarray, lengths: np.ndarray, report: Callable[[int], None]
    ) -> tuple[StrandScores, Truncation]:
        plan = self.plan
        at, after = (np.full(len(self.alleles), np.nan) for _ in range(2))
        distance = np.full(len(self.alleles), np.nan) if plan.embedding_distance else None
        bases = np.zeros(len(self.alleles), np.int64)
        ref_length, contig = self.alleles.ref_length[wanted], self.alleles.contig[wanted]
        tiled = plan.tiling.locate(start, ref_length, lengths)
        end = tiled.exact_end if plan.exact else tiled.end
        sampled = np.zeros(wanted.size, bool)
        if plan.check and not plan.exact and wanted.size:
            sampled[np.linspace(0, wanted.size - 1, min(plan.check, wanted.size)).round().astype(np.int64)] = True
        reach = np.where(sampled, tiled.exact_end, end)
        # In the order of the strand, so that a tile's alleles stand together and the genome is read once through.
        order = np.lexsort((tiled.offset, tiled.tile, contig))
        samples: list[tuple[np.ndarray, np.ndarray]] = []
        done = 0
        for number, group in enumerate(self._groups(order, contig, tiled.tile, tiled.offset)):
            members = np.concatenate(group)
            if plan.shard is not None and not plan.shard.takes(number):
                done += members.size
                report(done)
                continue
            tile = np.repeat(np.arange(len(group)), [part.size for part in group])
            tiles = [
                self._read(int(contig[part[0]]), int(tiled.tile_start[part[0]]), int(reach[part].max()))
                for part in group
            ]
            offset = tiled.offset[members]
            kept = pass_and_keep(self.inference, tiles, plan.state_every, states_needed(offset, plan.state_every))
            self.tokens[0] += kept.bases
            alt = [self.alleles.alternate(allele, self.reverse) for allele in wanted[members].tolist()]
            sequences = AlleleSequences(tile, offset, ref_length[members], end[members], alt)
            scored = score_resumed(self.inference, kept, sequences, plan.batch_tokens, plan.embedding_distance)
            self.tokens[1] += scored.tokens
            chosen = wanted[members]
            at[chosen], after[chosen], bases[chosen] = scored.at, scored.after, scored.bases
            if distance is not None:
                distance[chosen] = scored.distance
            if (check := np.flatnonzero(sampled[members])).size:
                to_end = sequences.take(check)._replace(end=tiled.exact_end[members[check]])
                exact = score_resumed(self.inference, kept, to_end, plan.batch_tokens)
                self.tokens[2] += exact.tokens
                samples.append(((scored.at + scored.after)[check], exact.at + exact.after))
            done += members.size
            report(done)
        return StrandScores(at, after, bases, distance), Truncation(
            *(np.concatenate([pair[side] for pair in samples]) if samples else np.empty(0) for side in (0, 1))
        )

    def _groups(
        self, order: np.ndarray, contig: np.ndarray, tile: np.ndarray, offset: np.ndarray
    ) -> Iterator[list[np.ndarray]]:
        """Tiles to pass together, as the indices of each one's alleles: many, so that a pass in steps of `state_every`
        bases keeps a GPU busy, but with no more states to keep than `STATE_BYTES`."""
        every = self.plan.state_every
        state_bytes = sum(leaf.nbytes for leaf in tree_leaves(self.inference.model.init_state(1)))
        changes = (np.diff(contig[order]) != 0) | (np.diff(tile[order]) != 0)
        group: list[np.ndarray] = []
        needed: set[int] = set()
        for members in np.split(order, np.flatnonzero(changes) + 1) if order.size else []:
            together = needed.union(states_needed(offset[members], every))
            count = len(group) + 1
            if group and (count * every > self.plan.batch_tokens or count * len(together) * state_bytes > STATE_BYTES):
                yield group
                group, together = [], set(states_needed(offset[members], every))
            group.append(members)
            needed = together
        if group:
            yield group

    def _read(self, contig: int, start: int, length: int) -> np.ndarray:
        """(length,) uint8: bases of the strand without the soft mask."""
        record = self.store.contigs[contig]
        begin = record.length - start - length if self.reverse else start
        tokens = self.store.read(record.name, begin, begin + length) & TOKEN_BITS
        return reverse_complement(tokens) if self.reverse else tokens
