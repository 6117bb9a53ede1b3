"""Splits of several species that pretraining and classification share: nothing of validation and test is trained on.

    python pipelines/make_species_splits.py species.tsv --out splits [--length 131072] [--seed 0]
    python pipelines/make_species_splits.py species.tsv --out splits --homologous

`species.tsv` names the species: tab-separated columns `name` and `fasta` (relative to the file; several joined by
commas), perhaps `contigs`, `validation` and `test`: names or shell patterns of contigs, joined by commas. Written into
--out, with paths relative to it, so that the folder can be moved:

| file | what |
|---|---|
| NAME.train.bed, NAME.validation.bed, NAME.test.bed | the intervals |
| species.tsv | for `python -m dnamamba.finetune --task species --species` |
| mixture.yaml | for `python -m dnamamba.pretrain --mixture`, every species with the same weight |
| splits.tsv | bases, and windows without N that do not overlap, by species, split and length |

**Distant species** (the default): each genome's own blocks, drawn by `dnamamba.genome.splits`, with margins of --length
between splits. Of --draws drawings the one is taken whose poorer split, validation or test, has the most windows of
--length bases without N: assemblies with many gaps leave few. Contigs named in the columns validation and test are
taken whole instead, so that whole homologous chromosomes can be kept apart (chr8 and *_hsa8).

**Homologous species** (--homologous): the FASTA files hold the same loci under the same record names and in the same
order. Loci are split by name, equally in all species, so that no species' copy of a test locus is trained on.
Neighbouring records are joined into contigs of --length bases and a little more (four times as much in training, where
windows should begin at many positions); N is cut out, for runs of N would betray an assembly. The joined sequences are
written as NAME.fa.gz, and where each record went to loci.tsv (contig, split, record, start and end in each species).
"""

import argparse
import csv
import gzip
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from dnamamba import cli
from dnamamba.alphabet import TOKEN_BITS, TOKEN_TO_ASCII, N
from dnamamba.errors import InputError
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.intervals import Interval, subtract
from dnamamba.genome.splits import SPLITS, Splits, make_splits
from dnamamba.genome.store import TokenStore, open_genome

LENGTHS = (256, 1024, 4096, 16384, 65536, 131072)
"""Lengths that splits.tsv counts windows for, next to --length."""
TRAIN_WINDOWS = 4
"""Homologous species: training contigs are this many times as long as those of validation and test."""
SLACK = 8192
"""Homologous species: bases of a contig beyond --length, at least, so that the longest windows have a choice too."""
LEVEL = 4
"""gzip's, of the joined sequences: 9 takes 18 times as long for a tenth less."""


class Species(NamedTuple):
    """A row of the input table."""

    name: str
    fasta: tuple[Path, ...]
    contigs: tuple[str, ...] = ()
    """Names or patterns of the contigs in use; none: the primary ones."""
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    """Names or patterns of whole contigs; none: blocks are drawn."""


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    species = read_species(options.species)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if (out / "species.tsv").exists() and not options.overwrite:
        raise InputError(f"{out / 'species.tsv'}: exists already; choose another --out, or give --overwrite")
    stores = {one.name: open_genome(one.fasta, _store_folder(options.stores, one.name)) for one in species}
    fractions = {"validation": options.validation_fraction, "test": options.test_fraction}
    if options.homologous:
        species = join_homologous(species, stores, out, options.length, fractions, options.seed)
        stores = {
            one.name: open_genome(one.fasta, _store_folder(options.stores, f"{one.name}-joined")) for one in species
        }
        intervals = {one.name: _whole_contigs(stores[one.name]) for one in species}
    else:
        intervals = {
            one.name: draw_blocks(stores[one.name], one, options.length, fractions, options.seed, options.draws)
            for one in species
        }
    write_splits(species, stores, intervals, out, options.length)


