"""Classes by the names that a configuration gives them, each module loaded when its class is needed. Torch-free."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dnamamba.errors import InputError


def registered(kind: str, name: str, classes: Mapping[str, str]) -> Any:
    """The class of this name; `classes` maps names to MODULE:CLASS. Raises `InputError` naming the choices of `kind`, a
    field of `ModelConfig`."""
    if name not in classes:
        raise InputError(f"model.{kind}: unknown {kind} {name!r}, choose one of {', '.join(classes)}")
    module, _, attribute = classes[name].partition(":")
    return getattr(import_module(module), attribute)
