"""From labels as written in files to numbers: which classes there are, and what of them cannot be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.examples import Target
from dnamamba.finetuning.tasks.readers import Record
from dnamamba.model.config import Kind

MANY_CLASSES = 200
"""More classes than this in one column look like numbers of a regression."""
UNEQUAL = 10
"""Class counts that differ by more than this factor are pointed out."""


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
    texts = {part for record in records for part in (_parts(record) if kind == "multilabel" else record.labels)}
    if "" in texts:
        where = next(record.where for record in records if "" in record.labels)
        raise InputError(f"{where}: the label is empty")
    if len(texts) < 2 and kind == "multiclass":
        raise InputError(f"{records[0].where}: all {len(records)} training examples have one label, {min(texts)!r}")
    if kind == "multiclass" and len(texts) > MANY_CLASSES and all(map(_is_number, texts)):
        raise InputError(
            f"{records[0].where}: {len(texts)} different numbers as labels; take --kind regression, or "
            "--kind multiclass with names if they are classes"
        )
    return Target(kind, tuple(sorted(texts, key=_order(texts))))


def encode_labels(records: Sequence[Record], target: Target) -> np.ndarray:
    """multiclass (records,) int64; multilabel and regression (records, outputs) float32. Raises `InputError` with file
    and line for a label that the training records do not have, or that is no number."""
    if target.kind == "multiclass":
        number = {name: index for index, name in enumerate(target.names)}
        for record in records:
            if record.labels[0] not in number:
                raise InputError(
                    f"{record.where}: label {record.labels[0]!r} is not among the classes of train "
                    f"({', '.join(target.names[:10])}{', …' if len(target.names) > 10 else ''})"
                )
        return np.array([number[record.labels[0]] for record in records], np.int64)
    values = np.zeros((len(records), len(target.names)), np.float32)
    if target.kind == "multilabel" and len(records[0].labels) == 1:
        number = {name: index for index, name in enumerate(target.names)}
        for row, record in zip(values, records, strict=True):
            for part in _parts(record):
                if part not in number:
                    raise InputError(f"{record.where}: label {part!r} is not among the labels of train")
                row[number[part]] = 1
        return values
    for row, record in zip(values, records, strict=True):
        for index, text in enumerate(record.labels):
            allowed = target.kind == "regression" or text in ("0", "1", "0.0", "1.0", "True", "False", "true", "false")
            number_text = {"true": "1", "false": "0"}.get(text.lower(), text)
            if not allowed or not _is_number(number_text) or not np.isfinite(float(number_text)):
                expected = "a number" if target.kind == "regression" else "0 or 1"
                raise InputError(f"{record.where}: {target.names[index]} is {text!r}, expected {expected}")
            row[index] = float(number_text)
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


def _parts(record: Record) -> list[str]:
    return [part.strip() for part in record.labels[0].split(";") if part.strip()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _order(texts: set[str]):  # type: ignore[no-untyped-def]
    return (lambda text: (int(text), text)) if all(text.lstrip("-").isdigit() for text in texts) else str
