"""From labels as written in files to numbers: which classes there are, and what of them cannot be.

A label may be a class, a number, several names with semicolons between (multilabel), or a vector: a list in Parquet, or
text like `0;1;1` and `[0, 1, 1]`. A vector is the same as a column for each of its values.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.examples import Target
from dnamamba.finetuning.tasks.readers import Record
from dnamamba.model.config import Kind
from dnamamba.tables import MISSING, number, whole_number

MANY_CLASSES = 200
"""More classes than this in one column look like numbers of a regression."""
UNEQUAL = 10
"""Class counts that differ by more than this factor are pointed out."""
VALUES_SHOWN = 10
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1, "false": 0, "true": 1}


def split_vectors(
    records: Mapping[str, list[Record]], kind: Literal["auto"] | Kind, columns: list[str] | None
) -> tuple[dict[str, list[Record]], list[str] | None]:
    """Records by split with a label for each value of a vector, and names for them; unchanged where there are none.

    The training records decide: vectors are lists of one length of two or more, of 0 and 1, or for a regression of any
    numbers. Raises `InputError` for a vector of another length in any split.
    """
    train = [_values(record) for record in records["train"]]
    length = len(train[0])
    # As multilabel, lists of several lengths are of labels that are called 0 and 1.
    binary = kind in ("auto", "multilabel") and all(
        (len(values) == length or (kind == "auto" and len(values) > 1))
        and all(value in _BINARY or value in MISSING for value in values)
        for values in train
    )
    numbers = kind == "regression" and all(number(value) is not None for values in train for value in values)
    if length < 2 or len(records["train"][0].labels) > 1 or not (binary or numbers):
        return dict(records), columns
    name = columns[0] if columns else "label"
    split: dict[str, list[Record]] = {}
    for which, found in records.items():
        split[which] = [record._replace(labels=tuple(_values(record))) for record in found]
        for record in split[which]:
            if len(record.labels) != length:
                raise InputError(f"{record.where}: {name} has {len(record.labels)} values, the first one has {length}")
    return split, [f"{name}_{index}" for index in range(length)]


def find_target(records: Sequence[Record], kind: Literal["auto"] | Kind, columns: list[str] | None) -> Target:
    """The kind and the names of the outputs, from the training records alone. Names are sorted: whole numbers by value,
    others as text. Raises `InputError` for a single class and for labels of another kind."""
    several = columns is not None and len(columns) > 1
    if kind == "auto":
        kind = "multilabel" if several else "multiclass"
    if kind == "regression" or (kind == "multilabel" and several):
        return Target(kind, tuple(columns or ["value"]))
    if kind == "multiclass" and several:
        raise InputError(f"--label_columns: {len(columns or [])} columns are several labels; take --kind multilabel")
    _refuse_missing(records, kind)
    texts = {part for record in records for part in (_parts(record) if kind == "multilabel" else record.labels)}
    if len(texts) < 2 and kind == "multiclass":
        raise InputError(f"{records[0].where}: all {len(records)} training examples have one label, {min(texts)!r}")
    if kind == "multiclass" and len(texts) > MANY_CLASSES and None not in map(number, texts):
        raise InputError(
            f"{records[0].where}: {len(texts)} different numbers as labels ({values_found(sorted(texts))}); "
            "take --kind regression, or --kind multiclass with names if they are classes"
        )
    return Target(kind, tuple(sorted(texts, key=_order(texts))))


def encode_labels(records: Sequence[Record], target: Target) -> np.ndarray:
    """multiclass (records,) int64; multilabel and regression (records, outputs) float32. Raises `InputError` with file
    and line for a label that is missing, that the training records do not have, or that is no number."""
    _refuse_missing(records, target.kind)
    if target.kind == "multiclass":
        indices = {name: index for index, name in enumerate(target.names)}
        for record in records:
            if record.labels[0] not in indices:
                raise InputError(
                    f"{record.where}: label {record.labels[0]!r} is not among the classes of train "
                    f"({values_found(target.names)})"
                )
        return np.array([indices[record.labels[0]] for record in records], np.int64)
    values = np.zeros((len(records), len(target.names)), np.float32)
    if target.kind == "multilabel" and len(records[0].labels) == 1:
        indices = {name: index for index, name in enumerate(target.names)}
        known = values_found(target.names)
        for row, record in zip(values, records, strict=True):
            for part in _parts(record):
                if part not in indices:
                    raise InputError(f"{record.where}: label {part!r} is not among the labels of train ({known})")
                row[indices[part]] = 1
        return values
    for row, record in zip(values, records, strict=True):
        for index, text in enumerate(record.labels):
            regression = target.kind == "regression"
            value = number(text) if regression else _BINARY.get(text)
            if value is None or not math.isfinite(value):
                found = values_found(dict.fromkeys(record.labels[index] for record in records))
                expected = f"{'a number' if regression else '0 or 1'}; the values there are {found}"
                raise InputError(f"{record.where}: {target.names[index]} is {text!r}, expected {expected}")
            row[index] = value
    return values


def class_counts(labels: np.ndarray, target: Target) -> dict[str, int]:
    """Examples of each class or label; empty for a regression."""
    if target.kind == "regression":
        return {}
    if target.kind == "multilabel":
        return dict(zip(target.names, labels.sum(0).astype(int).tolist(), strict=True))
    return dict(zip(target.names, np.bincount(labels, minlength=len(target.names)).tolist(), strict=True))


def describe_counts(counts: Mapping[str, int]) -> str:
    """`0 2,400, 1 2,505`, the largest ten of many, and a word where they are wildly unequal."""
    shown = Counter(counts).most_common(10) if len(counts) > 10 else list(counts.items())
    text = ", ".join(f"{name} {count:,}" for name, count in shown) + (", …" if len(counts) > 10 else "")
    low, high = min(counts.values(), default=0), max(counts.values(), default=0)
    return f"{text}: wildly unequal, accuracy says little" if high > UNEQUAL * low else text


def values_found(values: Collection[str]) -> str:
    """The first ten values of a column, for a message."""
    shown = ", ".join(list(values)[:VALUES_SHOWN])
    return f"{shown}{f' and {len(values) - VALUES_SHOWN:,} more' if len(values) > VALUES_SHOWN else ''}"


def _refuse_missing(records: Sequence[Record], kind: Literal["auto"] | Kind) -> None:
    """Raises `InputError` for the first label that is missing. A multilabel one may be empty: none of the labels."""
    for record in records:
        names = kind == "multilabel" and len(record.labels) == 1
        for text in _parts(record) if names else record.labels:
            if text in MISSING:
                what = f"missing ({text!r})" if text else "empty"
                raise InputError(f"{record.where}: the label is {what}; take the row out, or name its class")


def _values(record: Record) -> list[str]:
    """Of a label that is a list: with semicolons, or as Python and numpy print one. A comma alone may be a decimal."""
    text = record.labels[0]
    bracketed = text[:1] in ("[", "(") and text[-1:] in ("]", ")")
    parts = re.split(r"[;,\s]+", text[1:-1].strip()) if bracketed else [part.strip() for part in text.split(";")]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def _parts(record: Record) -> list[str]:
    return [part.strip() for part in record.labels[0].split(";") if part.strip()]


def _order(texts: set[str]):  # type: ignore[no-untyped-def]
    numbers = {text: whole_number(text, lowest=-(10**18)) for text in texts}
    return (lambda text: (numbers[text], text)) if None not in numbers.values() else str
