"""Damaged files, each given to its reader: what came of it, and whether that is right.

A reader is right when it gives what the undamaged file holds, or refuses the file in one line that names it, or gives
what an oracle finds in the damaged file: a parser of a few lines, written from the format's specification alone.
"""

import contextlib
import faulthandler
import io
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from mutations import mutate

from dnamamba import errors
from dnamamba.errors import LONGEST_MESSAGE, InputError, one_line

OUTCOMES = ("equal", "refused", "agrees", "silent", "message", "traceback", "hang")
"""equal: read as the undamaged file. refused: an `InputError`. agrees: read as the oracle reads it. The others are
faults; silent: read as something else. message: refused, in words that are none for a terminal or name no file."""
FAULTS = OUTCOMES[3:]
TIME_LIMIT = 10.0
"""Seconds of a case, which takes milliseconds"""


class Damaged(Exception):
    """Raised by an oracle: by its specification there is nothing to read."""


Files = dict[str, bytes]


class Reader(NamedTuple):
    """What is tested."""

    seeds: Callable[[], list[Files]]
    """Small files, undamaged, by their names; a case has one of these folders, and damages one of its files"""
    read: Callable[[Path], Any]
    """What the package reads in a folder, as plain values that can be compared"""
    oracle: Callable[[Path], Any]
    """The same by the specification; raises `Damaged`"""
    mutate: Callable[[bytes, Random], bytes] = mutate


class Case(NamedTuple):
    """A damaged folder."""

    reader: str
    number: int
    seed: int
    """Index of the undamaged folder"""
    files: Files


class Result(NamedTuple):
    outcome: str
    detail: str


class _TimeIsUp(BaseException):
    """No `Exception`: readers may catch those."""


def make_case(name: str, reader: Reader, number: int) -> Case:
    """Case `number` of a reader, the same on every machine."""
    random = Random(f"{name} {number}")
    seeds = reader.seeds()
    seed = random.randrange(len(seeds))
    files = dict(seeds[seed])
    damaged = random.choice(sorted(files))
    files[damaged] = reader.mutate(files[damaged], random)
    return Case(name, number, seed, files)


def write_files(files: Files, folder: Path) -> None:
    """The folder, with these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def check(reader: Reader, case: Case, folder: Path) -> Result:
    """What the reader makes of a case, written to `folder`."""
    expected = _undamaged(reader, case.seed, folder)
    write_files(case.files, folder)
    errors._warned.clear()
    try:
        with _quiet(), _limited(TIME_LIMIT):
            found = reader.read(folder)
    except InputError as error:
        return _refused(str(error), folder)
    except _TimeIsUp:
        return Result("hang", f"not done after {TIME_LIMIT:g} s")
    except BaseException as error:  # Rust's panics are no `Exception`
        if isinstance(error, KeyboardInterrupt):
            raise
        return Result("traceback", traceback.format_exc())
    if found == expected:
        return Result("equal", "")
    try:
        true = reader.oracle(folder)
    except Damaged as damage:
        return Result("silent", f"read as {found!r}\nthe oracle: {damage}")
    return Result("agrees", "") if found == true else Result("silent", f"read as {found!r}\nthe oracle: {true!r}")


@cache
def _undamaged(reader: Reader, seed: int, folder: Path) -> Any:
    """What a reader makes of a folder of its seeds, for which its oracle agrees."""
    write_files(reader.seeds()[seed], folder)
    with _quiet():
        found = reader.read(folder)
    with contextlib.suppress(Damaged):  # of an oracle to which nothing but the undamaged file is right
        assert found == reader.oracle(folder), f"{found!r} and {reader.oracle(folder)!r}"
    return found


def _refused(message: str, folder: Path) -> Result:
    """`message` as the command line prints it."""
    shown = one_line(message)
    is_line = shown.isprintable() and len(shown) <= LONGEST_MESSAGE
    return Result("refused" if is_line and str(folder) in shown else "message", shown)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `_TimeIsUp` where the block takes longer. Code that never returns to Python ends the process."""

    def end(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # pytest's own limit, perhaps
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left)
