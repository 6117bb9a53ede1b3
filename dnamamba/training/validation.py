"""How well the model predicts the validation windows: over all, and by class of base, so that one sees where.

Everything is a sum of −ln p(target) and a count of bases, which add up over batches and ranks; a score is their ratio,
taken once at the end. Sums and counts are fp64 and taken over masks in a fixed order, without atomics: the same inputs
give the same bits. Every base that counts is in exactly one class of each group.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnamamba.alphabet import BASES, C, G
from dnamamba.genome.annotation import Annotation
from dnamamba.genome.region_classes import UNCLASSED
from dnamamba.genome.windows import Window
from dnamamba.model.abilities import Ability
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.tokens import on_strand, plain_tokens
from dnamamba.training.data import FixedWindows
from dnamamba.training.window_parts import WindowParts

ANNOTATION_CLASSES = ("exon", "intron or intergenic", "contig without annotation")


def bits_per_base(nats: float, bases: float) -> float:
    """Σ −ln p in nats over so many bases, as bits a base; NaN where there is no base."""
    return nats / bases / math.log(2) if bases else math.nan


def perplexity(bits: float) -> float:
    """2 to the bits per base: infinite, rather than an error, where that is beyond a float."""
    return math.inf if bits >= 1024 else 2**bits


class ClassScore(NamedTuple):
    """One row of validation_by_class.csv."""

    group: str
    """`all`, `genome` (of a mixture), `position`, `repeat`, `cpg`, `annotation`, `region` or `contig`."""
    name: str
    """The class within its group."""
    nll: float
    """Σ −ln p(target) over the counted bases, in nats."""
    bases: int
    """Targets that are A, C, G or T."""

    @property
    def bits_per_base(self) -> float:
        """Of this class; NaN where there is no base."""
        return bits_per_base(self.nll, self.bases)

    @property
    def perplexity(self) -> float:
        """2 to the bits per base."""
        return perplexity(self.bits_per_base)

    def row(self, step: int) -> dict[str, str | float | int]:
        """As it stands in the table, for the validation after `step`."""
        named: dict[str, str | float | int] = {"step": step, "group": self.group, "class": self.name}
        return named | {"bits_per_base": self.bits_per_base, "perplexity": self.perplexity, "bases": self.bases}


class ValidationScores(NamedTuple):
    """What `evaluate` finds, of all ranks' windows."""

    classes: list[ClassScore]
    """`all` first; those without a base anywhere are left out, except for genomes."""
    windows: Tensor
    """(windows, 2) fp64 on the CPU: Σ −ln p in nats and the counted bases of each window, in the order of
    `EvaluationSet.indices`, set by set"""


