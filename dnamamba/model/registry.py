"""Classes by the names that a configuration gives them, each module loaded when its class is asked for. Torch-free."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dnamamba.errors import InputError


def registered(kind: str, name: str, places: Mapping[str, str]) -> Any:
    """The class of this name; `places` maps names to MODULE:CLASS. Raises `InputError` naming the choices of `kind`, a
    field of `ModelConfig`."""
    if name not in places:
        raise InputError(f"model.{kind}: unknown {kind} {name!r}, choose one of {', '.join(places)}")
    module, _, attribute = places[name].partition(":")
    return getattr(import_module(module), attribute)
