"""What every entry point's command line shares: bad input becomes one line on stderr and exit code 2.

An entry point is a module with `main(arguments: list[str] | None = None) -> None`; it parses with `Parser` and ends in

    if __name__ == "__main__":
        sys.exit(cli.run(main))

so that `python -m dnamamba.VERB` and `dnamamba VERB` (`dnamamba/__main__.py` calls the same `run`) end alike.
Everything below `main` raises `InputError` for what the user can mend; nothing but `run` turns it into an exit code.
Errors of our own keep their traceback.

`Parser` is jsonargparse's parser with four traps closed:
- errors are one line that names the flag (close matches for a misspelt one, the file for a key of a YAML file);
- flags win over `--config FILE` wherever they stand on the line (jsonargparse lets the later one win);
- `--len` is no abbreviation of `--length`: a script keeps its meaning when a flag is added;
- a flag with `nargs="+"` takes from YAML a single value (`genome: hg38.fa`) and numbers (`contigs: [19, 20]`) too.
"""

import argparse
import ast
import difflib
import inspect
import itertools
import os
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import jsonargparse

from dnamamba.errors import InputError

Settings = TypeVar("Settings")
"""A dataclass of settings."""

USER_ERROR = 2
"""Exit code for what the user can mend; argparse's own."""
INTERRUPTED = 130
"""Exit code after ctrl-C: 128 + SIGINT, as shells report it."""
BROKEN_PIPE = 141
"""Exit code when the reader of our output has gone (`| head`): 128 + SIGPIPE."""


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Runs an entry point and returns its exit code: 0, 2 with one line on stderr for bad input, 130 after ctrl-C, 143
    after SIGTERM.

    `arguments` are those behind the program's name; None takes them from `sys.argv`, as argparse does. `OSError`s that
    carry an errno (a missing file, a full disk, no permission) are the user's to mend and treated as bad input; any
    other exception is a fault of ours and passes with its traceback.
    """
    # torch's OpenMP threads spin while they wait, which on a machine with other work to do takes the time from the
    # very thread they wait for: two cores with one busy process trained 4 times slower (LOG.md). Read at its import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _end_on_signals():
            main(arguments)
            sys.stdout.flush()
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        # Nothing to tell, and nobody to tell it to; without this Python would complain while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno is None:
            raise
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return _refuse(f"{where}: {error.strerror}" if where else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except _Ended as ended:
        print(f"ended by {ended.signal.name}", file=sys.stderr)
        return 128 + ended.signal
    return 0


class _Ended(BaseException):
    """Raised by a signal that ends the program, so that what it has begun is put away as after ctrl-C."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """SIGTERM (a cluster's time limit, kill) and SIGHUP (the terminal has gone) raise `_Ended`, where nobody else has
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
            raise _Ended(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # `nohup` ignores SIGHUP
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser, see the module's docstring; raises `InputError` where argparse would print and exit.

    Add `--config` with `parser.add_argument("--config", action="config")`. `prog` is what the user typed, for example
    `"dnamamba pretrain"`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        defaults = {"allow_abbrev": False, "formatter_class": _Help, "usage": "%(prog)s [--flag VALUE ...]"}
        self._lists: dict[str, Callable[[str], Any]] = {}
        super().__init__(*args, **{**defaults, **kwargs})
        self._config_files: list[str] = []
        self._flags: list[str] = []

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's. The `type` of a flag with `nargs="+"` is called with the text of each value."""
        # jsonargparse checks such values itself: it fails on a single one in YAML and on a contig named 20.
        kind = options.pop("type", str) if options.get("nargs") == "+" else None
        action = super().add_argument(*names, **options)
        if kind is not None:
            self._lists[action.dest] = kind
        return action

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> jsonargparse.Namespace:  # type: ignore[override]
        """Parses `args` (None: `sys.argv[1:]`) with `--config` moved to the front, so that flags win over it."""
        self._config_files, self._flags = _split_config(list(sys.argv[1:] if args is None else args))
        try:
            namespace = super().parse_args(
                [f"--config={file}" for file in self._config_files] + self._flags, *rest, **kwargs
            )
        except UnicodeDecodeError:
            self.error(f"{', '.join(self._config_files)}: not a text file; --config takes YAML")
        for name, kind in self._lists.items():
            if (value := namespace.get(name)) is not None:
                namespace[name] = [
                    kind(self._scalar(name, item)) for item in (value if isinstance(value, list) else [value])
                ]
        return namespace

    def _scalar(self, name: str, item: Any) -> str:
        if not isinstance(item, str | int | float | Path) or isinstance(item, bool):
            self.error(f'Parser key "{name}": expected a value or a list of values, got {item!r}')
        return str(item)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `InputError` with jsonargparse's message as one line in the user's terms."""
        raise InputError(self._in_one_line(message)) from ex

    def _in_one_line(self, message: str) -> str:
        configs = ", ".join(self._config_files)
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]

        if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            first = found[1].split()[0]
            if not first.startswith("-"):
                return f"unexpected argument {first!r}: every value stands behind its flag (see --help)"
            name = first.split("=")[0]
            return f"unknown flag {name}{_did_you_mean(name, known)} (see --help)"

        if found := re.search(r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<key>[^']+)'", message):
            key = f"{found['group']}.{found['key']}" if found["group"] else found["key"]
            suggestion = _did_you_mean(key, [name.removeprefix("--") for name in known])
            return f"{configs}: unknown key {key!r}{suggestion} (see --help)"

        if found := re.match(r"Parser key \"(?P<key>[^\"]+)\"(?: element \d+)?:\s*(?P<reason>.*)", message, re.DOTALL):
            name = f"--{found['key']}"
            from_flag = any(token == name or token.startswith(f"{name}=") for token in [*self._flags, "--config"])
            where = name if from_flag or not configs else f"{configs}: {found['key']}"
            return f"{where}: {_reason(found['reason'])}"

        if found := re.match(r"argument (--\S+): (.*)", message, re.DOTALL):
            return f"{found[1]}: {_spaces(found[2])}"

        if configs and re.match(r"Problems parsing config|Unexpected config", message):
            return f"{configs}: not a YAML mapping of flags to values: {_spaces(message.partition(':')[2])}"
        return _spaces(message)


def settings_parser(
    prog: str, settings: type, *, lists: Mapping[str, Callable[[str], Any]], switches: Sequence[str] = ()
) -> Parser:
    """A parser with a flag for every field of the dataclass `settings`: its docstring the help, its value the default.

    Args:
        prog: what the user typed, for example `"python -m dnamamba.pretrain"`.
        lists: flags that take one value or many behind them, and the type of each value; jsonargparse alone would want
            a YAML list.
        switches: flags that stand alone.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=prog, description=settings.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of these flags; flags win over it.")
    documented = attribute_docstrings(settings)
    for name, kind in lists.items():
        parser.add_argument(f"--{name}", nargs="+", type=kind, help=documented[name])
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=documented[name])
    parser.add_class_arguments(settings, as_group=False, skip={*lists, *switches})
    return parser


def settings_of(parsed: jsonargparse.Namespace, settings: type[Settings]) -> Settings:
    """The dataclass `settings` with the values that the parser of `settings_parser` found."""
    return settings(**{name: parsed.get(name) for name in settings.__dataclass_fields__})  # type: ignore[attr-defined]


class _Help(jsonargparse.DefaultHelpFormatter):
    """Each flag with its docstring and its default; without a default the docstring says what happens instead."""

    def _get_help_string(self, action: argparse.Action) -> str:
        # jsonargparse would add every flag's Python type and "default: null".
        told = action.help or ""
        return told if action.default in (None, argparse.SUPPRESS) or action.nargs == 0 else f"{told} (%(default)s)"


def _refuse(message: str) -> int:
    print(f"error: {_spaces(message)}", file=sys.stderr)
    return USER_ERROR


def _split_config(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The files given by `--config FILE` or `--config=FILE`, and the arguments without them."""
    files, others = [], []
    tokens = iter(arguments)
    for token in tokens:
        if token == "--config" and (following := next(tokens, None)) is not None:
            files.append(following)
        elif token.startswith("--config="):
            files.append(token.removeprefix("--config="))
        else:
            others.append(token)
    return files, others


def _did_you_mean(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _reason(text: str) -> str:
    """`expected int or null, got 'abc'` from jsonargparse's paragraph about one value."""
    expected = [kind.strip() for kind in re.findall(r"Expected an? (.*?)(?:\. Got value: .*)?$", text, re.MULTILINE)]
    got = re.search(r"(?:Got|Given) value: (.*)", text)
    if not expected or not got:
        return _spaces(text)
    kinds = " or ".join(dict.fromkeys(_kind(kind) for kind in expected))
    return f"expected {kinds}, got {got[1].strip()!r}"


def _kind(kind: str) -> str:
    """`int` from `<class 'int'>`, `null` from NoneType, the choices themselves from a Literal."""
    if found := re.fullmatch(r"<class '(.*)'>", kind):
        return "null" if found[1] == "NoneType" else found[1].rpartition(".")[2]
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return f"one of {found[1]}"
    return kind


def _spaces(text: str) -> str:
    return " ".join(text.split())


def attribute_docstrings(settings: type) -> dict[str, str]:
    """Field name → the string below it in the class body, on one line: the text of that flag's `--help`."""
    body = ast.parse(textwrap.dedent(inspect.getsource(settings))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: _spaces(text.value.value)
        for field, text in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
