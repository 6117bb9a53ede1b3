"""YAML files that people write (`--config`, `--mixture`) and that a run keeps (config.yaml): one reader for all.

Mappings, lists and plain values, nothing that could run code or grow: texts, true and false, null, and numbers that
are written as YAML writes them. What else looks like a number (1.10, 010, 1:30, 1e-3) or a date is the text that stands
there: a setting that wants a number takes it for one, and a contig keeps its name. Keys are texts, too, and stand in a
mapping once. Merges (`<<`) and aliases work within the limits below.
"""

import re
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from dnamamba.errors import InputError

LONGEST = 1 << 20
"""Bytes of a file"""
DEEPEST = 32
"""Mappings and lists within each other"""
MOST_NODES = 50_000
"""Values of a file, those behind an alias counted wherever it stands"""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_PLAIN = {
    "bool": (r"(?i:yes|no|true|false|on|off)", "yYnNtTfFoO"),
    "int": (r"0|-?[1-9][0-9]{0,17}", "-0123456789"),
    "float": (r"-?[0-9]+\.[0-9]+(?:e[-+][0-9]+)?|-?\.inf|\.nan", "-0123456789."),
    "merge": ("<<", "<"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}
"""Kind of value → how it is written, and the letters that it begins with"""


def read_yaml(path: Path) -> Any:
    """What stands in a YAML file; None in an empty one. Raises `InputError` with file and line for what is no such
    YAML."""
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > LONGEST:
        raise InputError(f"{path}: longer than {LONGEST >> 20} MiB, which no file of settings is; expected YAML")
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_loader())
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8; expected YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML: {_short(error.problem or error.context)}") from None
    except yaml.YAMLError as error:  # of characters that YAML has none of
        raise InputError(f"{path}: not YAML: {_short(error)}") from None


def _short(text: object) -> str:
    shown = " ".join(str(text).split())
    return shown if len(shown) <= 120 else f"{shown[:120]} …"


def _loader() -> type:
    import yaml  # only here: most commands read none

    class Loader(yaml.SafeLoader):
        """Counts and refuses while the nodes are made, before any value is."""

        yaml_implicit_resolvers: ClassVar[dict] = {}

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.depth = self.nodes = 0
            self.sizes: dict[int, int] = {}
            """Node → the nodes within it, itself counted, once all of it is there"""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            before = self.nodes
            self.nodes += 1
            self.depth += 1
            if self.depth > DEEPEST:
                refuse(event, f"more than {DEEPEST} mappings and lists within each other")
            node = super().compose_node(parent, index)
            self.depth -= 1
            if not isinstance(event, yaml.AliasEvent):
                check(event, node)
                self.sizes[id(node)] = self.nodes - before
            elif id(node) in self.sizes:
                self.nodes += self.sizes[id(node)]
            else:
                refuse(event, f"*{event.anchor[:40]} stands within what it stands for")
            if self.nodes > MOST_NODES:
                refuse(event, f"more than {MOST_NODES:,} values")
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            """The keys as texts."""
            return {key: self.construct_object(value, deep=True) for key, value in pairs(node).items()}

    def pairs(node: Any) -> dict[str, Any]:
        """What stands in a mapping wins over what is merged into it, and the first of several merged ones over the
        others; which PyYAML 6.0.4 decides by whether two texts are one object."""
        found = {key.value: value for key, value in node.value if key.tag != _MERGE}
        for key, value in node.value:
            for merged in () if key.tag != _MERGE else value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(merged, yaml.MappingNode):
                    refuse(merged, "only mappings can be merged by <<")
                found = pairs(merged) | found
        return found

    def check(event: Any, node: Any) -> None:
        if event.tag not in (None, "!", _TEXT):
            tag = event.tag.removeprefix("tag:yaml.org,2002:")
            refuse(event, f"the tag {tag[:40]!r}; expected a plain value, or a text in quotes")
        is_decimal = node.tag == "tag:yaml.org,2002:float" and node.value[-1].isdecimal()  # not .inf
        if is_decimal and written.represent_float(float(node.value)).value != node.value:
            node.tag = _TEXT
        if not isinstance(node, yaml.MappingNode):
            return
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                refuse(key, "a key that is a list or a mapping")
            if key.value in keys:
                refuse(key, f"{key.value[:40]!r} stands there twice")
            keys.add(key.value)

    def refuse(there: Any, problem: str) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=there.start_mark)

    written = yaml.representer.SafeRepresenter()
    for kind, (pattern, first) in _PLAIN.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})\\Z"), list(first))
    return Loader
