"""Train, validation and test intervals, proved disjoint after widening to the context length.

The proof's meaning: a window lies wholly inside an interval of its split, but whoever uses a split later (variants with
context, a longer model) widens its intervals by the context length on both sides. So no interval of one split, widened,
may touch an interval of another.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.bed import is_bed_name, read_intervals
from dnamamba.genome.contigs import ContigSelection, select_contigs
from dnamamba.genome.intervals import (
    ByContig,
    Interval,
    by_contig,
    merge,
    subtract,
    to_intervals,
    total,
    widen,
)
from dnamamba.genome.store import Contig, TokenStore
from dnamamba.outputs import whole_file

SPLITS = ("train", "validation", "test")
BLOCKS_A_SPLIT = 16
"""Default number of blocks that validation and test consist of: many small ones are a fairer sample than one."""


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of intervals, each sorted by contig (in the store's order) and start."""

    train: tuple[Interval, ...]
    validation: tuple[Interval, ...]
    test: tuple[Interval, ...]
    context_length: int
    """Bases between intervals of different splits, at least."""
    genome: str
    """Fingerprint of the token store."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Bases of the chosen contigs in no split: `excluded`, `margins` (and what explicit splits left over)."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of genome and intervals: the key of whatever is derived from them."""
        content = [self.genome, *([list(interval) for interval in getattr(self, split)] for split in SPLITS)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def write_bed(self, path: Path) -> None:
        """One BED file: contig, start, end, and the split as the name column."""
        rows = (f"{i.contig}\t{i.start}\t{i.end}\t{split}\n" for split in SPLITS for i in getattr(self, split))
        with whole_file(path, overwrite=True) as partial:
            partial.write_text("".join(rows), encoding="utf-8")


def make_splits(
    store: TokenStore,
    contigs: ContigSelection | Sequence[Contig],
    *,
    context_length: int,
    validation_length: int | None = None,
    train: Sequence[str | Path] | None = None,
    validation: Sequence[str | Path] | None = None,
    test: Sequence[str | Path] | None = None,
    exclude: Sequence[Path] = (),
    validation_fraction: float = 0.05,
    test_fraction: float = 0.05,
    block_size: int | None = None,
    seed: int = 0,
) -> Splits:
    """Splits of the chosen contigs; what is given (BED files or contig patterns, mixed) is taken as it is.

    - Nothing given: blocks of `block_size` bases, drawn by (seed, contig, block) until validation and test have their
      fractions of the bases; training is the rest, less margins of `context_length` around them.
    - Validation or test given: the other stays empty unless given (validation is needed, so then it is drawn), and
      training, unless given, is the rest less margins.
    - Training given: validation, unless given, is drawn from the rest.

    Windows of validation and test have `validation_length` bases, by default `context_length`. `exclude`d intervals are
    in no split. Bases may belong to no split only by margins, exclusion, or because everything was given. Raises
    `InputError` for unusable files and patterns, splits that overlap or lie closer than `context_length`, and genomes
    too small for the lengths.
    """
    chosen = contigs.chosen if isinstance(contigs, ContigSelection) else tuple(contigs)
    whole: ByContig = {contig.name: np.array([[0, contig.length]], np.int64) for contig in chosen}
    excluded = by_contig(
        interval for path in exclude for interval in read_intervals(Path(path), store, known_contigs_only=True)
    )
    usable = _less(whole, excluded)
    given = {"train": train, "validation": validation, "test": test}
    sets = {split: _explicit(store, usable, split, items) for split, items in given.items() if items}
    lengths = dict.fromkeys(SPLITS, validation_length or context_length) | {"train": context_length}
    drawn = {"test": test_fraction} if not sets else {}
    drawn |= {} if "validation" in sets else {"validation": validation_fraction}
    for split, fraction in drawn.items():
        available = usable
        for taken in sets.values():
            available = _less(available, _widened(taken, context_length, store))
        sets[split] = _draw(store, available, total(usable), fraction, lengths[split], block_size, f"{seed}/blocks")
    sets.setdefault("test", {})
    if "train" not in sets:
        rest = usable
        for taken in sets.values():
            rest = _less(rest, _widened(taken, context_length, store))
        sets["train"] = rest
    _check_windows_fit(sets, chosen, lengths, drawn)
    ordered = {
        split: to_intervals({c.name: sets[split][c.name] for c in chosen if c.name in sets[split]}) for split in SPLITS
    }
    used = sum(total(pairs) for pairs in sets.values())
    # Where training is the rest, what no split has are margins; where it was given, perhaps whole contigs.
    left = "unused" if train else "margins"
    left_out = {"excluded": total(whole) - total(usable), left: max(total(usable) - used, 0)}
    splits = Splits(**ordered, context_length=context_length, genome=store.fingerprint, left_out=left_out)
    prove_disjoint(splits, context_length)
    return splits


def prove_disjoint(splits: Splits, context_length: int) -> None:
    """`InputError` naming the first pair of intervals of different splits less than `context_length` bases apart."""
    labelled = sorted(
        (interval.contig, interval.start, interval.end, split)
        for split in SPLITS
        for interval in getattr(splits, split)
    )
    # Behind each interval only the furthest end of every other split matters, for intervals of one split may overlap.
    reach: dict[str, tuple[str, int, int, str]] = {}
    for current in labelled:
        contig, start, _, split = current
        for other, previous in reach.items():
            if other != split and previous[0] == contig and start - previous[2] < context_length:
                gap = start - previous[2]
                how = f"overlap by {min(-gap, current[2] - start)}" if gap < 0 else f"are only {gap}"
                raise InputError(
                    f"splits {other} ({Interval(*previous[:3])}) and {split} ({Interval(*current[:3])}) {how} bases"
                    f"{'' if gap < 0 else ' apart'}; leave at least the context length, {context_length}, between "
                    "them, or give validation and test alone and training will be the rest"
                )
        if split not in reach or reach[split][0] != contig or reach[split][2] < current[2]:
            reach[split] = current


def _less(sets: ByContig, removed: ByContig) -> ByContig:
    return {name: subtract(pairs, removed[name]) if name in removed else pairs for name, pairs in sets.items()}


def _widened(sets: ByContig, by: int, store: TokenStore) -> ByContig:
    return {name: widen(pairs, by, store.contig(name).length) for name, pairs in sets.items()}


def _explicit(store: TokenStore, usable: ByContig, split: str, items: Sequence[str | Path]) -> ByContig:
    """BED files (`is_bed_name`) and contig patterns, within the usable bases."""
    intervals: list[Interval] = []
    for item in items:
        if is_bed_name(item):
            intervals += read_intervals(Path(item), store)
        else:
            matched = [contig for contig in select_contigs(store, [str(item)]).chosen if contig.name in usable]
            if not matched:
                raise InputError(f"the contigs of the {split} split, {str(item)!r}, are left out; choose them too")
            intervals += [Interval(contig.name, 0, contig.length) for contig in matched]
    given = by_contig(intervals)
    for name in given.keys() - usable.keys():
        raise InputError(f"the {split} split lies on contig {name!r}, which is left out; choose it too")
    return {name: subtract(pairs, subtract(pairs, usable[name])) for name, pairs in given.items()}


def _draw(
    store: TokenStore,
    available: ByContig,
    genome_bases: int,
    fraction: float,
    length: int,
    block_size: int | None,
    key: str,
) -> ByContig:
    """Blocks of `available` with `fraction` of its bases other than N, in an order fixed by (key, contig, start)."""
    if fraction <= 0:
        return {}
    wanted = fraction * genome_bases
    size = block_size or int(max(wanted / BLOCKS_A_SPLIT, min(4 * length, wanted), length + 1))
    candidates = []
    for name, pairs in available.items():
        offset = store.contig(name).offset
        for start, end in pairs.tolist():
            # The blocks share an interval's bases evenly, so that none is lost at its end.
            count = (end - start) // max(size, length + 1)
            edges = np.linspace(start, end, count + 1).astype(np.int64) if count else np.empty(0, np.int64)
            n_count = np.diff(store.n_before(offset + edges)) if count else np.empty(0, np.int64)
            for first, last, n in zip(edges[:-1].tolist(), edges[1:].tolist(), n_count.tolist(), strict=True):
                if 2 * n < last - first:
                    order = hashlib.blake2b(f"{key}/{name}/{first}".encode(), digest_size=8).digest()
                    candidates.append((order, name, first, last, last - first - n))
    drawn: dict[str, list[tuple[int, int]]] = {}
    counted = 0
    for _, name, first, last, bases in sorted(candidates):
        if counted >= wanted * 0.99:
            break
        drawn.setdefault(name, []).append((first, last))
        counted += bases
    return {name: merge(np.array(pairs, np.int64)) for name, pairs in drawn.items()}


def _check_windows_fit(
    sets: dict[str, ByContig], chosen: Sequence[Contig], lengths: dict[str, int], drawn: dict[str, float]
) -> None:
    """Each split must hold at least one window of its length + 1 bases (a test split may be empty)."""
    for split in SPLITS:
        length = lengths[split]
        flag = "length" if length == lengths["train"] else "validation_length"
        longest = max((int((p[:, 1] - p[:, 0]).max()) for p in sets[split].values() if len(p)), default=0)
        may_be_empty = split == "test" and (not drawn.get("test"))
        if longest > length or (may_be_empty and longest == 0):
            continue
        contig = max(chosen, key=lambda c: c.length)
        if contig.length <= length:
            raise InputError(
                f"length {length} is too long: a window needs {length + 1} bases, and the longest "
                f"contig, {contig.name}, has {contig.length}; give a smaller --{flag}"
            )
        raise InputError(
            f"the {split} split has no interval for a window of {length} + 1 bases (its longest interval has "
            f"{longest}); give a smaller --{flag}, or intervals for it"
        )
