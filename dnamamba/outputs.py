"""Files that a job leaves: whole or not at all, and never over an existing one without --overwrite.

Every file is written under a temporary name next to its own, `.NAME.HOST.PROCESS.partial`, and gets its name when it is
complete and on disk. What a killed job leaves under such names, the next job with the same output removes.
"""

import errno
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba.errors import InputError
from dnamamba.text_files import BGZIP_END

if TYPE_CHECKING:
    import polars

TABLES = {".parquet": "Parquet", ".tsv": "tab-separated text", ".csv": "comma-separated text"}
"""Suffixes that `write_table` knows."""

BGZIP_LEVEL = 4
"""zlib's: 16 MB of bedGraph took 0.33 s and 5.23 MB, at level 6 0.89 s and 5.20 MB."""
_BLOCK = 0xFF00
"""Bytes of text in a block of bgzip, as htslib has it: in whatever way they are compressed, a block is below 64 KiB."""
_BLOCK_HEADER = struct.Struct("<4BI2BH2B2H")

_LONGEST_NAME, _LONGEST_SUFFIX = 100, 16
"""Bytes of a file's name that its temporary name repeats: names may have 255, host and process included."""
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
_NO_FSYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}


def refuse_existing(paths: Sequence[Path], overwrite: bool = False) -> None:
    """Called before the long work begins. Raises `InputError` for a file that exists, or whose folder does not or takes
    no file of this name. Removes what killed jobs have left of these files."""
    for path in paths:
        try:
            path.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InputError(f"{path}: {error.strerror}; choose a shorter --out") from None
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file")
        if os.path.lexists(path) and not overwrite:
            raise InputError(f"{path}: exists already; choose another --out, or give --overwrite")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no regular file; choose another --out")
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.absolute().parent}; make it first")
        remove_left_overs(path)
    for folder in dict.fromkeys(path.absolute().parent for path in paths):
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder}: no file can be written there ({error.strerror})") from None


@contextmanager
def whole_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name next to `path` to write to; renamed to `path` when the block ends well, else removed.

    The temporary name ends in `path`'s suffix, by which some writers choose their format; there is an empty file of
    this name. Raises `InputError` where `path` has come into being meanwhile and is not to be overwritten. A full disk
    and the like is an `OSError` with its number and `path`, whichever library writes.
    """
    with whole_files([path], overwrite) as (partial,):
        yield partial


@contextmanager
def whole_files(paths: Sequence[Path], overwrite: bool = False) -> Iterator[list[Path]]:
    """`whole_file` of several that belong together: all of them or none appear."""
    with ExitStack() as stack:
        partials = [stack.enter_context(_removed(partial_name(path))) for path in paths]
        folder = paths[0].absolute().parent
        with os_errors(paths[0] if len(paths) == 1 else folder, partials):  # a writer's error does not say which file
            modes = [_create(partial) for partial in partials]
            yield partials
        for path, partial, mode in zip(paths, partials, modes, strict=True):
            with os_errors(path, [partial]):
                partial.chmod(mode)  # of the umask; some writers make a file of their own, for the user alone
                sync(partial)
        published: list[Path] = []
        try:
            for path, partial in zip(paths, partials, strict=True):
                with os_errors(path, [partial]):
                    _publish(partial, path, overwrite)
                published.append(path)
        except BaseException:
            for path in published if not overwrite else ():
                path.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, text: str) -> None:
    """The whole text or nothing appears under this name, where an older one is replaced; see `whole_file`."""
    with whole_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder next to `folder` to write files to; renamed to it, and on disk, when the block ends well, else
    removed.

    An existing `folder` is an `InputError` unless `overwrite`; then the old one stays until the new one is complete.
    One process writes (rank 0). Errors are those of `whole_file`.
    """
    if os.path.lexists(folder) and not overwrite:
        raise InputError(f"{folder}: exists already; choose another folder or remove it first")
    partial, replaced = partial_name(folder), replaced_name(folder)
    try:
        with os_errors(folder, [partial, replaced]):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(folder)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            mode = partial.stat().st_mode & 0o666
            for path in partial.iterdir():
                path.chmod(mode)  # of the umask, as in `whole_files`
                sync(path)
            sync(partial)
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                folder.rename(replaced)
            try:
                partial.rename(folder)
            except OSError:
                if replaced.exists() and not folder.exists():
                    replaced.rename(folder)
                raise
            sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replaced_name(folder: Path) -> Path:
    """Where `whole_folder` puts the old folder for a moment."""
    return folder.with_name(f".{folder.name}.replaced")


def replace_link(link: Path, target: Path | str) -> None:
    """Lets the symbolic link lead to `target`; at every moment it leads to the old or the new one."""
    temporary = partial_name(link)
    with _removed(temporary), os_errors(link, [temporary]):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)