class _Tally:
    """The sums of every class on the device, (classes, 2) fp64: nats and bases."""

    def __init__(self, groups: dict[str, Sequence[str]], device: torch.device) -> None:
        self.classes = [(group, name) for group, names in groups.items() for name in names]
        self.first = {group: next(i for i, c in enumerate(self.classes) if c[0] == group) for group in groups}
        self.sums = torch.zeros(len(self.classes), 2, dtype=torch.float64, device=device)

    def add(self, group: str, labels: Tensor, present: Sequence[int], nll: Tensor, counted: Tensor) -> None:
        """`labels`, integers that broadcast to nll's (batch, length), are classes of the group; `present` occur."""
        for label in present:
            mask = counted & (labels == label)
            self.sums[self.first[group] + label] += torch.stack([torch.where(mask, nll, 0.0).sum(), mask.sum()])


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    sets: Sequence[FixedWindows],
    *,
    chunk: int | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values,
) -> ValidationScores:
    """The scores of all ranks' windows, by class and one by one.

    Args:
        sets: this rank's windows of each genome, all of one length; those with an annotation make the group of it.
        chunk: positions that go through the model at a time, the state handed on; None takes whole windows.
        context: entered around the forward passes (the trainer's precision).
        sum_over_ranks: adds a tensor up over the ranks; called once for the classes, once for the windows.
    """
    device = model.lm_head.weight.device
    length = sets[0].plan.length
    causal = Ability.CAUSAL in model.abilities
    contigs, in_regions = _contig_numbers(sets), region_names(sets)
    tally = _Tally(_groups(sets, causal, contigs, in_regions), device)
    everywhere = torch.zeros((), dtype=torch.int64, device=device)
    of_windows = [torch.zeros(fixed.of_all_ranks, 2, dtype=torch.float64, device=device) for fixed in sets]
    with context():
        for genome, fixed in enumerate(sets):
            for item in range(len(fixed)):
                windows, own = fixed.windows(item), of_windows[genome][fixed.numbers(item)]
                numbers = [contigs[genome, window.contig] for window in windows]
                of_row = torch.tensor(numbers, device=device)[:, None]
                exons = None if fixed.annotation is None else annotation_labels(fixed.annotation, windows)
                regions = None if fixed.regions is None else region_labels(fixed, windows, in_regions)
                for scored in _scored(model, WindowParts(fixed[item], model.objective, device), chunk or length):
                    nll, counted = scored.nll, scored.counted
                    own += torch.stack([torch.where(counted, nll, 0.0).sum(1), counted.sum(1)], 1)
                    tally.add("all", everywhere, (0,), nll, counted)
                    if len(sets) > 1:
                        tally.add("genome", everywhere + genome, (genome,), nll, counted)
                    of_each = position_bins(length, causal, scored.first, scored.last)
                    present = range(int(of_each.min()), int(of_each.max()) + 1)
                    tally.add("position", torch.from_numpy(of_each).to(device), present, nll, counted)
                    tally.add("repeat", scored.soft_mask, (0, 1), nll, counted)
                    tally.add("cpg", scored.in_cpg, (0, 1), nll, counted)
                    if exons is not None:
                        labels = torch.from_numpy(exons[:, scored.first : scored.last]).to(device)
                        tally.add("annotation", labels, range(len(ANNOTATION_CLASSES)), nll, counted)
                    if regions is not None:
                        labels = torch.from_numpy(regions[:, scored.first : scored.last]).to(device)
                        tally.add("region", labels, range(len(in_regions)), nll, counted)
                    tally.add("contig", of_row, sorted(set(numbers)), nll, counted)
    sums = sum_over_ranks(tally.sums).tolist()
    scores = [ClassScore(*name, nats, int(bases)) for name, (nats, bases) in zip(tally.classes, sums, strict=True)]
    shown = [score for score in scores if score.bases or score.group in ("all", "genome")]
    return ValidationScores(shown, sum_over_ranks(torch.cat(of_windows)).cpu())


def _groups(
    sets: Sequence[FixedWindows], causal: bool, contigs: dict[tuple[int, str], int], regions: Sequence[str]
) -> dict[str, Sequence[str]]:
    """The classes of each group, by their numbers."""
    length = sets[0].plan.length
    most = length if causal else (length + 1) // 2
    bins = int(np.frexp(max(most - 1, 1))[1])
    return {
        "all": ["all"],
        **({"genome": [fixed.name for fixed in sets]} if len(sets) > 1 else {}),
        "position": [_bin_name(number, most) for number in range(bins)],
        "repeat": ["unique", "soft-masked"],
        "cpg": ["other", "CpG"],
        **({"annotation": ANNOTATION_CLASSES} if any(fixed.annotation is not None for fixed in sets) else {}),
        **({"region": regions} if regions else {}),
        "contig": [f"{sets[genome].name}:{contig}".removeprefix(":") for genome, contig in contigs],
    }


class _Scored(NamedTuple):
    """Positions [first, last) of some windows, as `evaluate` counts them; tensors are (batch, last − first)."""

    first: int
    last: int
    nll: Tensor
    """fp64"""
    counted: Tensor
    soft_mask: Tensor
    in_cpg: Tensor


def _scored(model: LanguageModel, windows: WindowParts, chunk: int) -> Iterator[_Scored]:
    """Chunk by chunk."""
    state = None
    for first in range(0, windows.length, chunk):
        last = min(first + chunk, windows.length)
        prepared = windows.chunk(first, last)
        loss = model.loss(prepared.inputs, prepared.targets, state)
        state = loss.state
        # The C of a CG at a chunk's end has its G in the next one.
        tokens, _ = on_strand(*windows.stored(first, min(last + 2, windows.length + 1)))
        is_cpg = in_cpg(tokens)[:, : last - first]
        yield _Scored(first, last, loss.nll.double(), prepared.targets < BASES, prepared.soft_mask, is_cpg)


