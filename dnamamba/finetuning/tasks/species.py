"""The task of distinguishing species: which genome does a window come from?

Splits keep homologous sequence together. Distant species are split along their own genomes (blocks with margins, or BED
files). Close ones, given as loci that are named alike in all species (`--intervals_by_name`), are split by that name.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, C, G
from dnamamba.errors import InputError
from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import HeldOut, Target, Task
from dnamamba.finetuning.tasks.windows import SpeciesIntervals, SpeciesWindows, spread_windows
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.intervals import Interval, by_contig, subtract
from dnamamba.genome.species_table import SpeciesRow, read_species
from dnamamba.genome.splits import make_splits
from dnamamba.genome.store import Contig, TokenStore, open_genome
from dnamamba.runs.progress import job_bar, si

SPLITS = {"train": "train", "dev": "validation", "test": "test"}
"""Our split → the genome's."""
EPOCH_EXAMPLES, EPOCH_BASES, LEAST_EXAMPLES = 16_384, 1 << 25, 256
EVALUATION_EXAMPLES = 1024
EVALUATION_BASES = {"dev": 1 << 24, "test": 1 << 26}
BLOCK = 500_000
"""Bases of neighbouring loci that go into one split together."""
FRACTIONS = {"test": 0.2, "dev": 0.1}
"""Of the blocks of named loci."""
SAMPLE = 1 << 27
"""Bases of a species that its composition is counted on."""


