"""The task of labelled sequences: a folder with train, test and perhaps dev, in any layout that is published."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dnamamba.alphabet import N
from dnamamba.errors import InputError
from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import Examples, FixedSet, HeldOut, Origin, Target, Task, canonical, pad
from dnamamba.finetuning.tasks.labels import class_counts, describe_counts, encode_labels, find_target, split_vectors
from dnamamba.finetuning.tasks.readers import Record, TableColumns, is_readable, read_class_folder, read_records
from dnamamba.tables import suffix

SPLITS = {"train": ("train", "training"), "dev": ("dev", "valid", "validation", "val", "eval"), "test": ("test",)}
"""Split → what its files or folders are called."""


def build(settings: ResolvedFinetuneSettings) -> Task:
    """Reads, checks and encodes the data. Raises `InputError` with file and line."""
    if settings.data is None:
        raise InputError("--data: name the folder with train, test and perhaps dev")
    records = read_splits(settings.data, _columns(settings))
    for split in ("train", "test"):
        if not records[split]:
            raise InputError(
                f"{settings.data}: no {split} split; expected {split}.csv, .tsv, .parquet, .fa or {split}/"
            )
    cut = dict.fromkeys(records, 0)
    if settings.length is not None:
        for split in records:
            records[split], cut[split] = crop(records[split], settings.length)
    records, columns = split_vectors(records, settings.kind, settings.label_columns)
    target = find_target(records["train"], settings.kind, columns)
    carved = not records["dev"]
    if carved:
        records["train"], records["dev"] = carve(records["train"], target, settings.dev_fraction)
    overlaps = find_overlaps(records)
    if settings.refuse_overlap and overlaps["train_test"]["sequences"]:
        raise InputError(
            f"{settings.data}: {_overlap_text(overlaps['train_test'], 'train and test')} (--refuse_overlap)"
        )

    examples = {split: _examples(rows, target) for split, rows in records.items()}
    counts = {split: class_counts(examples[split].labels, target) for split in records}
    notes = [
        ("data", f"{settings.data}{f', subset {settings.subset}' if settings.subset else ''}"),
        ("target", f"{target.kind}: {', '.join(target.names[:12])}{', …' if len(target.names) > 12 else ''}"),
    ]
    for split, rows in records.items():
        lengths = examples[split].lengths
        text = f"{len(rows):,} sequences of {_range(lengths)} bases"
        text += f" ({settings.dev_fraction:.0%} of train)" if split == "dev" and carved else ""
        text += f", {cut[split]:,} cut to {settings.length}" if cut[split] else ""
        text += f"; {describe_counts(counts[split])}" if counts[split] else ""
        notes.append((split, text))
    for pair, found in overlaps.items():
        if found["sequences"]:
            notes.append(("overlap", _overlap_text(found, pair.replace("_", " and "))))
    facts: dict[str, Any] = {
        "data": str(settings.data.absolute()),
        "splits": {
            split: {
                "examples": len(rows),
                "sha256": _fingerprint(rows),
                "lengths": [int(examples[split].lengths.min()), int(examples[split].lengths.max())],
                "class_counts": counts[split],
                "n_share": float((examples[split].tokens == N).sum() / examples[split].lengths.sum()),
            }
            for split, rows in records.items()
        },
        "dev_carved_from_train": carved,
        "overlaps": overlaps,
    }
    longest = max(int(split.lengths.max()) for split in examples.values())
    return Task(target, FixedSet(examples["train"]), examples["dev"], HeldOut(examples["test"]), longest, notes, facts)


def _columns(settings: ResolvedFinetuneSettings) -> TableColumns:
    return TableColumns(settings.sequence_column, settings.label_columns, settings.subset)


def read_splits(folder: Path, columns: TableColumns) -> dict[str, list[Record]]:
    """The records of train, dev and test; an empty list for a split that is not there."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; --data is the folder with train, test and perhaps dev")
    homes = [folder, folder / "data"] if (folder / "data").is_dir() else [folder]
    records: dict[str, list[Record]] = {}
    for split, names in SPLITS.items():
        files = sorted(p for home in homes for p in home.iterdir() if p.is_file() and _is_of(p, names))
        folders = [home / name for home in homes for name in names if (home / name).is_dir()]
        found = [*files, *folders]
        if len(found) > 1 and not all(suffix(path) == ".parquet" for path in found):
            raise InputError(f"{folder}: several {split} splits: {', '.join(path.name for path in found)}; keep one")
        records[split] = []
        for path in found:
            read = read_class_folder(path) if path.is_dir() else read_records(path, columns)
            records[split] += read
        if found and not records[split]:
            what = f" with task {columns.subset!r}" if columns.subset is not None else ""
            raise InputError(f"{found[0]}: no sequences{what}")
    return records


