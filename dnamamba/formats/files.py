"""What the formats share: which folder is meant, JSON, checksums, files that have reached the disk. Torch-free."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnamamba.errors import InputError

CONFIG = "config.json"
"""The file that every checkpoint folder has, of whatever format, and that says which."""
PROVENANCE = "provenance.json"
"""Where the weights come from, in every folder that dnamamba writes."""


def checkpoint_folder(folder: Path) -> Path:
    """The folder itself, or a run folder's best checkpoint. Raises `InputError` unless it exists and has `CONFIG`."""
    if (folder / "checkpoints").is_dir():
        best = folder / "checkpoints" / "best"
        if not best.is_dir():
            raise InputError(
                f"{folder}: this run has no validated checkpoint yet; give {best.with_name('last')} instead"
            )
        folder = best
    if not folder.is_dir():
        replaced = sibling(folder, "replaced")
        hint = f"; a save was interrupted, rename {replaced} to it" if replaced.is_dir() else ""
        raise InputError(f"{folder}: no such folder, expected a checkpoint or run folder{hint}")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no checkpoint, it lacks {CONFIG}")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `InputError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, a number of 5000 digits
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """64 hexadecimal digits of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sibling(folder: Path, purpose: str) -> Path:
    """A hidden folder next to `folder`, on the same disk."""
    return folder.with_name(f".{folder.name}.{purpose}")


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder next to `folder` to write to; renamed to it, and on the disk, when the block ends well.

    An existing `folder` is an `InputError` unless `overwrite`; then the old one stays until the new one is complete.
    One process writes (rank 0). A disk that is full or read-only raises `OSError`.
    """
    if folder.exists() and not overwrite:
        raise InputError(f"{folder}: exists already; choose another folder or remove it first")
    partial, replaced = sibling(folder, "partial"), sibling(folder, "replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # left by a save that was killed
    partial.mkdir()
    yield partial
    for path in (*partial.iterdir(), partial):
        sync(path)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Returns when a file or a folder's entries have reached the disk: a later crash of the machine leaves them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