def build(settings: ResolvedFinetuneSettings) -> Task:
    """Opens the genomes, makes the splits, plans the windows. Raises `InputError`."""
    if settings.species is None:
        raise InputError("--species: name the TSV with the columns name and fasta")
    assert settings.length is not None
    rows = sorted(read_species(settings.species), key=lambda row: row.name)
    if len(rows) < 2:
        raise InputError(f"{settings.species}: {len(rows)} species; two are needed")
    stores = []
    for row in rows:
        with job_bar(f"reading {row.name}", "B") as progress:
            try:
                stores.append(open_genome(row.fasta, progress=progress))
            except InputError as error:
                raise InputError(f"{settings.species}: {row.name}: {error}") from None
    length = settings.length
    has_splits = all(row.train and row.validation and row.test for row in rows)
    if settings.intervals_by_name and not has_splits:
        splits, notes = split_by_name(rows, stores, length, settings.species)
    else:
        splits, notes = split_genomes(rows, stores, length, settings.species)
        if settings.intervals_by_name:
            splits = join_by_name(splits, settings.species)
    for split, species in splits.items():
        for each in species:
            if each.longest < length:
                raise InputError(
                    f"{settings.species}: {each.species}: no window of {length} bases without N in its {split} "
                    f"split, whose longest interval without N has {each.longest}; give a smaller --length"
                )
    names = tuple(row.name for row in rows)
    size = settings.examples or max(min(EPOCH_EXAMPLES, EPOCH_BASES // length), LEAST_EXAMPLES)
    evaluation = {}
    for split, bases in EVALUATION_BASES.items():
        most = min(EVALUATION_EXAMPLES, max(bases // (length * len(names)), 1))
        evaluation[split] = spread_windows(splits[split], length, settings.evaluation_examples or most)
    compositions = [composition(row.name, store) for row, store in zip(rows, stores, strict=True)]
    drawn = "in all, the same each epoch" if settings.fixed_windows else "an epoch"
    notes = [
        ("species", f"{len(names)}, chance {1 / len(names):.3f}"),
        *(("", found.describe()) for found in compositions),
        *notes,
        ("windows", f"{length:,} bases, no N, no case, uniform over species, contig, position: {size:,} {drawn}"),
    ]
    for split, examples in evaluation.items():
        groups = len({origin.group for origin in examples.origins})
        notes.append((split, f"{len(examples) // len(names):,} windows a species in {groups:,} groups of neighbours"))
    of_species = zip(rows, stores, compositions, zip(*splits.values(), strict=True), strict=True)
    facts: dict[str, Any] = {
        "species": {
            row.name: {
                "fasta": [str(path) for path in row.fasta],
                "fingerprint": store.fingerprint,
                **found._asdict(),
                "split_bases": {split: each.bases for split, each in zip(splits, intervals, strict=True)},
            }
            for row, store, found, intervals in of_species
        },
        "intervals_by_name": settings.intervals_by_name,
        "splits": {
            "train": {"examples": f"{size} windows {drawn}", "fingerprint": _fingerprint(splits["train"])},
            **{s: {"examples": len(e), "fingerprint": _fingerprint(splits[s])} for s, e in evaluation.items()},
        },
    }
    train = SpeciesWindows(splits["train"], length, size, settings.fixed_windows)
    target = Target("multiclass", names)
    return Task(target, train, evaluation["dev"], HeldOut(evaluation["test"]), length, notes, facts)


def split_genomes(
    rows: list[SpeciesRow], stores: list[TokenStore], length: int, path: Path
) -> tuple[dict[str, list[SpeciesIntervals]], list[tuple[str, str]]]:
    """Each genome by itself: the BED files given, or blocks with margins of `length`."""
    splits: dict[str, list[SpeciesIntervals]] = {split: [] for split in SPLITS}
    notes = []
    for row, store in zip(rows, stores, strict=True):
        try:
            contigs = select_contigs(store, row.contigs)
            # Windows stay inside an interval: where all are given, they only must not overlap.
            made = make_splits(
                store,
                contigs,
                context_length=0 if row.train and row.validation and row.test else length,
                train=row.train,
                validation=row.validation,
                test=row.test,
                validation_fraction=0.1,
                test_fraction=0.1,
            )
        except InputError as error:
            raise InputError(f"{path}: {row.name}: {error}") from None
        if not made.test:
            raise InputError(f"{path}: {row.name}: no test split; name a BED file in the column test too")
        for split, name in SPLITS.items():
            splits[split].append(_of_genome(row.name, store, getattr(made, name)))
        if left_out := contigs.summary():
            notes.append(("left out", f"{row.name}: {left_out}"))
    return splits, notes


def join_by_name(splits: dict[str, list[SpeciesIntervals]], path: Path) -> dict[str, list[SpeciesIntervals]]:
    """Given splits of contigs that are the same locus in all species by their names: resampled together. Raises
    `InputError` where a locus is in different splits of two species."""
    home: dict[str, tuple[str, str]] = {}
    for split, found in splits.items():
        for each in found:
            for name in each.contigs:
                first = home.setdefault(name, (split, each.species))
                if first[0] != split:
                    raise InputError(
                        f"{path}: {name} is in {first[0]} of {first[1]} and in {split} of {each.species}: "
                        "homologous records belong into one split"
                    )
    return {
        split: [replace(item, groups=tuple(item.contigs[number] for number in item.contig.tolist())) for item in found]
        for split, found in splits.items()
    }


def _of_genome(species: str, store: TokenStore, intervals: tuple[Interval, ...]) -> SpeciesIntervals:
    bounds: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    groups: list[str] = []
    contigs: list[str] = []
    offsets: list[int] = []
    for name, pairs in by_contig(intervals).items():
        record = store.contig(name)
        free = subtract(pairs, store.n_runs(name))
        inside = np.searchsorted(pairs[:, 0], free[:, 0], side="right") - 1
        bounds.append(free + record.offset)
        numbers.append(np.full(len(free), len(contigs)))
        groups += [f"{species}:{name}:{pairs[i, 0]}-{pairs[i, 1]}" for i in inside]
        contigs.append(name)
        offsets.append(record.offset)
    return SpeciesIntervals(
        species,
        store.tokens,
        np.concatenate(bounds),
        np.concatenate(numbers).astype(np.int64),
        tuple(contigs),
        np.array(offsets, np.int64),
        tuple(groups),
    )


def split_by_name(
    rows: list[SpeciesRow], stores: list[TokenStore], length: int, path: Path
) -> tuple[dict[str, list[SpeciesIntervals]], list[tuple[str, str]]]:
    """Named loci: neighbours (in the first species' order) make blocks, blocks make splits,
    equal in all species; within a block neighbours are joined until all species have `length` bases."""
    for row in rows:
        if row.contigs or row.train or row.validation or row.test:
            raise InputError(f"{path}: {row.name}: --intervals_by_name takes all three splits of each species, or none")
    shared = [contig.name for contig in stores[0].contigs if all(contig.name in store for store in stores)]
    if not shared:
        raise InputError(
            f"{path}: no record name is in all species; --intervals_by_name needs homologous records named alike"
        )
    found = [[store.contig(name) for store in stores] for name in shared]
    lengths = np.array([[contig.length - contig.n_count for contig in row] for row in found])
    blocks = _join(list(range(len(shared))), lengths, max(BLOCK, length))
    if len(blocks) < 3:
        raise InputError(
            f"{path}: {len(blocks)} blocks of {max(BLOCK, length):,} bases of loci; three splits need more"
        )
    splits: dict[str, list[SpeciesIntervals]] = {}
    joined: dict[str, list[list[int]]] = {}
    for split, members in assign_blocks([[shared[i] for i in block] for block in blocks]).items():
        joined[split] = [group for block in members for group in _join(blocks[block], lengths, length)]
        splits[split] = [
            _of_loci(row.name, store, [[shared[i] for i in group] for group in joined[split]])
            for row, store in zip(rows, stores, strict=True)
        ]
    every = max(len(store.contigs) for store in stores)
    text = f"{len(shared):,} loci named alike" + (f" of {every:,}" if every > len(shared) else "")
    counts = ", ".join(f"{split} {len(groups):,}" for split, groups in joined.items())
    median = int(np.median([len(group) for groups in joined.values() for group in groups]))
    taken = ", ".join(f"{r.name} {sum(c.n_count for c in s.contigs):,}" for r, s in zip(rows, stores, strict=True))
    return splits, [
        ("loci", f"{text}, in {len(blocks)} blocks; joined up to {length:,} bases ({median} each): {counts}"),
        ("", f"N taken out: {taken}"),
    ]


def assign_blocks(blocks: list[list[str]]) -> dict[str, list[int]]:
    """Split → numbers of its blocks: the first by a hash of their loci's names are test, the next dev."""
    order = sorted(range(len(blocks)), key=lambda i: hashlib.blake2b("\t".join(blocks[i]).encode()).digest())
    counts = {split: max(round(fraction * len(blocks)), 1) for split, fraction in FRACTIONS.items()}
    test, dev = order[: counts["test"]], order[counts["test"] : counts["test"] + counts["dev"]]
    return {"train": sorted(set(order) - {*test, *dev}), "dev": sorted(dev), "test": sorted(test)}


def _join(loci: list[int], lengths: np.ndarray, wanted: int) -> list[list[int]]:
    """Neighbours joined until every species has `wanted` bases; what is left over goes to the last one."""
    groups: list[list[int]] = []
    current: list[int] = []
    for locus in loci:
        current.append(locus)
        if lengths[current].sum(0).min() >= wanted:
            groups.append(current)
            current = []
    if current and groups:
        groups[-1] += current
    return groups


def _of_loci(species: str, store: TokenStore, groups: list[list[str]]) -> SpeciesIntervals:
    """Loci are alignments joined end to end as it is: their few N are taken out and what is next to them joined too,
    for a class must not be known by its gaps. Positions count the bases that stay."""
    tokens, lengths, names = [], [], []
    for group in groups:
        joined = np.concatenate([store.read(name, 0, store.contig(name).length) for name in group])
        tokens.append(joined[(joined & np.uint8(TOKEN_BITS)) < BASES])
        lengths.append(len(tokens[-1]))
        names.append(group[0] if len(group) == 1 else f"{group[0]}+{len(group) - 1}")
    ends = np.cumsum(lengths)
    return SpeciesIntervals(
        species,
        np.concatenate(tokens),
        np.column_stack((ends - lengths, ends)),
        np.arange(len(groups)),
        tuple(names),
        ends - lengths,
        tuple(names),  # without the species: homologues are resampled together
    )


class Composition(NamedTuple):
    """By what a classifier could cheat."""

    name: str
    bases: int
    contigs: int
    gc: float
    n_share: float
    soft_masked: float
    """As in the file; dropped before the model."""
    median_contig: int

    def describe(self) -> str:
        """One line for the header."""
        return (
            f"{self.name}: {si(self.bases)}b in {self.contigs:,} contigs (median {si(self.median_contig)}b), "
            f"GC {self.gc:.1%}, N {self.n_share:.2%}, soft-masked {self.soft_masked:.1%}"
        )


def composition(name: str, store: TokenStore) -> Composition:
    """GC is counted on `SAMPLE` bases at most, evenly spread; the rest is known exactly."""
    borders = np.linspace(0, store.bases, max(store.bases // (1 << 20), 1) + 1).astype(np.int64)
    step = max(store.bases // SAMPLE, 1)
    counts = np.zeros(128, np.int64)
    for start, end in list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))[::step]:
        counts += np.bincount(store.tokens[start:end] & np.uint8(TOKEN_BITS), minlength=128)[:128]
    contigs: tuple[Contig, ...] = store.contigs
    return Composition(
        name,
        store.bases,
        len(contigs),
        float((counts[C] + counts[G]) / max(counts[:BASES].sum(), 1)),
        sum(contig.n_count for contig in contigs) / store.bases,
        sum(contig.soft_masked for contig in contigs) / store.bases,
        int(np.median([contig.length for contig in contigs])),
    )


def _fingerprint(species: list[SpeciesIntervals]) -> str:
    digest = hashlib.sha256()
    for each in species:
        digest.update(each.species.encode() + each.bounds.tobytes())
    return digest.hexdigest()