def _is_of(path: Path, names: tuple[str, ...]) -> bool:
    """train.csv.gz, train.fna, and Parquet's shards train-00000-of-00002.parquet."""
    stem = path.name.split(".")[0]
    return is_readable(path) and (stem in names or (suffix(path) == ".parquet" and stem.split("-")[0] in names))


def crop(records: list[Record], length: int) -> tuple[list[Record], int]:
    """Longer ones cut to `length` bases around their middle, and how many were."""
    kept, cut = [], 0
    for record in records:
        surplus = len(record.tokens) - length
        cut += surplus > 0
        middle = slice(surplus // 2, surplus // 2 + length)
        kept.append(record._replace(tokens=record.tokens[middle]) if surplus > 0 else record)
    return kept, cut


def carve(records: list[Record], target: Target, fraction: float) -> tuple[list[Record], list[Record]]:
    """(rest, dev): `fraction` of every class, by a hash of the sequence: the same whatever the seed and the order of
    the file, and equal sequences stay together. Raises `InputError` where nothing would be left of a class."""
    strata: dict[tuple[str, ...], list[tuple[bytes, int]]] = {}
    for number, record in enumerate(records):
        key = record.labels if target.kind == "multiclass" else ()
        digest = hashlib.blake2b(canonical(record.tokens), digest_size=8).digest()
        strata.setdefault(key, []).append((digest, number))
    chosen: set[int] = set()
    for labels, members in strata.items():
        members.sort()
        wanted = max(round(fraction * len(members)), 1)
        last = members[wanted - 1][0]
        if members[-1][0] == last:
            of_class = f" of class {labels[0]!r}" if labels else ""
            raise InputError(
                f"{records[members[0][1]].where}: too few different sequences{of_class} to take a dev split from "
                "train; add a dev split, or more of them"
            )
        chosen |= {number for digest, number in members if digest <= last}
    rest = [record for number, record in enumerate(records) if number not in chosen]
    return rest, [record for number, record in enumerate(records) if number in chosen]


def find_overlaps(records: dict[str, list[Record]]) -> dict[str, dict[str, Any]]:
    """Sequences (or their reverse complements) that are in two splits: how many of the second one's, and the first
    three of them by name."""
    keys = {split: [canonical(record.tokens) for record in rows] for split, rows in records.items()}
    found = {}
    for first, second in (("train", "test"), ("dev", "test"), ("train", "dev")):
        known = dict(zip(reversed(keys[first]), reversed(range(len(keys[first]))), strict=True))
        pairs = [(known[key], number) for number, key in enumerate(keys[second]) if key in known]
        found[f"{first}_{second}"] = {
            "sequences": len(pairs),
            "of": len(keys[second]),
            "first": [f"{_short(records[second][j])} = {_short(records[first][i])}" for i, j in pairs[:3]],
        }
    return found


def _short(record: Record) -> str:
    """Without the folder."""
    return record.where.rpartition("/")[2]


def _overlap_text(found: dict[str, Any], pair: str) -> str:
    return f"{found['sequences']:,} of {found['of']:,} sequences are in both {pair}: {'; '.join(found['first'])}"


def _examples(records: list[Record], target: Target) -> Examples:
    tokens, lengths = pad([record.tokens for record in records])
    origins = [
        Origin(record.name or f"{number}", 0, len(record.tokens), f"{number}") for number, record in enumerate(records)
    ]
    return Examples(tokens, lengths, encode_labels(records, target), origins)


def _fingerprint(records: list[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(record.tokens.tobytes() + b"\0" + "\t".join(record.labels).encode() + b"\n")
    return digest.hexdigest()


def _range(lengths: np.ndarray) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
