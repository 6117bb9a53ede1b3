"""Sequence mixers: modules that carry information along the length (`dnamamba.model.mixers.mixer.Mixer` says what each
has to offer). A new one is a file here and a line in `MIXERS`.

This file imports no torch: a configuration may name a mixer without loading it.
"""

from typing import TYPE_CHECKING

from dnamamba.model.registry import registered

if TYPE_CHECKING:
    from dnamamba.model.mixers.mixer import Mixer

MIXERS: dict[str, str] = {
    "mamba": "dnamamba.model.mixers.mamba:MambaMixer",
}
"""Name in `ModelConfig.mixer` → module and class, which is made from a `ModelConfig`."""


def mixer_class(name: str) -> "type[Mixer]":
    """The class of this name, its module loaded now. Raises `InputError` naming the choices."""
    return registered("mixer", name, MIXERS)
