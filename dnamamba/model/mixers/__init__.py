"""Sequence mixers: modules that carry information along the length (`dnamamba.model.mixers.mixer.Mixer` says what each
has to offer). A new one is a file here and a line in `MIXERS`.

This file imports no torch: a configuration may name a mixer without loading it.
"""

from typing import TYPE_CHECKING

from dnamamba.errors import InputError
from dnamamba.model.registry import registered
from dnamamba.tables import whole_number

if TYPE_CHECKING:
    from dnamamba.model.mixers.mixer import Mixer

MIXERS: dict[str, str] = {
    "mamba": "dnamamba.model.mixers.mamba:MambaMixer",
    "bimamba": "dnamamba.model.mixers.bimamba:BiMambaMixer",
    "mamba2": "dnamamba.model.mixers.mamba2:Mamba2Mixer",
    "s4d": "dnamamba.model.mixers.s4d:S4DMixer",
    "h3": "dnamamba.model.mixers.h3:H3Mixer",
    "gated_mlp": "dnamamba.model.mixers.gated_mlp:GatedMLP",
    "hyena": "dnamamba.model.mixers.hyena:HyenaMixer",
    "attention": "dnamamba.model.mixers.attention:AttentionMixer",
}
"""Name in `ModelConfig.mixer` → module and class, which is made from a `ModelConfig`."""
PATTERNS: dict[str, str] = {
    "transformer": "attention,gated_mlp",
    "hyenadna": "hyena,gated_mlp",
}
"""Patterns that have names, as `ModelConfig.mixer` takes them too."""
MOST_BLOCKS = 1024
"""Of a model, and so of a period of its pattern"""


def mixers_of(pattern: str) -> tuple[str, ...]:
    """The mixers of one period of a pattern, `NAME[:COUNT],…`. Raises `InputError` naming what it cannot be."""
    found: list[str] = []
    for part in PATTERNS.get(pattern, pattern).split(","):
        name, colon, count = part.strip().partition(":")
        number = whole_number(count, 1) if colon else 1
        if name not in MIXERS or number is None:
            raise InputError(
                f"model.pattern: {part!r} is not possible, expected NAME or NAME:COUNT, separated by commas, "
                f"where NAME is one of {', '.join(MIXERS)}"
            )
        if number > MOST_BLOCKS - len(found):
            raise InputError(f"model.pattern: {part!r} is not possible, expected at most {MOST_BLOCKS:,} blocks")
        found += [name] * number
    return tuple(found)


def mixer_class(name: str) -> "type[Mixer]":
    """The class of this name, its module loaded now. Raises `InputError` naming the choices."""
    return registered("mixer", name, MIXERS)
