"""What a model can do, and the one place that refuses a model which cannot do what a verb needs. Torch-free."""

from enum import Flag, auto
from typing import Protocol

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import MIXERS, mixer_class
from dnamamba.model.objectives import OBJECTIVES, objective_class


class Ability(Flag):
    """Of a model: the mixer's abilities and the objective's."""

    CAUSAL = auto()
    """No position sees a later one."""
    CARRIES_STATE = auto()
    """What later positions see of earlier ones is handed on as a state."""
    CONSTANT_STATE = auto()
    """And that state is as large after a million bases as after one."""
    PREDICTS_NEXT_BASE = auto()
    """The logits of a position are those of the base after it."""
    PREDICTS_MASKED_BASE = auto()
    """The logits of a position are those of the base there, which the input masks."""


_OF_MIXERS = Ability.CAUSAL | Ability.CARRIES_STATE | Ability.CONSTANT_STATE
_LACKING = {
    Ability.CAUSAL: "is not causal",
    Ability.CARRIES_STATE: "carries no state from base to base",
    Ability.CONSTANT_STATE: "keeps no state of constant size to resume from",
    Ability.PREDICTS_NEXT_BASE: "does not predict the next base",
    Ability.PREDICTS_MASKED_BASE: "does not predict masked bases",
}
_IN_CHUNKS = Ability.CAUSAL | Ability.CONSTANT_STATE
_BY_NEXT_BASE = Ability.CARRIES_STATE | Ability.PREDICTS_NEXT_BASE
NEEDS: dict[str, tuple[Ability, ...]] = {
    "generate": (_BY_NEXT_BASE,),
    "likelihood": (_BY_NEXT_BASE, Ability.PREDICTS_MASKED_BASE),
    "likelihood --context unlimited": (Ability.CONSTANT_STATE | Ability.PREDICTS_NEXT_BASE,),
    **{f"pretrain --backprop {way}": (_IN_CHUNKS | Ability.PREDICTS_NEXT_BASE,) for way in ("chunked", "truncated")},
    **{f"finetune --backprop {way}": (_IN_CHUNKS,) for way in ("chunked", "truncated")},
    "score": (Ability.CAUSAL | _BY_NEXT_BASE, Ability.PREDICTS_MASKED_BASE),
}
"""Of the verbs that take a language model: one of these sets."""


WITHOUT_CHUNKS = "take --backprop whole, with --recompute all where memory is short"
"""What else there is where a model cannot be trained in chunks"""


class HasAbilities(Protocol):
    """A model that says what it can do."""

    config: ModelConfig

    @property
    def abilities(self) -> Ability: ...


def mixer_abilities(*names: str) -> Ability:
    """What blocks of these mixers can do together."""
    shared = _OF_MIXERS
    for mixer in map(mixer_class, dict.fromkeys(names)):
        if not mixer.causal:
            shared &= ~Ability.CAUSAL
        if not mixer.carries_state:
            shared &= ~Ability.CARRIES_STATE
        if mixer.state_grows or not mixer.carries_state:
            shared &= ~Ability.CONSTANT_STATE
    return shared


def abilities_of(config: ModelConfig) -> Ability:
    """Of a model. One that reads both strands sees both sides of a position, whatever its mixers."""
    mixers = Ability(0) if config.rc_equivariant else mixer_abilities(*config.mixers)
    return mixers | objective_class(config.objective).abilities


def require_for_objective(config: ModelConfig) -> None:
    """Raises `InputError` where the objective's target would be seen; names the objectives that would do."""
    has, wanted = abilities_of(config), config.objective
    if objective_class(wanted).needs in has:
        return
    what = "rc_equivariant: it" if config.rc_equivariant else f"mixer: {' and '.join(dict.fromkeys(config.mixers))}"
    others = " or ".join(name for name in OBJECTIVES if objective_class(name).needs in has)
    see = "sees" if config.rc_equivariant or len(set(config.mixers)) == 1 else "see"
    raise InputError(f"model.{what} {see} what the objective {wanted} wants predicted; take --model.objective {others}")


def require(model: HasAbilities, verb: str, otherwise: str = "") -> None:
    """Raises `InputError` unless `model` has all that `verb` needs: says what it lacks, which mixers and objectives
    have it, and what else to do."""
    missing = min((needs & ~model.abilities for needs in NEEDS[verb]), key=lambda each: len(list(each)))
    if not missing:
        return
    lacks = " and ".join(text for each, text in _LACKING.items() if each in missing)
    mixers = [name for name in MIXERS if (missing & _OF_MIXERS) in mixer_abilities(name)]
    objectives = [name for name in OBJECTIVES if (missing & ~_OF_MIXERS) in objective_class(name).abilities]
    would_do = []
    if missing & _OF_MIXERS:
        without = " without rc_equivariant" if model.config.rc_equivariant else ""
        would_do.append(f"mixer {' or '.join(mixers)}{without}")
    if missing & ~_OF_MIXERS:
        would_do.append(f"objective {' or '.join(objectives)}")
    raise InputError(f"dnamamba {verb}: this model {lacks}; take one with {' and '.join(would_do)}{otherwise}")


def require_last_state(abilities: Ability, chosen: str, instead: str) -> None:
    """Raises `InputError` where the state after the last base has seen no more than the others: what was `chosen`, and
    what to give `instead`."""
    if Ability.CAUSAL not in abilities:
        raise InputError(
            f"{chosen}: this model sees both sides of each base, so that the last state says no more of the sequence "
            f"than the others; give {instead}"
        )
