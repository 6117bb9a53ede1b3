"""Files that a job leaves: whole or not at all, and never over an existing one without --overwrite."""

import errno
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba.errors import InputError

if TYPE_CHECKING:
    import polars

TABLES = {".parquet": "Parquet", ".tsv": "tab-separated text", ".csv": "comma-separated text"}
"""Suffixes that `write_table` knows."""


def refuse_existing(paths: Sequence[Path], overwrite: bool = False) -> None:
    """Called before the long work begins. Raises `InputError` for a file that exists, or whose folder does not or takes
    no file."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; choose another --out, or give --overwrite")
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    for folder in dict.fromkeys(path.absolute().parent for path in paths):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder}: no file can be written there ({error.strerror})") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name next to `path` to write to; renamed to `path` when the block ends well, else removed.

    The temporary name ends in `path`'s suffix, by which some writers choose their format. A full disk and the like is
    an `OSError` with its number and the folder's name, whichever library writes.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except Exception as error:
        folder = str(path.absolute().parent)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or folder
        elif found := re.search(r"\(os error (\d+)\)", str(error)):  # polars: Rust's words, in an error without number
            raise OSError(int(found[1]), os.strerror(int(found[1])), folder) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def bgzip_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """What appends to a new file, compressed with bgzip. Raises `OSError` where the disk takes no more."""
    import pysam

    file = pysam.BGZFile(str(path), "wb", None)

    def checked(call: Callable[..., object], *arguments: bytes) -> None:
        try:
            call(*arguments)
        except OSError as error:  # htslib's, without a number
            raise OSError(error.errno or errno.EIO, "the file could not be written; is the disk full?") from None

    try:
        yield lambda text: checked(file.write, text)
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    checked(file.close)


def refuse_missing_library(name: str, wanted_by: str) -> None:
    """Called before the long work begins. Raises `InputError` if `name`, which is imported late, is missing."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"{wanted_by}: needs {name}, which is not installed: pip install {name}")


def table_format(path: Path) -> str:
    """The suffix of a table's name. Raises `InputError` for one that `write_table` does not know."""
    if path.suffix not in TABLES:
        known = ", ".join(f"{suffix} ({kind})" for suffix, kind in TABLES.items())
        raise InputError(f"{path}: unknown kind of table {path.suffix!r}; expected one of {known}")
    return path.suffix


def write_table(table: "polars.DataFrame", path: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """A polars table as Parquet, TSV or CSV, by the suffix of `path`; whole or not at all.

    Parquet keeps the `provenance` as JSON under the key `dnamamba` of its metadata; text has no place for it.
    """
    suffix = table_format(path)
    with whole_file(path) as partial:
        if suffix == ".parquet":
            table.write_parquet(partial, metadata={"dnamamba": json.dumps(provenance)} if provenance else None)
        else:
            table.write_csv(partial, separator="\t" if suffix == ".tsv" else ",")


def write_arrays(arrays: Mapping[str, Any], path: Path) -> None:
    """numpy arrays as a compressed npz; whole or not at all."""
    import numpy as np

    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
