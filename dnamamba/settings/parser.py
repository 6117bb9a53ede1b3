"""The command line and the YAML file of a dataclass of settings, both by its fields (`dnamamba.settings.fields`).

A field's type says how it is given: `list[X]` takes one value or many behind the flag, and from YAML a value or a list
(contigs may be called 19); a `bool` that is False by default stands alone as a flag; a group's fields are `--GROUP.X`.

Bad input is an `InputError` of one line that names the flag, or the file and the key, with close matches for a misspelt
one. Flags win over `--config FILE` wherever they stand on the line. `--len` is no abbreviation of `--length`: a script
keeps its meaning when a flag is added.
"""

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from dnamamba.errors import InputError, quoted
from dnamamba.settings.fields import Named, flat, named_fields
from dnamamba.settings.yaml_files import read_yaml

T = TypeVar("T")

_BOOLS = {"true": True, "yes": True, "false": False, "no": False}


class Parser(argparse.ArgumentParser, Generic[T]):
    """A flag for every field of the dataclass `settings`: its docstring is the help. `prog` is what the user typed."""

    def __init__(self, prog: str, settings: type[T]) -> None:
        self.settings, self.names = settings, named_fields(settings)
        values = "".join(f" {name.upper()}" for name, known in self.names.items() if known.positional)
        super().__init__(
            prog=prog,
            description=settings.__doc__,
            usage=f"%(prog)s{values} [--flag VALUE ...]",
            allow_abbrev=False,
            exit_on_error=False,  # an `argparse.ArgumentError` knows its flag; a printed text does not
            argument_default=argparse.SUPPRESS,
        )
        self.add_argument("--config", action="append", help="YAML file with any of these flags; flags win over it.")
        for name, known in self.names.items():
            self._add(name, known)

    def _add(self, name: str, known: Named) -> None:
        shown = "" if known.default in (None, MISSING) or is_switch(known) else f" ({known.default})"
        options: dict[str, Any] = {"help": (known.help + shown).replace("%", "%%"), "metavar": _metavar(name, known)}
        if known.positional:
            several: dict[str, Any] = (
                {"nargs": "*"} if _item(known.hint) is not None else {}
            )  # none: the job says what it wants
            self.add_argument(name, **several, **options)
        elif _item(known.hint) is not None:
            self.add_argument(f"--{name}", nargs="+", **options)
        elif is_switch(known):
            self.add_argument(f"--{name}", nargs="?", **options)
        else:
            self.add_argument(f"--{name}", **options)

    def parse(self, arguments: Sequence[str] | None = None, stored: tuple[Path, Mapping[str, Any]] | None = None) -> T:
        """The settings that `arguments` (None: `sys.argv[1:]`) give; `stored`, a file and what it says, lies below
        them and below `--config`. Raises `InputError`."""
        try:
            namespace, unknown = self.parse_known_args(
                self._with_values(sys.argv[1:] if arguments is None else arguments)
            )
        except argparse.ArgumentError as error:
            where = f"{error.argument_name}: " if error.argument_name else ""
            raise InputError(f"{where}{error.message}") from None
        if unknown:
            self._refuse_unknown(unknown[0])
        given = vars(namespace)
        files = [(path, _read(path)) for path in map(Path, given.pop("config", ()))]
        # A list that has to be given is empty without its flag: the job says best which files it wants.
        needed = {name: known for name, known in self.names.items() if known.default is MISSING}
        values: dict[str, Any] = {name: [] for name, known in needed.items() if _item(known.hint) is not None}
        sources: dict[str, Path] = {}
        for path, mapping in [stored, *files] if stored else files:
            for name, value in flat(mapping, self.names).items():
                if name not in self.names:
                    self._refuse_key(path, name, value)
                values[name], sources[name] = _converted(f"{path}: {name}", self.names[name].hint, value), path
        for name, value in given.items():
            values[name] = _converted(f"--{name}", self.names[name].hint, value)
            sources.pop(name, None)
        if missing := [f"--{name}" for name in needed if name not in values]:
            raise InputError(f"the following flags are required: {', '.join(missing)}")
        try:
            return _made(self.settings, values, "")
        except InputError as error:  # a value out of its bounds, of which the settings know the flag alone
            if (source := sources.get(str(error).partition(":")[0].removeprefix("--"))) is None:
                raise
            raise InputError(f"{source}: {error}") from None

    def _with_values(self, arguments: Sequence[str]) -> list[str]:
        """Each switch as `--FLAG=VALUE`: true where none follows, so that it takes no other word for its value."""
        switches = {f"--{name}" for name, known in self.names.items() if is_switch(known)}
        found: list[str] = []
        for token in arguments:
            if found and found[-1] in switches:
                value = token.lower() if token.lower() in _BOOLS else "true"
                found[-1] += f"={value}"
                if token.lower() in _BOOLS:
                    continue
            found.append(token)
        if found and found[-1] in switches:
            found[-1] += "=true"
        return found

    def error(self, message: str) -> NoReturn:
        """What argparse says of no flag."""
        raise InputError(message)

    def _refuse_unknown(self, token: str) -> NoReturn:
        if not token.startswith("-"):
            raise InputError(f"unexpected argument {token!r}: every value stands behind its flag (see --help)")
        flag = token.split("=")[0]
        close = _did_you_mean(flag, [f"--{name}" for name in (*self.names, "config", "help")])
        raise InputError(f"unknown flag {flag}{close} (see --help)")

    def _refuse_key(self, path: Path, key: str, value: Any) -> NoReturn:
        if any(name.startswith(f"{key}.") for name in self.names):
            raise InputError(f"{path}: {key}: expected a mapping of its settings, got {quoted(value)}")
        raise InputError(f"{path}: unknown key {quoted(key)}{_did_you_mean(key, self.names)} (see --help)")


