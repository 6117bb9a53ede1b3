"""The Markov model that a run's summary is measured against: same training split, same validation windows."""

from dnamamba.genome.markov import MarkovScore, Progress, score
from dnamamba.training.prepare import Prepared
from dnamamba.training.progress import byte_bar
from dnamamba.training.settings import RunSettings


def best_markov(settings: RunSettings, prepared: Prepared) -> MarkovScore | None:
    """Counted on both strands if the model trains on both; cached a split; None with `--markov_order 0`."""
    if settings.markov_order == 0:
        return None
    key = {
        "store": prepared.store.fingerprint,
        "splits": prepared.splits.fingerprint,
        "windows": f"{settings.length} x {len(prepared.data.validation_indices)}, N below {settings.max_n_fraction}",
    }
    with byte_bar("Markov baseline", "bases") as progress:
        return _score(settings, prepared, key, progress)


def _score(settings: RunSettings, prepared: Prepared, key: dict[str, str], progress: Progress) -> MarkovScore:
    store, data = prepared.store, prepared.data
    return score(
        (store.read(interval.contig, interval.start, interval.end) for interval in prepared.splits.train),
        (data.validation.read(0, int(index)) for index in data.validation_indices),
        key,
        order=settings.markov_order,
        both_strands=settings.reverse_complement,
        progress=progress,
    )
