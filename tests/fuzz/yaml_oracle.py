"""Settings in YAML, parsed by libyaml: mappings, lists, and texts, of which each setting takes what it is for."""

import re
from pathlib import Path
from typing import Any

import yaml
from harness import Damaged

MAP, SEQUENCE, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str"))
DEEPEST, MOST = 32, 50_000


class Plain(str):
    """A text without quotation marks: perhaps no text."""


def nodes(path: Path) -> Any:
    """Dictionaries, lists, `str` and `Plain`."""
    try:
        root = yaml.compose(path.read_bytes().decode("utf-8-sig"), yaml.CBaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Damaged(str(error)) from None
    return _value(root, DEEPEST)


def _value(node: Any, depth: int) -> Any:
    if node is None or not depth or node.tag not in (MAP, SEQUENCE, TEXT):
        raise Damaged("nothing, too deep, or a tag")
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else Plain(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, depth - 1) for each in node.value]
    found = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in found:
            raise Damaged("a key that is no text, or there twice")
        found[key.value] = _value(value, depth - 1)
    return found


def is_null(value: Any) -> bool:
    return isinstance(value, Plain) and value in ("", "~", "null", "Null", "NULL")


def text(value: Any) -> str:
    if not isinstance(value, str) or is_null(value):
        raise Damaged(f"no text: {value!r}")
    if isinstance(value, Plain) and value.lower() in ("yes", "no", "true", "false", "on", "off"):
        raise Damaged(f"no text: {value!r}")
    return str(value)


def integer(value: Any) -> int:
    digits = re.sub("(?<=[0-9])_(?=[0-9])", "", str(value))
    if not isinstance(value, str) or not re.fullmatch("[-+]?[0-9]+", digits):
        raise Damaged(f"no whole number: {value!r}")
    return int(digits)


def real(value: Any) -> float:
    digits = re.sub("(?<=[0-9])_(?=[0-9])", "", str(value))
    if not isinstance(value, str) or not re.fullmatch(r"[-+]?([0-9]+\.?|[0-9]*\.[0-9]+)([eE][-+]?[0-9]+)?", digits):
        raise Damaged(f"no number: {value!r}")
    return float(digits)


def truth(value: Any) -> bool:
    known = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    if not isinstance(value, str) or value.lower() not in known:
        raise Damaged(f"neither true nor false: {value!r}")
    return known[value.lower()]


def texts(value: Any) -> list[str] | None:
    return None if is_null(value) else [text(each) for each in (value if isinstance(value, list) else [value])]


def config(path: Path) -> dict[str, Any]:
    """The fields of `readers.Config` that a file names."""
    said = nodes(path)
    kinds = {"label": text, "length": integer, "rate": real, "mask": truth, "contigs": texts, "out": text}
    if not isinstance(said, dict) or not said.keys() <= kinds.keys():
        raise Damaged("unknown keys")
    found = {key: kinds[key](value) for key, value in said.items()}
    if found.get("length", 1) < 1 or not 0 <= found.get("rate", 0) <= 1:
        raise Damaged("out of bounds")
    if "out" in found:
        found["out"] = str(Path(found["out"]))
    return found


def mixture(path: Path) -> list[tuple[Any, ...]]:
    """(name, genome, weight, contigs, validation) of each genome; paths as texts."""
    said = nodes(path)
    if not isinstance(said, dict) or not said:
        raise Damaged("no genomes")
    found = []
    for name, values in said.items():
        keys = {"genome", "weight", "contigs", "validation"}
        if not re.fullmatch(r"[\w.+-]+", name) or not isinstance(values, dict) or not values.keys() <= keys:
            raise Damaged("no such genome")
        if "genome" not in values:
            raise Damaged("no files")
        weight = values.get("weight", Plain("null"))
        weight = None if is_null(weight) else real(weight)
        if weight is not None and not 0 < weight < float("inf"):
            raise Damaged("out of bounds")
        contigs, validation = (texts(values[key]) if key in values else None for key in ("contigs", "validation"))
        beds = [str(path.parent / each) if re.search(r"(?i)[^/]\.bed$", each) else each for each in validation or []]
        genome = [str(path.parent / each) for each in texts(values["genome"]) or []]
        found.append((name, genome, weight, contigs or None, beds or None))
    if len({weight is None for _, _, weight, *_ in found}) > 1:
        raise Damaged("some weights")
    return found
