"""Dataclasses as JSON in checkpoints, whose fields may grow: what an older file lacks, and what a newer one has.

A field that is newer than format 1 says so in its metadata: `since`, the format that brought it, and `older`, the value
that files before it mean. A file has the lowest format that can say what it says: fields that came later and still have
their older value are left out, so that an older dnamamba reads it.
"""

from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from dnamamba import __version__
from dnamamba.errors import InputError

FORMAT_VERSION = 4
"""The newest that is read and written. 2: `mixer` and `objective`; `activation_checkpointing` is no more of a model.
3: mixers other than Mamba, their options, and patterns of mixers. 4: BiMamba's options, reverse-complement
equivariance, embeddings of k-mers, attention without positions."""
LEAST_WRITTEN = 2
"""Files without `activation_checkpointing` cannot be of format 1."""
RETIRED = frozenset({"activation_checkpointing"})
"""Keys of older files that are read and ignored."""

T = TypeVar("T")


def format_needed(objects: Iterable[Any]) -> int:
    """The lowest format that can say what these dataclasses say."""
    said = [each for value in objects for each in fields(value) if getattr(value, each.name) != _older(each)]
    return max(LEAST_WRITTEN, *map(since, said))


def _older(field: Field) -> Any:
    """What files without the field mean; of a field that all files have, nothing."""
    return field.metadata.get("older", MISSING)


def since(field: Field) -> int:
    """The format that brought a field."""
    return field.metadata.get("since", 1)


def to_json(value: Any, version: int) -> dict[str, Any]:
    """The fields of a dataclass that format `version` knows."""
    return {each.name: getattr(value, each.name) for each in fields(value) if since(each) <= version}


def from_json(kind: type[T], values: dict[str, Any], version: int, written_by: str, path: Path) -> T:
    """The dataclass that `to_json` gave; what came after `version` has its older value. Raises `InputError` naming the
    file and the key that is missing, unknown or impossible; `written_by` is the dnamamba that wrote the file."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in values.keys() - known.keys() - RETIRED:
        raise InputError(f"{path}: unknown key {key}: {newer(version, written_by)}")
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in known}
    for name, each in known.items():
        if name not in given:
            if since(each) <= version:
                raise InputError(f"{path}: lacks {name}")
            given[name] = each.metadata["older"]
    try:
        return kind(**given)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def newer(version: int, written_by: str) -> str:
    """Who knows what this dnamamba does not."""
    return (
        f"written in format {version} by {written_by}, which this dnamamba {__version__} (format {FORMAT_VERSION}) "
        "does not know; install that one"
    )
