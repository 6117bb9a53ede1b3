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
from dnamamba.finetuning.tasks.examples import Examples, FixedSet, HeldOut, Origin, Target, Task, pad
from dnamamba.finetuning.tasks.groups import joined_groups, names_in
from dnamamba.finetuning.tasks.labels import class_counts, describe_counts, encode_labels, find_target, values_found
from dnamamba.finetuning.tasks.readers import Record
from dnamamba.finetuning.tasks.variant_report import AnnotatedVariants, VariantReport
from dnamamba.genome.alleles import REASON_NAMES, REASONS, Alleles, check, refuse_mismatches
from dnamamba.genome.genes import read_genes
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
from dnamamba.genome.variant_features import variant_features
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


class Columns(NamedTuple):
    """Which of a file's columns say what."""

    label: str
    effect: str | None
    split_by: str | None
    """Of the genes that stay together; None: whole contigs do"""

    @property
    def groups(self) -> str:
        """What is in one split alone."""
        return self.split_by or "contig"


def build(settings: ResolvedFinetuneSettings) -> Task:
    """Reads, checks, splits and encodes the variants. Raises `InputError` with file and line."""
    if settings.variants is None or not settings.genome:
        raise InputError("--variants, --genome: name the labelled variants and the FASTA of their assembly")
    assert settings.length is not None
    if settings.kmer:
        raise InputError("--kmer: not a flag of --task variants")
    if len(settings.label_columns or []) > 1:
        raise InputError("--label_columns: --task variants takes one column of two classes")
    path, length = settings.variants, settings.length
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f"{path}: no variants")
    columns = _columns(settings, rows, path)
    with job_bar("reading the genome", "B") as progress:
        store = open_genome(settings.genome, progress=progress)

    left_out: Counter[str] = Counter()
    rows = _wanted(rows, columns, settings.effects, left_out)
    if not rows:
        raise InputError(f"{path}: no variant is left ({_reasons(left_out)})")
    alleles = _check(rows, store, length // 2, path, left_out)
    usable = np.flatnonzero(alleles.reason == 0)
    rows, alleles = [rows[i] for i in usable.tolist()], _take(alleles, usable)
    genes = [names_in(row.columns[columns.split_by]) if columns.split_by else [row.contig] for row in rows]
    groups = joined_groups(genes, [(row.contig, row.start) for row in rows])
    members = _members(rows, alleles, groups, columns, length, path, left_out)
    target, labels = _labels(rows, columns.label, members["train"], path)

    windows = [window(store, alleles, index, length) for index in range(len(rows))]
    contigs = [store.contigs[contig].name for contig in alleles.contig.tolist()]
    examples = {}
    for split, chosen in members.items():
        tokens, lengths = pad([windows[i] for i in chosen])
        origins = [
            Origin(contigs[i], row.start, row.start + len(row.ref), groups[i], (row.id, row.ref, row.alt))
            for i, row in ((i, rows[i]) for i in chosen)
        ]
        examples[split] = Examples(tokens, lengths, labels[chosen], origins)
    annotated = _annotated(settings.annotation, store, alleles, members)
    report = VariantReport(
        examples["train"].labels,
        _effects([rows[i] for i in members["train"]], columns.effect),
        _effects([rows[i] for i in members["test"]], columns.effect),
        examples["dev"].labels,
        annotated,
    )
    facts = {
        "data": str(path),
        "genome": [str(file) for file in settings.genome],
        "split_by": columns.groups,
        "splits": {split: _facts(found, target) for split, found in examples.items()},
        "left_out": dict(left_out),
        **({"annotation": annotated.facts()} if annotated else {}),
    }
    names = len({gene for of_variant in genes for gene in of_variant}), len(set(groups))
    notes = _notes(facts, target, columns, names, length)
    longest = max(int(each.lengths.max()) for each in examples.values())
    train, dev, test = (examples[split] for split in SPLITS)
    return Task(target, FixedSet(train), dev, HeldOut(test), longest, notes, facts, report.measure, report.keep)


def _effects(rows: list[LabelledVariant], column: str | None) -> list[str] | None:
    return None if column is None else [row.columns.get(column, "") for row in rows]


def _annotated(
    path: Path | None, store: TokenStore, alleles: Alleles, members: dict[str, list[int]]
) -> AnnotatedVariants | None:
    """The features of each split, None without an annotation."""
    if path is None:
        return None
    genes = read_genes(path, store)
    features = variant_features(store, genes, alleles)
    train, dev, test = (features[members[split]] for split in SPLITS)
    return AnnotatedVariants(train, dev, test, len(genes))


def _columns(settings: ResolvedFinetuneSettings, rows: list[LabelledVariant], path: Path) -> Columns:
    wanted = settings.label_columns[0] if settings.label_columns else None
    label = _column(rows, wanted, ("label",), path, "--label_columns")
    assert label is not None
    effect = _column(rows, settings.effect_column, EFFECT_COLUMNS, path, "--effect_column", needed=False)
    if settings.effects and effect is None:
        raise InputError(f"{path}: --effects needs a column of effects; name it with --effect_column")
    by_contig = (settings.split_by or "").lower() in CONTIG_COLUMNS
    split_by = None if by_contig else _column(rows, settings.split_by, GROUP_COLUMNS, path, "--split_by", needed=False)
    return Columns(label, effect, split_by)


def _wanted(
    rows: list[LabelledVariant], columns: Columns, effects: list[str] | None, left_out: Counter[str]
) -> list[LabelledVariant]:
    """Those with a label, with genes if they are split by them, and of the chosen effects; counts the others."""
    kept = []
    for row in rows:
        if columns.label not in row.columns:
            left_out[f"no {columns.label}"] += 1
        elif columns.split_by and not names_in(row.columns.get(columns.split_by, "")):
            left_out[f"no {columns.split_by}"] += 1
        elif effects and columns.effect and row.columns.get(columns.effect) not in effects:
            left_out[f"another {columns.effect}"] += 1
        else:
            kept.append(row)
    return kept


def _members(
    rows: list[LabelledVariant],
    alleles: Alleles,
    groups: list[str],
    columns: Columns,
    length: int,
    path: Path,
    left_out: Counter[str],
) -> dict[str, list[int]]:
    """Split → its rows: no group and no window is in two of them. Counts what is taken out for that."""
    split = _splits(rows, groups, path)
    refuse_shared_groups(groups, split, path, columns.groups)
    contig, position = _positions(rows, alleles)
    # Where each window begins, for `window` centres REF, however long: they overlap where that is closer than a length.
    begins = position - (length - alleles.ref_length) // 2
    split, dropped = without_overlaps(contig, begins, split, length)
    for name, count in dropped.items():
        left_out[f"window overlaps another split's ({name})"] += count
    members = {name: np.flatnonzero(split == name).tolist() for name in SPLITS}
    for name, found in members.items():
        if not found:
            raise InputError(f"{path}: no variants are left for {name}: {len(set(groups))} groups are too few")
    return members


def _labels(rows: list[LabelledVariant], label: str, train: list[int], path: Path) -> tuple[Target, np.ndarray]:
    """The two classes, as those of `train` have them, and the class of each variant."""
    records = [Record(row.where, "", np.empty(0, np.uint8), (row.columns[label],)) for row in rows]
    target = find_target([records[i] for i in train], "multiclass", None)
    if len(target.names) != 2:
        found = f"{len(target.names)} values ({values_found(target.names)})"
        raise InputError(f"{path}: column {label} has {found}; expected two classes")
    return target, encode_labels(records, target)


def _facts(examples: Examples, target: Target) -> dict[str, Any]:
    """What the run keeps of a split."""
    return {
        "examples": len(examples),
        "groups": len({origin.group for origin in examples.origins}),
        "sha256": hashlib.sha256(examples.tokens.tobytes() + examples.labels.tobytes()).hexdigest(),
        "class_counts": class_counts(examples.labels, target),
    }


def _notes(
    facts: dict[str, Any], target: Target, columns: Columns, names: tuple[int, int], length: int
) -> list[tuple[str, str]]:
    """Labelled lines for the head of the run; `names`: how many genes there are, and groups of them."""
    together = f"{names[0]:,} genes in {names[1]:,}: those that share a variant or its site stay together"
    return [
        ("data", f"{facts['data']}: label {columns.label}, split by {columns.groups}"),
        ("groups", together if names[0] > names[1] else ""),
        ("target", f"{target.names[1]} against {target.names[0]}"),
        *((split, _described(each)) for split, each in facts["splits"].items()),
        (
            "disjoint",
            f"no {columns.groups} in two splits, no windows of {length:,} bases of two splits overlap",
        ),
        ("left out", _reasons(Counter(facts["left_out"]))),
        ("annotation", "{transcripts:,} transcripts, {features} features a variant".format(**facts["annotation"]))
        if "annotation" in facts
        else ("annotation", ""),
    ]


def _described(split: dict[str, Any]) -> str:
    counts = describe_counts(split["class_counts"])
    return f"{split['examples']:,} variants of {split['groups']:,} groups; {counts}"


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
        raise InputError(f"{path}: unknown kind of file; expected .vcf, .tsv, .maf or .csv, plain or .gz")
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
