"""One process at a time writes a run folder.

The first of a run's processes holds a lock on RUN/.lock, which the system lets go when it dies, however it dies. Lustre
and NFS may be set up so that a lock is seen by the processes of one host alone, or by none. So the file also says who
holds it, and its holder touches it every `BEAT` seconds: where the lock cannot decide, a record that is not touched for
`SILENCE` seconds is of a process that is dead.
"""

import errno
import fcntl
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from dnamamba.errors import InputError

LOCK = ".lock"
BEAT, SILENCE = 10.0, 60.0
_HELD_BY_OTHER = {errno.EWOULDBLOCK, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class RunLock:
    """Of the run folder `folder`; a context that lets go of it, whether it has been taken or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._over = threading.Event()

    def take(self) -> None:
        """Raises `InputError` naming process and host of who else writes the run. May wait `SILENCE` seconds for a sign
        of life from another host."""
        while self._file is None:
            file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._claim(file)
            finally:
                if self._file is None:
                    os.close(file)
        threading.Thread(target=self._beat, args=(self._file,), daemon=True).start()

    def _claim(self, file: int) -> None:
        """Makes the open file the one that is held, unless its holder has removed it meanwhile."""
        works = self._lock(file)
        if not self._is_there(file):
            return
        holder = _record(file)
        elsewhere = not works or holder.get("host") != platform.node()
        if holder and elsewhere and not self._falls_silent(file, holder):
            self._refuse(holder)
        own = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(own).encode(), 0)
        if not works:  # of two that begin at once, the one that has written last
            time.sleep(min(1.0, BEAT))
            if _record(file) != own:
                self._refuse(_record(file))
        self._file = file
        _held.add(self)

    def _lock(self, file: int) -> bool:
        """Whether there are locks here; raises `InputError` where another process has this one."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_OTHER:
                self._refuse(_record(file))
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.folder / LOCK), os.fstat(file))
        except FileNotFoundError:
            return False

    def _falls_silent(self, file: int, holder: dict[str, Any]) -> bool:
        """Waits for a sign of life from the holder of the record, who may live on another host; False if there is
        one."""
        last = os.fstat(file).st_mtime
        with tempfile.NamedTemporaryFile(dir=self.folder) as now:  # by the clock of who keeps the files
            silent = min(max(os.fstat(now.fileno()).st_mtime - last, 0.0), SILENCE)
        deadline = time.monotonic() + SILENCE - silent
        if silent < SILENCE:
            print(
                f"{self.folder}: waiting to see whether {_described(holder)} is still alive",
                file=sys.stderr,
                flush=True,
            )
        while time.monotonic() < deadline:
            time.sleep(BEAT / 10)
            again = os.open(self.folder / LOCK, os.O_RDONLY)  # NFS asks its server when a file is opened
            beaten = os.fstat(again).st_mtime != last
            os.close(again)
            if beaten:
                return False
        return True

    def _refuse(self, holder: dict[str, Any]) -> NoReturn:
        raise InputError(
            f"{self.folder}: {_described(holder)} is writing this run; wait for it, or end it first"
        ) from None

    def _beat(self, file: int) -> None:
        while not self._over.wait(BEAT):
            try:
                os.utime(file)
            except OSError:
                return  # released meanwhile, or the file system has gone; the run itself will fail on it

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Does nothing where it has not been taken."""
        if self._file is not None:
            self._over.set()
            if self._is_there(self._file):
                (self.folder / LOCK).unlink()  # while it is held: who waits for it sees that it has gone
            os.close(self._file)
            self._file = None
            _held.discard(self)


def _record(file: int) -> dict[str, Any]:
    """Who holds the lock; nothing where that is not said (yet)."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    process, host, since = (str(holder.get(key))[:100] for key in ("process", "host", "since"))
    return f"process {process} on {host} (since {since})"


_held: set[RunLock] = set()


def _let_go_in_child() -> None:
    """A forked process, such as a data loader's worker, would keep the lock of a parent that is killed."""
    for lock in _held:
        if lock._file is not None:
            os.close(lock._file)
            lock._file = None
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
