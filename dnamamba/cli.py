"""How every entry point ends: bad input becomes one line on stderr and exit code 2, a signal puts things away first.

An entry point is a `main(arguments: list[str] | None = None) -> None`, and `run` calls it. Everything below raises
`InputError` for what the user can fix; nothing but `run` turns it into an exit code. Errors of our own keep their
traceback. The flags are `dnamamba.settings.parser`'s, the verbs `dnamamba.verbs`'.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dnamamba.errors import InputError, one_line

USER_ERROR = 2
"""Exit code for what the user can fix; that of argparse too."""
INTERRUPTED = 130
"""Exit code after ctrl-C: 128 + SIGINT, as shells report it."""
BROKEN_PIPE = 141
"""Exit code when the reader of our output has gone (`| head`): 128 + SIGPIPE."""


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Runs an entry point and returns its exit code: 0, 2 with one line on stderr for bad input, 130 after ctrl-C, 143
    after SIGTERM.

    `arguments` are those behind the program's name; None takes them from `sys.argv`, as argparse does. `OSError`s that
    carry an errno (a missing file, a full disk, no permission) are the user's to fix and treated as bad input; any
    other exception is a fault of ours and passes with its traceback.
    """
    # torch's OpenMP threads spin while they wait, which on a machine with other work to do takes the time from the
    # very thread they wait for: two cores with one busy process trained 4 times slower (LOG.md). Read at its import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed_streams()
    try:
        with _end_on_signals():
            main(arguments)
            sys.stdout.flush()
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        # Nothing to report, and nobody to report it to; without this Python would complain while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno is None:
            raise
        where = " -> ".join(
            os.fsdecode(name) if isinstance(name, bytes) else str(name)
            for name in (error.filename, error.filename2)
            if name is not None
        )
        return _refuse(f"{where}: {error.strerror}" if where else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Ended as ended:
        print(f"ended by {ended.signal.name}", file=sys.stderr)
        return 128 + ended.signal
    return 0


class Ended(BaseException):
    """Raised by a signal that ends the program, so that what it has begun is put away as after ctrl-C."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """SIGTERM (a cluster's time limit, kill) and SIGHUP (the terminal has gone) raise `Ended`, where nobody else has
    a use for them; their default ends the process on the spot and leaves its temporary files."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second one does not wait
        if os.getpid() != process:  # a forked worker, which inherits the handler
            os.kill(os.getpid(), number)
        else:
            raise Ended(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_closed_streams() -> None:
    """Leads standard streams that are closed (`>&-`, some daemons) to /dev/null: an output file that got their
    descriptor would take what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _refuse(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USER_ERROR