def is_switch(known: Named) -> bool:
    """Whether a flag may stand without a value."""
    return known.hint is bool and known.default is False


def _metavar(name: str, known: Named) -> str:
    """The choices where there are only so many, else the field's name."""
    choices: list[str] = []
    for kind in kinds(known.hint):
        if get_origin(kind) is not Literal and kind not in (bool, NoneType):
            return name.rpartition(".")[2].upper()
        choices += ["true", "false"] if kind is bool else map(str, get_args(kind))
    return "|".join(choices)


def kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; a type that is none is its own."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _item(hint: Any) -> Any:
    """X of `list[X]` and `list[X] | None`, None of others."""
    return next((get_args(kind)[0] for kind in kinds(hint) if get_origin(kind) is list), None)


def _read(path: Path) -> Mapping[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a YAML mapping of flags to values: {quoted(content)}")
    return content


def _converted(where: str, hint: Any, value: Any) -> Any:
    """A value of the command line (a text, True, or a list of texts) or of YAML as its field wants it."""
    if (item := _item(hint)) is not None and value is not None:
        items = value if isinstance(value, list) else [value]
        if any(isinstance(each, dict | list) for each in items):
            raise InputError(f"{where}: expected a value or a list of values, got {quoted(value)}")
        return [_converted(where, item, each) for each in items]
    for kind in kinds(hint):
        try:
            return _as(kind, value)
        except ValueError:
            continue
    expected = " or ".join(map(_expected, kinds(hint)))
    raise InputError(f"{where}: expected {expected}, got {quoted(value)}")


def _as(kind: Any, value: Any) -> Any:
    """`value` as a `kind`; `ValueError` where it is none. YAML takes 1e-3 for a text, 19 for a number."""
    if kind is NoneType and value in (None, "null"):
        return None
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is bool and (isinstance(value, bool) or str(value).lower() in _BOOLS):
        return value if isinstance(value, bool) else _BOOLS[value.lower()]
    if kind in (int, float) and isinstance(value, str) and not value.isascii():
        raise ValueError  # digits of other scripts, which Python would read
    if kind is int and isinstance(value, int | str) and not isinstance(value, bool):
        if not -(1 << 63) <= (number := int(value)) < 1 << 63:  # no tensor has more
            raise ValueError
        return number
    if kind is Path and "\0" in str(value):
        raise ValueError  # no file has such a name
    if kind in (float, str, Path) and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value) if kind is float else kind(str(value))
    raise ValueError


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    return {NoneType: "null", Path: "a path", str: "a text", bool: "true or false"}.get(kind, kind.__name__)


def _made(settings: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """The dataclass with the values by dotted names, the others by default."""
    hints = get_type_hints(settings)
    chosen = {}
    for each in fields(settings):  # type: ignore[arg-type]
        name = f"{prefix}{each.name}"
        if is_dataclass(hints[each.name]):
            chosen[each.name] = _made(hints[each.name], values, f"{name}.")  # type: ignore[arg-type]
        elif name in values:
            chosen[each.name] = values[name]
    return settings(**chosen)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=2, cutoff=0.7)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
