"""How alleles are scored, with every default filled in."""

from typing import Any, Literal

from dnamamba.analysis.variants.masked_scores import MaskedPlan
from dnamamba.analysis.variants.mutagenesis_settings import MutagenesisSettings
from dnamamba.analysis.variants.score_settings import ScoreSettings
from dnamamba.analysis.variants.scores import ScorePlan
from dnamamba.analysis.variants.tiles import Tiling
from dnamamba.errors import InputError
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.inference.masked import mask_every_of
from dnamamba.inference.provenance import result_provenance
from dnamamba.model.abilities import Ability, require

Plan = ScorePlan | MaskedPlan
"""Of a model that predicts the next base, and of one that predicts masked bases"""
FLANK = 16
"""Bases on each side of an insertion, deletion or the like that are scored with it: what it changes most is near"""


def default_suffix(context: int) -> int:
    """Bases after an allele to score in tiles of `context` bases. Spearman's correlation with scores to the tile's end
    was above 0.999 with 2 048 at a context of 16 384, and needed 4 096 at 131 072."""
    return min(max(2048, context // 32), context // 2)


def default_state_every(context: int) -> int:
    """Bases between kept states. An allele is read from the last one on, so that at short contexts few bases between
    them save much of the work, and at long ones many save memory."""
    return min(max(context // 8, 64), 1024)


def plan_for(
    inference: Inference,
    *,
    context: int | None = None,
    suffix: int | None = None,
    state_every: int | None = None,
    batch_tokens: int | None = None,
    check: int = 0,
    exact: bool = False,
    embedding_distance: bool = False,
    flank: int | None = None,
    mask_every: int | Literal["alone"] | None = None,
) -> Plan:
    """The plan for a model: `context` defaults to the length it was trained at, `suffix` to `default_suffix`,
    `state_every` to `default_state_every`, `flank` to `FLANK`. No states are kept of a model whose state grows with
    each base: all alleles start from their tile's first one.

    Raises `InputError` for sizes that do not go together, and for settings of the other kind of model; `state_every`
    and `check`, which change no score, are left out of account by a model that predicts masked bases.
    """
    require(inference.model, "score")
    context = inference.trained_length if context is None else context
    if context is None:
        raise InputError(f"{inference.checkpoint}: does not say what length it was trained at; give --context")
    batch_tokens = batch_tokens or inference.compute.micro_tokens
    masks = Ability.PREDICTS_MASKED_BASE in inference.model.abilities
    if masks:
        _refuse(
            "predicts masked bases from both sides",
            suffix=suffix,
            exact=exact or None,
            embedding_distance=embedding_distance or None,
        )
        return _masked_plan(inference, context, FLANK if flank is None else flank, mask_every, batch_tokens)
    _refuse("predicts the next base and masks none", flank=flank, mask_every=mask_every)
    if context < 4 or context % 2:
        raise InputError(f"--context: {context} is not possible, expected an even number of bases of at least 4")
    suffix = default_suffix(context) if suffix is None else suffix
    if not 0 <= suffix <= context // 2:
        raise InputError(f"--suffix: {suffix} is not possible, expected 0 to {context // 2}, half of --context")
    state_every = default_state_every(context) if state_every is None else state_every
    if state_every < 1:
        raise InputError(f"--state_every: {state_every} is not possible, expected at least 1 base")
    resumes = Ability.CONSTANT_STATE in inference.model.abilities
    every = min(state_every, context) if resumes else context
    return ScorePlan(Tiling(context, suffix), every, batch_tokens, exact, check, embedding_distance)


def _masked_plan(
    inference: Inference, context: int, flank: int, mask_every: int | Literal["alone"] | None, batch_tokens: int
) -> MaskedPlan:
    if context < 2:
        raise InputError(f"--context: {context} is not possible, expected at least 2 bases")
    if flank < 0:
        raise InputError(f"--flank: {flank} is not possible, expected 0 or more bases")
    every = mask_every_of(mask_every, None)
    return MaskedPlan(context, flank, every, batch_tokens, inference.model.config.rc_equivariant)


def _refuse(kind: str, **settings: Any) -> None:
    """Raises `InputError` for the first of `settings`, of the other kind of model, that is given."""
    for name, given in settings.items():
        if given is not None:
            raise InputError(f"--{name}: this model {kind}; leave --{name} out")


def scoring_provenance(
    settings: ScoreSettings | MutagenesisSettings, inference: Inference, store: GenomeView, plan: Plan
) -> dict[str, Any]:
    """What scores say of themselves."""
    found = result_provenance(inference, settings.genome, store)
    return found | plan.provenance() | {"precision": inference.precision}
