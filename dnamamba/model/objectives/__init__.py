"""Training objectives: what of a window a model reads, what it is to predict, and how likely it finds that
(`dnamamba.model.objectives.objective.Objective`). A new one is a file here and a line in `OBJECTIVES`.

This file imports no torch: a configuration may name an objective without loading it.
"""

from typing import TYPE_CHECKING

from dnamamba.model.registry import registered

if TYPE_CHECKING:
    from dnamamba.model.objectives.objective import Objective

OBJECTIVES: dict[str, str] = {
    "next_base": "dnamamba.model.objectives.next_base:NextBase",
    "masked_base": "dnamamba.model.objectives.masked_base:MaskedBase",
}
"""Name in `ModelConfig.objective` → module and class."""


def objective_class(name: str) -> "type[Objective]":
    """The class of this name, its module loaded now. Raises `InputError` naming the choices."""
    return registered("objective", name, OBJECTIVES)
