"""How alleles are scored, with every default filled in."""

from typing import Any

from dnamamba.analysis.variants.mutagenesis_settings import MutagenesisSettings
from dnamamba.analysis.variants.score_settings import ScoreSettings
from dnamamba.analysis.variants.scores import ScorePlan
from dnamamba.analysis.variants.tiles import Tiling
from dnamamba.errors import InputError
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.inference.provenance import result_provenance
from dnamamba.model.abilities import Ability, require


def default_suffix(context: int) -> int:
    """Bases after an allele to score in tiles of `context` bases. Spearman's correlation with scores to the tile's end
    was above 0.999 with 2 048 at a context of 16 384, and needed 4 096 at 131 072."""
    return min(max(2048, context // 32), context // 2)


def plan_for(
    inference: Inference,
    *,
    context: int | None = None,
    suffix: int | None = None,
    state_every: int = 1024,
    batch_tokens: int | None = None,
    check: int = 0,
    exact: bool = False,
    embedding_distance: bool = False,
) -> ScorePlan:
    """The plan for a model: `context` defaults to the length it was trained at, `suffix` to `default_suffix`. No states
    are kept of a model whose state grows with each base: all alleles start from their tile's first one.

    Raises `InputError` for sizes that do not go together.
    """
    require(inference.model, "score")
    context = inference.trained_length if context is None else context
    if context is None:
        raise InputError(f"{inference.checkpoint}: does not say what length it was trained at; give --context")
    if context < 4 or context % 2:
        raise InputError(f"--context: {context} is not possible, expected an even number of bases of at least 4")
    suffix = default_suffix(context) if suffix is None else suffix
    if not 0 <= suffix <= context // 2:
        raise InputError(f"--suffix: {suffix} is not possible, expected 0 to {context // 2}, half of --context")
    if state_every < 1:
        raise InputError(f"--state_every: {state_every} is not possible, expected at least 1 base")
    batch_tokens = batch_tokens or inference.compute.micro_tokens
    resumes = Ability.CONSTANT_STATE in inference.model.abilities
    every = min(state_every, context) if resumes else context
    return ScorePlan(Tiling(context, suffix), every, batch_tokens, exact, check, embedding_distance)


def plan_of(settings: ScoreSettings | MutagenesisSettings, inference: Inference) -> ScorePlan:
    """`plan_for` what both verbs take. Raises as it does."""
    return plan_for(
        inference,
        context=settings.context,
        suffix=settings.suffix,
        state_every=settings.state_every,
        batch_tokens=settings.batch_tokens,
        check=settings.check,
    )


def scoring_provenance(
    settings: ScoreSettings | MutagenesisSettings, inference: Inference, store: GenomeView, plan: ScorePlan
) -> dict[str, Any]:
    """What scores say of themselves."""
    return result_provenance(inference, settings.genome, store) | {
        "context": plan.tiling.context,
        "suffix": "to the tile's end" if plan.exact else plan.tiling.suffix,
        "precision": inference.precision,
    }