@contextmanager
def scratch_folder(partial: Path) -> Iterator[Path]:
    """A folder for what is needed while the file of this temporary name is made; it goes with the block, or, if the
    process is killed, with the file."""
    folder = partial.with_name(f"{partial.name}.parts")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def os_errors(path: Path, partials: Sequence[Path] = ()) -> Iterator[None]:
    """Where a file cannot be written in this block, that is an `OSError` with its number that names `path`, whichever
    library writes. Other errors pass as they are."""
    hidden = tuple(map(str, partials))
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
            if not named or any(name.startswith(hidden) for name in named):
                error.filename, error.filename2 = str(path), None
            raise
        if (number := _error_number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _error_number(error: Exception) -> int | None:
    """The system's number of an error that a library reports in words of its own."""
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT
    if found := re.search(r"\(os error (\d+)\)|in read-only mode: .*\((\d+)\)", str(error)):  # Rust's; torch's
        return int(found[1] or found[2])
    if "transport error" in str(error):  # polars, of the ends of a Parquet file: without the number
        return errno.EIO
    cause = error.__context__ if isinstance(error, RuntimeError) else None  # torch's, over a file of Python's
    return cause.errno if isinstance(cause, OSError) else None


def partial_name(path: Path) -> Path:
    """Where this process writes what is to be called `path`."""
    suffix = path.suffix if len(path.suffix) <= _LONGEST_SUFFIX else ""
    return path.with_name(f"{_partial_prefix(path)}{os.getpid()}.partial{suffix}")


def remove_left_overs(path: Path) -> None:
    """Removes the temporary files and folders of `path` whose processes, of this host, have ended."""
    prefix = _partial_prefix(path)
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.partial(\..*)?", re.DOTALL)
    for name in os.listdir(path.absolute().parent):
        if (found := pattern.fullmatch(name)) and not is_running(int(found[1])):
            left_over = path.with_name(name)
            if left_over.is_dir():
                shutil.rmtree(left_over, ignore_errors=True)
            else:
                with suppress(OSError):
                    left_over.unlink()


def is_running(process: int) -> bool:
    """Whether this host has such a process."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def sync(path: Path) -> None:
    """Returns when a file or a folder's entries have reached the disk: a later crash of the machine leaves them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _partial_prefix(path: Path) -> str:
    name = os.fsencode(path.name)
    shown = path.name if len(name) <= _LONGEST_NAME else hashlib.sha256(name).hexdigest()[:32]
    return f".{shown}.{platform.node()}."


def _create(partial: Path) -> int:
    """Makes the file, so that what keeps it from being made is found by Python, whichever library writes it. Returns
    its mode."""
    with partial.open("wb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777


@contextmanager
def _removed(partial: Path) -> Iterator[Path]:
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    """Gives a complete file its name. Without `overwrite` the first of two jobs has it."""
    if overwrite:
        os.replace(partial, path)
        return
    try:
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # whose it is; then replaced by what is whole
            os.replace(partial, path)
    except FileExistsError:
        raise InputError(
            f"{path}: exists by now, another job has written it; choose another --out, or give --overwrite"
        ) from None


@contextmanager
def bgzip_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """What appends to a new file, compressed with bgzip (tabix can index it). Raises `OSError`.

    Not by htslib's own writer, which ends the process where a file cannot be opened, and whose errors have no number.
    """
    waiting = bytearray()
    with path.open("wb") as file:

        def append(text: bytes) -> None:
            waiting.extend(text)
            whole = len(waiting) - len(waiting) % _BLOCK
            for first in range(0, whole, _BLOCK):
                file.write(_bgzip_block(bytes(waiting[first : first + _BLOCK])))
            del waiting[:whole]

        yield append
        if waiting:
            file.write(_bgzip_block(bytes(waiting)))
        file.write(BGZIP_END)


def _bgzip_block(text: bytes) -> bytes:
    for level in (BGZIP_LEVEL, 0):  # stored as it is where it cannot be compressed
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        packed = packer.compress(text) + packer.flush()
        size = _BLOCK_HEADER.size + len(packed) + 8
        if size <= 1 << 16:
            break
    head = _BLOCK_HEADER.pack(0x1F, 0x8B, 8, 4, 0, 0, 0xFF, 6, ord("B"), ord("C"), 2, size - 1)
    return head + packed + struct.pack("<II", zlib.crc32(text), len(text))


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


def write_table(
    table: "polars.DataFrame", path: Path, overwrite: bool = False, provenance: Mapping[str, Any] | None = None
) -> None:
    """A polars table as Parquet, TSV or CSV, by the suffix of `path`; whole or not at all, see `whole_file`.

    Parquet keeps the `provenance` as JSON under the key `dnamamba` of its metadata; that of text is a file of its own.
    """
    suffix = table_format(path)
    if suffix != ".parquet":
        with text_table(path, overwrite, provenance) as partial:
            table.write_csv(partial, separator="\t" if suffix == ".tsv" else ",")
        return
    with whole_file(path, overwrite) as partial:
        table.write_parquet(partial, metadata={"dnamamba": json.dumps(provenance)} if provenance else None)


@contextmanager
def text_table(path: Path, overwrite: bool = False, provenance: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """`whole_file` of a table as text, and of its `provenance` if it has one."""
    paths = [path] if provenance is None else table_files(path)
    with whole_files(paths, overwrite) as (partial, *card):
        for file in card:
            write_provenance(file, provenance)
        yield partial


def provenance_file(out: Path) -> Path:
    """Where the provenance of outputs stands that have no place for it: their name and .json. Not lines in the table
    itself: most readers would take them for rows."""
    return out.with_name(f"{out.name}.json")


def table_files(path: Path) -> list[Path]:
    """A table, and where its provenance stands if it is not in it."""
    return [path] if table_format(path) == ".parquet" else [path, provenance_file(path)]


def write_provenance(path: Path, provenance: Mapping[str, Any] | None) -> None:
    path.write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def write_arrays(arrays: Mapping[str, Any], path: Path, overwrite: bool = False) -> None:
    """numpy arrays as a compressed npz; whole or not at all, see `whole_file`."""
    import numpy as np

    with whole_file(path, overwrite) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