def read_species(path: Path) -> list[Species]:
    """The rows of a species table; `InputError` for missing columns, files, or names given twice."""
    try:
        rows = list(
            csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a TSV with the columns name and fasta") from None
    species = []
    for number, row in enumerate(rows, 2):
        if not row.get("name") or not row.get("fasta"):
            raise InputError(f"{path}, line {number}: expected the tab-separated columns name and fasta")
        fasta = tuple((path.parent / part.strip()).absolute() for part in row["fasta"].split(","))
        for file in fasta:
            if not file.exists():
                raise InputError(f"{path}, line {number}: {file}: no such file")
        lists = [
            tuple(part.strip() for part in (row.get(column) or "").split(",") if part.strip())
            for column in ("contigs", "validation", "test")
        ]
        if bool(lists[1]) != bool(lists[2]):
            raise InputError(f"{path}, line {number}: contigs for validation and test, or for none of them")
        species.append(Species(row["name"], fasta, *lists))
    if len({one.name for one in species}) < len(species) or len(species) < 2:
        raise InputError(f"{path}: expected two or more species, each name once")
    return species


def draw_blocks(
    store: TokenStore, species: Species, length: int, fractions: dict[str, float], seed: int, draws: int
) -> dict[str, tuple[Interval, ...]]:
    """Blocks of one genome, four windows of `length` each, margins of `length` between the splits; or contigs named."""
    chosen = select_contigs(store, list(species.contigs) or None)
    if species.test:
        named = make_splits(
            store, chosen, context_length=length, validation=list(species.validation), test=list(species.test)
        )
        return {split: getattr(named, split) for split in SPLITS}

    def draw(number: int) -> Splits:
        return make_splits(
            store,
            chosen,
            context_length=length,
            validation_fraction=fractions["validation"],
            test_fraction=fractions["test"],
            block_size=4 * length + 1,
            seed=seed * draws + number,
        )

    def poorer(splits: Splits) -> int:
        return min(windows_without_n(store, splits.validation, length), windows_without_n(store, splits.test, length))

    best = max((draw(number) for number in range(draws)), key=poorer)  # the first of equals
    return {split: getattr(best, split) for split in SPLITS}


def join_homologous(
    species: Sequence[Species],
    stores: dict[str, TokenStore],
    out: Path,
    length: int,
    fractions: dict[str, float],
    seed: int,
) -> list[Species]:
    """Splits loci by name and joins them: writes and returns the joined FASTA files, and writes loci.tsv."""
    names = [contig.name for contig in stores[species[0].name].contigs]
    for one in species:
        if [contig.name for contig in stores[one.name].contigs] != names:
            raise InputError(f"{one.fasta[0]}: its records are not those of {species[0].fasta[0]}, in the same order")

    def without_n(one: Species, record: str) -> np.ndarray:
        store = stores[one.name]
        tokens = store.read(record, 0, store.contig(record).length)
        return tokens[(tokens & TOKEN_BITS) < N]

    bases = {record: [len(without_n(one, record)) for one in species] for record in names}
    runs = _runs(names, bases, length + SLACK)
    split_of = _split_runs(runs, bases, fractions, seed)
    contigs: list[tuple[str, list[str]]] = []
    for split in SPLITS:
        members = [run for run in runs if split_of[run[0]] == split]
        size = TRAIN_WINDOWS if split == "train" else 1
        for first in range(0, len(members), size):
            contigs.append((split, [record for run in members[first : first + size] for record in run]))

    joined = []
    for one in species:
        file = out / f"{one.name}.fa.gz"
        with file.open("wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as handle:
            for number, (split, records) in enumerate(contigs, 1):
                tokens = np.concatenate([without_n(one, record) for record in records])
                letters = TOKEN_TO_ASCII[tokens].tobytes()
                handle.write(f">{split}_{number:03d} {records[0]}..{records[-1]}, {len(records)} loci\n".encode())
                handle.writelines(letters[k : k + 100] + b"\n" for k in range(0, len(letters), 100))
        joined.append(Species(one.name, (file.absolute(),)))
    rows = [["contig", "split", "record", *(f"{one.name}_{end}" for one in species for end in ("start", "end"))]]
    for number, (split, records) in enumerate(contigs, 1):
        ends = np.cumsum([bases[record] for record in records], axis=0)
        for record, end in zip(records, ends, strict=True):
            pairs = np.column_stack((end - bases[record], end)).ravel().tolist()
            rows.append([f"{split}_{number:03d}", split, record, *map(str, pairs)])
    (out / "loci.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return joined


def _whole_contigs(store: TokenStore) -> dict[str, tuple[Interval, ...]]:
    """The intervals of each split where contigs are named by it, as `join_homologous` does."""
    whole = [Interval(contig.name, 0, contig.length) for contig in store.contigs]
    return {split: tuple(i for i in whole if i.contig.startswith(f"{split}_")) for split in SPLITS}


def _runs(names: Sequence[str], bases: dict[str, list[int]], wanted: int) -> list[list[str]]:
    """Runs of neighbouring records that have `wanted` bases in the shortest species; a rest joins the last run."""
    runs: list[list[str]] = [[]]
    held = np.zeros(len(next(iter(bases.values()))), np.int64)
    for name in names:
        if held.min() >= wanted:
            runs.append([])
            held[:] = 0
        runs[-1].append(name)
        held += bases[name]
    if held.min() < wanted and len(runs) > 1:
        rest = runs.pop()
        runs[-1] += rest
    return runs


def _split_runs(
    runs: Sequence[Sequence[str]], bases: dict[str, list[int]], fractions: dict[str, float], seed: int
) -> dict[str, str]:
    """First record of each run → split, in an order fixed by (seed, record)."""
    size = {run[0]: sum(bases[record][0] for record in run) for run in runs}
    order = sorted(size, key=lambda record: hashlib.blake2b(f"{seed}/{record}".encode(), digest_size=8).digest())
    split_of: dict[str, str] = dict.fromkeys(size, "train")
    for split, fraction in fractions.items():
        taken = 0
        while order and taken < fraction * sum(size.values()):
            split_of[record := order.pop(0)] = split
            taken += size[record]
    if not order:
        raise InputError(f"{len(runs)} intervals of this --length are too few for three splits; give a smaller one")
    return split_of


def windows_without_n(store: TokenStore, intervals: Sequence[Interval], length: int) -> int:
    """Windows of `length` bases without N that fit into the intervals side by side."""
    count = 0
    for interval in intervals:
        pairs = subtract(np.array([[interval.start, interval.end]], np.int64), store.n_runs(interval.contig))
        count += int(((pairs[:, 1] - pairs[:, 0]) // length).sum())
    return count


def write_splits(
    species: Sequence[Species],
    stores: dict[str, TokenStore],
    intervals: dict[str, dict[str, tuple[Interval, ...]]],
    out: Path,
    length: int,
) -> None:
    """BED files, species.tsv, mixture.yaml and splits.tsv; says on stdout what is in them."""
    mixture: dict[str, dict[str, object]] = {}
    table = [["name", "fasta", "contigs", *SPLITS]]
    lengths = sorted({size for size in LENGTHS if size < length} | {length})
    counts = [["species", "split", "intervals", "bases", *(f"windows_{size}" for size in lengths)]]
    for one in species:
        fasta = [os.path.relpath(file, out.absolute()) for file in one.fasta]
        mixture[one.name] = {"genome": fasta if len(fasta) > 1 else fasta[0], "weight": 1}
        if one.contigs:
            mixture[one.name]["contigs"] = list(one.contigs)
        beds = []
        for split in SPLITS:
            chosen = intervals[one.name][split]
            bed = f"{one.name}.{split}.bed"
            (out / bed).write_text("".join(f"{i.contig}\t{i.start}\t{i.end}\n" for i in chosen), encoding="utf-8")
            mixture[one.name][split] = bed
            beds.append(bed)
            windows = [windows_without_n(stores[one.name], chosen, size) for size in lengths]
            bases = sum(i.length for i in chosen)
            counts.append([one.name, split, *map(str, (len(chosen), bases, *windows))])
            if not windows[-1]:
                raise InputError(
                    f"{one.name}: no window of {length} bases without N in {split}; give a smaller --length"
                )
        table.append([one.name, ",".join(fasta), ",".join(one.contigs), *beds])
    for name, rows in (("species.tsv", table), ("splits.tsv", counts)):
        (out / name).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    (out / "mixture.yaml").write_text(yaml.safe_dump(mixture, sort_keys=False), encoding="utf-8")
    for row in counts:
        print("  ".join(f"{cell:>14}" for cell in row))


def _store_folder(folder: Path | None, name: str) -> Path | None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return None if folder is None else folder / f"{name}.dnamamba"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("species", type=Path, help="TSV with the columns name and fasta, perhaps contigs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits")
    parser.add_argument(
        "--length", type=int, default=131072, help="longest window: margins, and intervals in every split"
    )
    parser.add_argument("--validation_fraction", type=float, default=0.06, help="share of each genome's bases")
    parser.add_argument("--test_fraction", type=float, default=0.12, help="share of each genome's bases")
    parser.add_argument("--homologous", action="store_true", help="records of one name are one locus: split by name")
    parser.add_argument("--draws", type=int, default=64, help="drawings to choose from (not with --homologous)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument("--stores", type=Path, help="folder for the token stores; else next to each FASTA")
    parser.add_argument("--overwrite", action="store_true", help="write over earlier splits in --out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(cli.run(main))