def position_bins(length: int, causal: bool = True, first: int = 0, last: int | None = None) -> np.ndarray:
    """(last − first,) int64, of the positions [first, last) of a window, by default of all: ⌊log2 k⌋ where k = 1, 2, …
    is the number of bases that a target's prediction has seen; where it sees both sides, one more than the bases on the
    side where they are fewer.

    Where the largest k is a power of two, it joins the class before: alone it would be noise.
    """
    seen = np.arange(first + 1, (length if last is None else last) + 1)
    seen, most = (seen, length) if causal else (np.minimum(seen, length + 1 - seen), (length + 1) // 2)
    return np.frexp(np.minimum(seen, max(most - 1, 1)))[1].astype(np.int64) - 1


def in_cpg(tokens: Tensor) -> Tensor:
    """(batch, length + 1) uint8 windows → (batch, length) bool, of all bases but the first: whether it is the C or the
    G of a CG, which reads the same on both strands.

    The C of a CG that a window's end cuts counts as other: its G is not in the window.
    """
    plain = plain_tokens(tokens)
    is_g = (plain[:, :-1] == C) & (plain[:, 1:] == G)
    is_c = torch.zeros_like(is_g)
    is_c[:, :-1] = is_g[:, 1:]
    return is_g | is_c


def annotation_labels(annotation: Annotation, windows: Sequence[Window]) -> np.ndarray:
    """(windows, length) int8: the number in `ANNOTATION_CLASSES` of each target, in the order in which it is read."""
    labels = np.empty((len(windows), windows[0].end - windows[0].start - 1), np.int8)
    for row, window in zip(labels, windows, strict=True):
        if window.contig in annotation.contigs:
            exon = annotation.exon_mask(window.contig, window.start, window.end)
            row[:] = ~(exon[::-1] if window.reverse_complement else exon)[1:]
        else:
            row[:] = 2
    return labels


def region_names(sets: Sequence[FixedWindows]) -> list[str]:
    """The classes of all sets' regions, then `no class`; nothing where no set has regions."""
    known = [fixed.regions.names for fixed in sets if fixed.regions is not None]
    return [*dict.fromkeys(name for names in known for name in names), UNCLASSED] if known else []


def region_labels(fixed: FixedWindows, windows: Sequence[Window], names: Sequence[str]) -> np.ndarray:
    """(windows, length) uint8: the number in `names` of each target's class, in the order in which it is read."""
    assert fixed.regions is not None
    number = np.array([names.index(name) for name in (*fixed.regions.names, UNCLASSED)], np.uint8)
    labels = np.empty((len(windows), fixed.plan.length), np.uint8)
    for row, window in zip(labels, windows, strict=True):
        offset = fixed.plan.store.contig(window.contig).offset
        classes = fixed.regions.at(offset + window.start, offset + window.end)
        row[:] = number[classes[::-1] if window.reverse_complement else classes][1:]
    return labels


def report_lines(rows: Sequence[dict[str, str]]) -> list[str]:
    """A line a group of several classes, for the end of a run; `rows` of validation_by_class.csv, cells as text."""
    titles = {
        "position": "by context",
        "repeat": "by mask",
        "cpg": "by CpG",
        "annotation": "by gene",
        "region": "by region",
    }
    lines = []
    for group, title in titles.items():
        chosen = [row for row in rows if row["group"] == group]
        if group == "position":
            # Every third is enough to see the trend; the last may be a sliver of the window, and noisy.
            largest = max(range(len(chosen)), key=lambda number: int(chosen[number]["bases"]), default=0)
            chosen = chosen[largest::-3][::-1]
        if len(chosen) > 1:
            lines.append(
                f"{title:>10}  " + ", ".join(f"{row['class']} {float(row['bits_per_base']):.4f}" for row in chosen)
            )
    return lines


def _contig_numbers(sets: Sequence[FixedWindows]) -> dict[tuple[int, str], int]:
    """The class number of each (genome, contig) with validation windows: the same on every rank."""
    names = [(genome, interval.contig) for genome, fixed in enumerate(sets) for interval in fixed.plan.intervals]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _bin_name(number: int, most: int) -> str:
    first, last = 1 << number, (2 << number) - 1
    last = most if last >= most - 1 else last
    return str(first) if first == last else f"{first}-{last}"
