"""The Markov model that a run's summary is measured against: same training split, same validation windows."""

from dnamamba.genome.markov import MarkovScore, score
from dnamamba.genome.progress import OnProgress
from dnamamba.model.abilities import Ability, abilities_of
from dnamamba.model.settings import model_config
from dnamamba.runs.progress import job_bar
from dnamamba.training.data import EvaluationSet
from dnamamba.training.prepare import Prepared, PreparedGenome
from dnamamba.training.settings import ResolvedPretrainSettings


def best_markov(settings: ResolvedPretrainSettings, prepared: Prepared) -> list[MarkovScore]:
    """One a genome, each fitted on its own training split, which is harder to beat than one fitted on all of them.

    Counted on both strands if the model trains on both; of masked bases from both sides if those are what it predicts,
    though of their neighbours none is masked; cached a split; none with `--markov_order 0`.
    """
    if settings.markov_order == 0:
        return []
    scores = []
    for genome, windows in zip(prepared.genomes, prepared.data.validation, strict=True):
        with job_bar(f"Markov baseline {genome.name}".strip(), "bases") as progress:
            scores.append(_score(settings, genome, windows, progress))
    return scores


def sees_both_sides(settings: ResolvedPretrainSettings) -> bool:
    """Whether the model predicts a base from those on both sides of it; then its baseline does, too."""
    return Ability.PREDICTS_MASKED_BASE in abilities_of(model_config(settings.model))


def bits_over_all(scores: list[MarkovScore]) -> float | None:
    """Bits per base over the windows of all genomes together; None without scores."""
    counted = sum(score.counted for score in scores)
    return sum(score.bits_per_base * score.counted for score in scores) / counted if counted else None


def _score(
    settings: ResolvedPretrainSettings, genome: PreparedGenome, windows: EvaluationSet, progress: OnProgress
) -> MarkovScore:
    key = {
        "store": genome.store.fingerprint,
        "splits": genome.splits.fingerprint,
        "windows": f"{windows.plan.length} x {len(windows.indices)}, N below {settings.max_n_fraction}",
    }
    return score(
        (genome.store.read(interval.contig, interval.start, interval.end) for interval in genome.splits.train),
        (windows.plan.read(0, int(index)) for index in windows.indices),
        key,
        order=settings.markov_order,
        both_strands=settings.reverse_complement,
        both_sides=sees_both_sides(settings),
        progress=progress,
    )
