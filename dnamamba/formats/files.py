"""What the formats share: which folder is meant, JSON, checksums. Torch-free."""

import hashlib
import json
from pathlib import Path
from typing import Any

from dnamamba import bundled
from dnamamba.errors import InputError
from dnamamba.outputs import replaced_name

CONFIG = "config.json"
"""The file that every checkpoint folder has, of whatever format, and that says which."""
PROVENANCE = "provenance.json"
"""Where the weights come from, in every folder that dnamamba writes."""


LONGEST_JSON = 64 << 20
"""Bytes of a JSON file"""


def located(folder: Path) -> Path:
    """The folder itself; where there is no such folder, the bundled model of that name."""
    return folder if folder.exists() else bundled.folder(str(folder)) or folder


def checkpoint_folder(folder: Path) -> Path:
    """The folder itself or a run folder's best checkpoint, `located`. Raises `InputError` unless it exists and has
    `CONFIG`."""
    folder = located(folder)
    if (folder / "checkpoints").is_dir():
        best = folder / "checkpoints" / "best"
        if not best.is_dir():
            raise InputError(
                f"{folder}: this run has no validated checkpoint yet; give {best.with_name('last')} instead"
            )
        folder = best
    if not folder.is_dir():
        replaced = replaced_name(folder)
        hint = f"; a save was interrupted, rename {replaced} to it" if replaced.is_dir() else ""
        raise InputError(f"{folder}: no such folder, expected a checkpoint or run folder{hint or _or_bundled()}")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no checkpoint, it lacks {CONFIG}")
    return folder


def _or_bundled() -> str:
    return f", or a bundled model: {', '.join(names)}" if (names := bundled.names()) else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `InputError`."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_JSON + 1)
        if len(content) > LONGEST_JSON:
            raise InputError(f"{path}: longer than {LONGEST_JSON >> 20} MiB, which no such file of a checkpoint is")
        value = json.loads(content.decode("utf-8"))
    except InputError:
        raise
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
