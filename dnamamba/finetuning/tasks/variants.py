"""The task of labelled variants: a VCF or table and a genome to windows of both alleles, split by gene or contig."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import CLS, SEP, TOKEN_BITS, N, encode
from dnamamba.errors import InputError, warn
from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import Examples, FixedSet, HeldOut, Origin, Task, pad
from dnamamba.finetuning.tasks.groups import joined_groups, names_in
from dnamamba.finetuning.tasks.labels import class_counts, describe_counts, encode_labels, find_target, values_found
from dnamamba.finetuning.tasks.readers import Record
from dnamamba.finetuning.tasks.variant_report import VariantReport
from dnamamba.genome.alleles import REASON_NAMES, REASONS, Alleles, check, refuse_mismatches
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.variant_columns import (
    ALT_COLUMNS,
    CONTIG_COLUMNS,
    END_COLUMNS,
    POSITION_COLUMNS,
    REF_COLUMNS,
    START_COLUMNS,
    start_counts_from_1,
)
from dnamamba.genome.vcf import Records, info_fields, info_numbers, open_vcf, variant_of
from dnamamba.genome.view import GenomeView
from dnamamba.runs.progress import job_bar
from dnamamba.tables import DELIMITERS, MISSING, delimited_rows, suffix, whole_number
from dnamamba.text_files import as_text, is_pipe

SPLITS = ("train", "dev", "test")
SHARES = {"train": 0.7, "dev": 0.15, "test": 0.15}
GROUP_COLUMNS = ("gene", "gene_filled")
EFFECT_COLUMNS = ("effect", "consequence")
LONGEST_CONTIG = 1 << 40
"""Bases: more than any chromosome has"""
SPLIT_NAMES = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}


class LabelledVariant(NamedTuple):
    """One alternate allele of the file."""

    where: str
    contig: str
    start: int
    """0-based"""
    ref: str
    alt: str
    columns: dict[str, str]
    """Of the table, or the VCF's INFO, where they are not missing; names in lower case"""
    id: str = "."
    """Of the VCF's column, or the table's; `.` where there is none"""


