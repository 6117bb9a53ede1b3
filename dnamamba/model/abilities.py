"""What a model can do, and the one place that refuses a model which cannot do what a verb needs. Torch-free."""

from enum import Flag, auto
from typing import Protocol

from dnamamba.errors import InputError
from dnamamba.model.mixers import MIXERS, mixer_class
from dnamamba.model.objectives import OBJECTIVES, objective_class


class Ability(Flag):
    """Of a model: the mixer's abilities and the objective's."""

    CAUSAL = auto()
    """No position sees a later one."""
    CARRIES_STATE = auto()
    """What later positions see of earlier ones fits in a state that is handed on."""
    PREDICTS_NEXT_BASE = auto()
    """The logits of a position are those of the base after it."""


_LACKING = {
    Ability.CAUSAL: "is not causal",
    Ability.CARRIES_STATE: "carries no state from base to base",
    Ability.PREDICTS_NEXT_BASE: "does not predict the next base",
}


class HasAbilities(Protocol):
    """A model that says what it can do."""

    @property
    def abilities(self) -> Ability: ...


def mixer_abilities(name: str) -> Ability:
    """Of the mixer of this name."""
    mixer = mixer_class(name)
    causal = Ability.CAUSAL if mixer.causal else Ability(0)
    return causal | (Ability.CARRIES_STATE if mixer.carries_state else Ability(0))


def require(model: HasAbilities, ability: Ability, verb: str) -> None:
    """Raises `InputError` unless `model` has the ability, or all of several (`a | b`): says what `verb` misses and
    which mixers and objectives have it."""
    missing = ability & ~model.abilities
    if not missing:
        return
    lacks = " and ".join(text for each, text in _LACKING.items() if each in missing)
    mixers = [name for name in MIXERS if (missing & _OF_MIXERS) in mixer_abilities(name)]
    objectives = [name for name in OBJECTIVES if (missing & ~_OF_MIXERS) in objective_class(name).abilities]
    would_do = []
    if missing & _OF_MIXERS:
        would_do.append(f"mixer {' or '.join(mixers)}")
    if missing & ~_OF_MIXERS:
        would_do.append(f"objective {' or '.join(objectives)}")
    raise InputError(f"dnamamba {verb}: this model {lacks}; take one with {' and '.join(would_do)}")


_OF_MIXERS = Ability.CAUSAL | Ability.CARRIES_STATE
