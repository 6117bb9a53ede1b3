"""A setting is a field of a dataclass: its docstring is the flag's help, and `setting` says its bounds and what a
resumed run may do with it. Torch-free.

    length: int | None = setting(None, at_least=128)
    \"\"\"Context: bases a window.\"\"\"

Nested dataclasses are groups: the field `preset` of the field `model` is called `model.preset`.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from dnamamba.errors import InputError

OnResume = Literal["same", "free", "files"]
"""What becomes of a setting when a run is resumed. same: it must not change. free: it may. files: it names files, which
may have moved; whether they are the same is decided by the fingerprints of what is in them."""


def setting(
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    between: tuple[float, float] | None = None,
    inside: tuple[float, float] | None = None,
    on_resume: OnResume | tuple[str, ...] = "same",
    absent: Any = MISSING,
    positional: bool = False,
) -> Any:
    """A dataclass's field with what the command line has to know of it.

    Args:
        default, factory: as of `dataclasses.field`.
        at_least, at_most, above, between, inside: bounds of the number, or of each number of a list; the ends belong to
            `between` and not to `inside`. None is within all bounds.
        on_resume: see `OnResume`; for a group the names of its fields that are free.
        absent: the value of a run whose config.yaml does not name this setting, because it is older than the setting
            (or because the default is the same, and then config.yaml leaves it out: older versions resume the run);
            without it that is the default.
        positional: the value stands alone on the command line, without a flag.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "between": between, "inside": inside}
    metadata = {**bounds, "on_resume": on_resume, "absent": absent, "positional": positional}
    return field(default=default, default_factory=factory, metadata=metadata)


@dataclass(kw_only=True)
class Settings:
    """What a verb takes. Making one checks the bounds of its fields: `InputError` names the flag."""

    def __post_init__(self) -> None:
        for each in fields(self):
            refuse_out_of_bounds(each.name, getattr(self, each.name), each.metadata)


def refuse_out_of_bounds(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Raises `InputError` naming the flag `name`; NaN is within no bounds."""
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float):
            continue
        least, most, above = (bounds.get(key) for key in ("at_least", "at_most", "above"))
        if least is not None and not number >= least:
            raise InputError(f"--{name}: {number} is below {least}")
        if most is not None and not number <= most:
            raise InputError(f"--{name}: {number} is above {most}")
        if above is not None and not number > above:
            raise InputError(f"--{name}: {number} is not above {above}")
        if (ends := bounds.get("between")) and not ends[0] <= number <= ends[1]:
            raise InputError(f"--{name}: {number} is not between {ends[0]} and {ends[1]}")
        if (ends := bounds.get("inside")) and not ends[0] < number < ends[1]:
            raise InputError(f"--{name}: {number} is not between {ends[0]} and {ends[1]}")


class Named(NamedTuple):
    """A field as the command line sees it."""

    hint: Any
    """Its type"""
    default: Any
    """`dataclasses.MISSING` where there is none"""
    absent: Any
    """Its value in runs that are older than it"""
    on_resume: OnResume
    positional: bool
    help: str


def named_fields(settings: type) -> dict[str, Named]:
    """The fields of a dataclass by their names, those of its groups by dotted names, in order."""
    hints, texts = get_type_hints(settings), attribute_docstrings(settings)
    found: dict[str, Named] = {}
    for each in fields(settings):
        known = each.metadata
        if is_dataclass(hints[each.name]):
            free = known.get("on_resume", "same")
            for name, inner in named_fields(hints[each.name]).items():
                rule: OnResume = "free" if isinstance(free, tuple) and name in free else inner.on_resume
                found[f"{each.name}.{name}"] = inner._replace(on_resume=rule)
            continue
        default, absent = _default(each), known.get("absent", MISSING)
        found[each.name] = Named(
            hints[each.name],
            default,
            default if absent is MISSING else absent,
            known.get("on_resume", "same"),
            known.get("positional", False),
            known.get("help", texts.get(each.name, "")),  # metadata: of fields that are made, not written
        )
    return found


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def attribute_docstrings(settings: type) -> dict[str, str]:
    """Field name → the string below it in the class body, on one line; a class's own wins over those of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError):  # a class that was made, not written
            continue
        assert isinstance(body, ast.ClassDef)
        for assigned, text in itertools.pairwise(body.body):
            if (
                isinstance(assigned, ast.AnnAssign)
                and isinstance(assigned.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[assigned.target.id] = " ".join(text.value.value.split())
    return found


def as_plain(settings: Any) -> dict[str, Any]:
    """The settings, an instance, as YAML and JSON can hold them; groups are mappings. What config.yaml may leave out
    (`absent` of `setting`) is left out."""
    found: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        left_out = each.metadata.get("absent", MISSING)
        if left_out is MISSING or not value == left_out == _default(each):
            found[each.name] = as_plain(value) if is_dataclass(value) else plain(value)
    return found


def plain(value: Any) -> Any:
    """Mappings, lists, numbers and texts; paths are texts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flat(mapping: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A mapping whose groups are mappings, by the dotted names of `named_fields`; what is in no group of `names` stays
    as it is."""
    groups = {name.rpartition(".")[0] for name in names}
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if key in groups and isinstance(value, Mapping):
            inner = [name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}.")]
            found |= {f"{key}.{name}": item for name, item in flat(value, inner).items()}
        else:
            found[str(key)] = value
    return found