def build(settings: ResolvedFinetuneSettings) -> Task:
    """Reads, checks, splits and encodes the variants. Raises `InputError` with file and line."""
    if settings.variants is None or not settings.genome:
        raise InputError("--variants, --genome: name the labelled variants and the FASTA of their assembly")
    assert settings.length is not None
    if settings.kmer:
        raise InputError("--kmer: not a flag of --task variants")
    if len(settings.label_columns or []) > 1:
        raise InputError("--label_columns: --task variants takes one column of two classes")
    path = settings.variants
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f"{path}: no variants")
    label = _column(
        rows, settings.label_columns[0] if settings.label_columns else None, ("label",), path, "--label_columns"
    )
    assert label is not None
    effect = _column(rows, settings.effect_column, EFFECT_COLUMNS, path, "--effect_column", needed=False)
    if settings.effects and effect is None:
        raise InputError(f"{path}: --effects needs a column of effects; name it with --effect_column")
    by_contig = (settings.split_by or "").lower() in CONTIG_COLUMNS
    split_by = None if by_contig else _column(rows, settings.split_by, GROUP_COLUMNS, path, "--split_by", needed=False)

    with job_bar("reading the genome", "B") as progress:
        store = open_genome(settings.genome, progress=progress)
    left_out: Counter[str] = Counter()
    keep = np.ones(len(rows), bool)
    for index, row in enumerate(rows):
        if label not in row.columns or (split_by and not names_in(row.columns.get(split_by, ""))):
            keep[index] = False
            left_out[f"no {label}" if label not in row.columns else f"no {split_by}"] += 1
        elif settings.effects and effect and row.columns.get(effect) not in settings.effects:
            keep[index] = False
            left_out[f"another {effect}"] += 1
    rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
    if not rows:
        raise InputError(f"{path}: no variant is left ({_reasons(left_out)})")
    alleles = _check(rows, store, settings.length // 2, path, left_out)
    usable = alleles.reason == 0
    rows = [row for row, kept in zip(rows, usable, strict=True) if kept]
    alleles = _take(alleles, np.flatnonzero(usable))
    genes = [names_in(row.columns[split_by]) if split_by else [row.contig] for row in rows]
    groups = joined_groups(genes, [(row.contig, row.start) for row in rows])
    split = _splits(rows, groups, path)
    refuse_shared_groups(groups, split, path, split_by or "contig")
    contig, position = _positions(rows, alleles)
    # Where each window begins, for `window` centres REF, however long: they overlap where that is closer than a length.
    begins = position - (settings.length - alleles.ref_length) // 2
    split, dropped = without_overlaps(contig, begins, split, settings.length)
    for name, count in dropped.items():
        left_out[f"window overlaps another split's ({name})"] += count
    members = {name: np.flatnonzero(split == name) for name in SPLITS}
    for name in SPLITS:
        if not members[name].size:
            raise InputError(f"{path}: no variants are left for {name}: {len(set(groups))} groups are too few")

    records = [Record(row.where, "", np.empty(0, np.uint8), (row.columns[label],)) for row in rows]
    target = find_target([records[i] for i in members["train"].tolist()], "multiclass", None)
    if len(target.names) != 2:
        found = f"{len(target.names)} values ({values_found(target.names)})"
        raise InputError(f"{path}: column {label} has {found}; expected two classes")
    labels = encode_labels(records, target)
    windows = [window(store, alleles, index, settings.length) for index in range(len(rows))]

    def examples(name: str) -> Examples:
        chosen = members[name].tolist()
        tokens, lengths = pad([windows[i] for i in chosen])
        contigs = [store.contigs[c].name for c in alleles.contig.tolist()]
        origins = [
            Origin(contigs[i], row.start, row.start + len(row.ref), groups[i], (row.id, row.ref, row.alt))
            for i, row in ((i, rows[i]) for i in chosen)
        ]
        return Examples(tokens, lengths, labels[chosen], origins)

    made = {name: examples(name) for name in SPLITS}
    effects = [row.columns.get(effect, "") for row in rows] if effect else None
    report = VariantReport(
        labels[members["train"]],
        None if effects is None else [effects[i] for i in members["train"].tolist()],
        None if effects is None else [effects[i] for i in members["test"].tolist()],
        labels[members["dev"]],
    )
    counts = {name: class_counts(made[name].labels, target) for name in SPLITS}
    distinct = {name: len({groups[i] for i in members[name].tolist()}) for name in SPLITS}
    together = len({gene for names in genes for gene in names}), len(set(groups))
    notes = [
        ("data", f"{path}: label {label}, split by {split_by or 'contig'}"),
        *(
            [
                (
                    "groups",
                    f"{together[0]:,} genes in {together[1]:,}: those that share a variant or its site stay together",
                )
            ]
            if together[0] > together[1]
            else []
        ),
        ("target", f"{target.names[1]} against {target.names[0]}"),
        *(
            (name, f"{len(made[name]):,} variants of {distinct[name]:,} groups; {describe_counts(counts[name])}")
            for name in SPLITS
        ),
        (
            "disjoint",
            f"no {split_by or 'contig'} in two splits, no windows of {settings.length:,} bases of two splits overlap",
        ),
        *((("left out", _reasons(left_out)),) if left_out else ()),
    ]
    facts: dict[str, Any] = {
        "data": str(path),
        "genome": [str(p) for p in settings.genome],
        "split_by": split_by or "contig",
        "splits": {
            name: {
                "examples": len(made[name]),
                "groups": distinct[name],
                "sha256": hashlib.sha256(made[name].tokens.tobytes() + made[name].labels.tobytes()).hexdigest(),
                "class_counts": counts[name],
            }
            for name in SPLITS
        },
        "left_out": dict(left_out),
    }
    longest = max(int(made[name].lengths.max()) for name in SPLITS)
    return Task(
        target, FixedSet(made["train"]), made["dev"], HeldOut(made["test"]), longest, notes, facts, report.measure
    )


def read_rows(path: Path) -> Iterator[LabelledVariant]:
    """The alternate alleles of a VCF, TSV or CSV in file order. Raises `InputError` with the line."""
    yield from _read_vcf(path) if suffix(path) == ".vcf" else _read_table(path)


def _read_vcf(path: Path) -> Iterator[LabelledVariant]:
    with open_vcf(path) as (header, lines):
        numbers = info_numbers(header)
        for line in lines:
            variant, name = variant_of(path, line), as_text(line.columns[2])
            contig, info = as_text(variant.contig), as_text(line.columns[5].split(b"\t")[2])
            alternates = [] if variant.alt == "." else variant.alt.split(",")
            fields = info_fields(numbers, info, len(alternates))
            for alt, found in zip(alternates, fields, strict=True):
                columns = {key.lower(): value for key, value in found.items() if value not in MISSING}
                where = f"{path}, line {line.number}"
                yield LabelledVariant(where, contig, variant.start, variant.ref, alt, columns, name)


def _read_table(path: Path) -> Iterator[LabelledVariant]:
    kind = suffix(path)
    kind = ".tsv" if is_pipe(path) and kind == ".bed" else kind  # a table with start and end
    if kind not in DELIMITERS:
        raise InputError(f"{path}: unknown kind of file; expected .vcf, .tsv or .csv, plain or .gz")
    header, lines = delimited_rows(path, DELIMITERS[kind])
    names = [name.lower() for name in header]
    if twice := [name for name, count in Counter(names).items() if count > 1 and name]:
        raise InputError(f"{path}: several columns are called {', '.join(twice)}; rename all but one")

    def column(usual: tuple[str, ...]) -> int | None:
        return next((names.index(name) for name in usual if name in names), None)

    contig, ref, alt = column(CONTIG_COLUMNS), column(REF_COLUMNS), column(ALT_COLUMNS)
    zero_based, one_based, last = column(START_COLUMNS), column(POSITION_COLUMNS), column(END_COLUMNS)
    number = one_based if zero_based is None else zero_based
    if contig is None or number is None or ref is None or alt is None:
        raise InputError(
            f"{path}: its columns are {', '.join(names) or 'none'}; expected contig (or chrom), pos (1-based) or "
            "start (0-based), ref and alt"
        )
    rows = list(lines)
    starts = [_position(where, cells[number]) for where, cells in rows]
    counts_from = int(zero_based is None)
    if zero_based is not None and last is not None and names[number] == "start":
        ends = [whole_number(cells[last]) for _, cells in rows]
        if None not in ends and start_counts_from_1(starts, ends, [cells[ref] for _, cells in rows]):  # type: ignore[arg-type]
            warn(f"{path}: start and end count from 1 and the end is included, as in MAF: the lengths of ref show it")
            counts_from = 1
    for (where, cells), start in zip(rows, starts, strict=True):
        columns = {name: cell for name, cell in zip(names, cells, strict=True) if cell not in MISSING}
        name = columns.get("id", ".")
        yield LabelledVariant(where, cells[contig], start - counts_from, cells[ref], cells[alt], columns, name)


def _position(where: str, text: str) -> int:
    if (number := whole_number(text)) is None:
        raise InputError(f"{where}: position {text!r} is no whole number of at most 18 digits")
    return number


def _column(
    rows: list[LabelledVariant], wanted: str | None, usual: tuple[str, ...], path: Path, flag: str, needed: bool = True
) -> str | None:
    """The name of a column that some row has; None if it is neither wanted nor there."""
    known = {name for row in rows for name in row.columns}
    for name in (wanted.lower(),) if wanted else usual:
        if name in known:
            return name
    if wanted or needed:
        raise InputError(
            f"{path}: no column {wanted or usual[0]!r} among {', '.join(sorted(known))}; name it with {flag}"
        )
    return None


def _check(rows: list[LabelledVariant], store: TokenStore, longest: int, path: Path, left_out: Counter[str]) -> Alleles:
    names = list(dict.fromkeys(row.contig for row in rows))
    number = {name: index for index, name in enumerate(names)}
    records = Records(
        tuple(names),
        np.array([number[row.contig] for row in rows], np.int32),
        np.array([row.start for row in rows], np.int64),
        [row.ref for row in rows],
        [row.alt for row in rows],
    )
    for row in rows:
        if "," in row.alt or row.alt in ("", ".") or not row.ref:
            raise InputError(f"{row.where}: REF {row.ref!r}, ALT {row.alt!r}; expected one alternate allele a row")
    checked = check(records, store, longest)
    refuse_mismatches(checked, records, store, 0.01, str(path), hint="")
    for code, count in Counter(checked.alleles.reason.tolist()).items():
        if code:
            left_out[REASONS[str(REASON_NAMES[code])]] += count
    return checked.alleles


def _take(alleles: Alleles, index: np.ndarray) -> Alleles:
    return Alleles(
        np.arange(index.size + 1),
        alleles.contig[index],
        alleles.start[index],
        alleles.ref_length[index],
        [alleles.alt[i] for i in index.tolist()],
        alleles.reason[index],
    )


def window(store: GenomeView, alleles: Alleles, index: int, length: int) -> np.ndarray:
    """`CLS reference SEP alternate` (see `dnamamba.model.alleles`): `length` bases with the variant in their middle, N
    beyond the contig's ends."""
    contig = store.contigs[alleles.contig[index]]
    start, ref_length = int(alleles.start[index]), int(alleles.ref_length[index])
    left = start - (length - ref_length) // 2
    tokens = np.full(length, N, np.uint8)
    first, last = max(left, 0), min(left + length, contig.length)
    tokens[first - left : last - left] = store.read(contig.name, first, last) & TOKEN_BITS
    offset = start - left
    alternate = np.concatenate((tokens[:offset], encode(alleles.alt[index]), tokens[offset + ref_length :]))
    return np.concatenate(([CLS], tokens, [SEP], alternate)).astype(np.uint8)


def _splits(rows: list[LabelledVariant], groups: list[str], path: Path) -> np.ndarray:
    """(rows,) the split of each, by the column `split` or by shares of whole groups."""
    if any("split" in row.columns for row in rows):
        for row in rows:
            if row.columns.get("split", "").lower() not in SPLIT_NAMES:
                raise InputError(f"{row.where}: split {row.columns.get('split')!r}; expected train, dev or test")
        return np.array([SPLIT_NAMES[row.columns["split"].lower()] for row in rows])
    chosen = assign(Counter(groups))
    return np.array([chosen[group] for group in groups])


def assign(sizes: Counter[str]) -> dict[str, str]:
    """A split for each group, by shares of the variants; a function of names and sizes alone.

    The largest group comes first, equal ones in the order of their hashes. Each goes where most is lacking of its share
    among the splits that it fits into; one that fits nowhere, where the sum of (excess² / share) grows least. No split
    stays empty while there are groups.
    """
    total = sum(sizes.values())
    lacking = {name: share * total for name, share in SHARES.items()}
    chosen: dict[str, str] = {}
    ordered = sorted(sizes, key=lambda name: (-sizes[name], hashlib.sha256(name.encode()).digest()))
    empty = [*SPLITS]
    for number, group in enumerate(ordered):
        size = sizes[group]
        among = empty if len(ordered) - number <= len(empty) else SPLITS
        if fits := [split for split in among if lacking[split] >= size]:
            name = max(fits, key=lambda split: lacking[split] / SHARES[split])
        else:
            name = min(among, key=lambda split: (size - 2 * lacking[split]) / SHARES[split])
        chosen[group] = name
        lacking[name] -= size
        empty = [split for split in empty if split != name]
    return chosen


def refuse_shared_groups(groups: list[str], split: np.ndarray, path: Path, name: str) -> None:
    """Raises `InputError` if a group is in two splits."""
    first: dict[str, str] = {}
    for group, there in zip(groups, split.tolist(), strict=True):
        if first.setdefault(group, there) != there:
            raise InputError(f"{path}: {name} {group!r} is both in {first[group]} and in {there}")


def _positions(rows: list[LabelledVariant], alleles: Alleles) -> tuple[np.ndarray, np.ndarray]:
    """Contig and position by which windows overlap: of the assembly (chrom, pos) where the table has them next to the
    position in a sequence of its own, else the latter."""
    found = [whole_number(row.columns.get("pos", "")) if "chrom" in row.columns else None for row in rows]
    if None not in found:
        for row, position in zip(rows, found, strict=True):
            if position is not None and position > LONGEST_CONTIG:
                raise InputError(f"{row.where}: pos {position} lies beyond any chromosome")
        names = [row.columns["chrom"] for row in rows]
        positions = np.array(found, np.int64)
    else:
        names, positions = [str(contig) for contig in alleles.contig.tolist()], alleles.start
    return np.unique(names, return_inverse=True)[1], positions


def without_overlaps(
    contig: np.ndarray, position: np.ndarray, split: np.ndarray, length: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Takes out of train the windows of `length` bases that overlap one of dev or test, and of dev those that overlap
    one of test: the splits with "" for those, and how many by split. `position` (variants,) is where each
    window begins, below 0 beyond the contig's start by `length` / 2 at most."""
    split = split.astype(object)
    dropped: dict[str, int] = {}
    for name, others in (("dev", ["test"]), ("train", ["dev", "test"])):
        far = int(position.max(initial=0)) + 2 * length
        key = contig * far + position
        known = np.sort(key[np.isin(split, others)])
        here = np.flatnonzero(split == name)
        if not known.size or not here.size:
            continue
        after = np.searchsorted(known, key[here])
        nearest = np.minimum(
            np.abs(key[here] - known[np.clip(after - 1, 0, None)]),
            np.abs(known[np.clip(after, None, known.size - 1)] - key[here]),
        )
        close = here[nearest < length]
        split[close] = ""
        if close.size:
            dropped[name] = int(close.size)
    return split, dropped


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.most_common())
