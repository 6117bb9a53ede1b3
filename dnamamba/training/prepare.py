"""From genome files to window plans: the token store, its contigs, the splits and their proof."""

from dataclasses import dataclass

from dnamamba import demo
from dnamamba.genome.contigs import ContigSelection, select_contigs
from dnamamba.genome.intervals import Interval
from dnamamba.genome.splits import Splits, make_splits
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.training.data import PretrainData, Stage, evenly_spread
from dnamamba.training.progress import byte_bar
from dnamamba.training.resolve import warmup_lengths, windows_per_pass
from dnamamba.training.settings import RunSettings


@dataclass(frozen=True)
class Prepared:
    """A genome ready for training."""

    store: TokenStore
    contigs: ContigSelection
    splits: Splits
    data: PretrainData


def prepare_data(settings: RunSettings) -> Prepared:
    """Opens (or builds) the token store, picks contigs, makes and proves the splits, plans the windows.

    Raises `InputError` for every fault of the files or of the settings that concern them.
    """
    genome = [demo.genome_path()] if settings.genome is None else settings.genome
    with byte_bar("reading the genome", "B") as progress:
        store = open_genome(genome, store=settings.store, verify=settings.verify, progress=progress)
    contigs = select_contigs(store, settings.contigs)
    splits = make_splits(
        store,
        contigs,
        context_length=settings.length,
        train=settings.train,
        validation=settings.validation,
        test=settings.test,
        exclude=settings.exclude or (),
        seed=settings.seed,
    )

    def plan(intervals: tuple[Interval, ...], length: int, training: bool) -> WindowPlan:
        return WindowPlan(
            store,
            intervals,
            length,
            seed=settings.seed,
            max_n_fraction=settings.max_n_fraction,
            reverse_complement=training and settings.reverse_complement,
            random_phase=training,
        )

    stages = [
        Stage(first, plan(splits.train, length, training=True), settings.batch_tokens // length)
        for first, length in warmup_lengths(settings)
    ]
    validation = plan(splits.validation, settings.length, training=False)
    wanted = -(-settings.validation_tokens // settings.length)
    data = PretrainData(
        stages,
        validation,
        steps=settings.max_steps,
        validation_indices=evenly_spread(validation.epoch_size(0), wanted),
        micro_batch=windows_per_pass(settings),
        num_workers=settings.num_workers,
    )
    return Prepared(store, contigs, splits, data)
