"""From genome files to window plans: token stores, their contigs, the splits and their proof; a genome or a mixture."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from dnamamba import demo
from dnamamba.errors import InputError
from dnamamba.genome.annotation import Annotation, read_annotation
from dnamamba.genome.contigs import ContigSelection, select_contigs
from dnamamba.genome.intervals import Interval
from dnamamba.genome.packing import PackedPlan
from dnamamba.genome.splits import Splits, make_splits
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.runs.progress import job_bar
from dnamamba.training.copies import CopiedPlan, dense, hairpins, scattered
from dnamamba.training.data import EvaluationSet, PretrainData, SamplePlan, Stage, evenly_spread
from dnamamba.training.mixture import MixturePlan
from dnamamba.training.mixture_file import GenomeSettings, read_mixture
from dnamamba.training.resolve import dense_steps, last_copies, validation_length, warmup_lengths, windows_per_pass
from dnamamba.training.settings import ResolvedPretrainSettings


@dataclass(frozen=True)
class PreparedGenome:
    """A genome ready for training."""

    settings: GenomeSettings
    store: TokenStore
    contigs: ContigSelection
    splits: Splits
    train: tuple[WindowPlan | PackedPlan, ...]
    """One a stage of the length warm-up."""
    validation: WindowPlan
    annotation: Annotation | None

    @property
    def name(self) -> str:
        """Its name in the mixture; "" for the only genome of a run."""
        return self.settings.name

    @property
    def weight(self) -> float:
        """Relative share of the training samples."""
        bases = sum(interval.length for interval in self.splits.train)
        return bases if self.settings.weight is None else self.settings.weight


@dataclass(frozen=True)
class Prepared:
    """What a run trains and validates on."""

    genomes: tuple[PreparedGenome, ...]
    data: PretrainData

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with genomes, splits and weights: of the splits for a single genome."""
        if len(self.genomes) == 1:
            return self.genomes[0].splits.fingerprint
        content = [(genome.name, genome.weight, genome.splits.fingerprint) for genome in self.genomes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prepare_data(settings: ResolvedPretrainSettings) -> Prepared:
    """Opens (or builds) the token stores, picks contigs, makes and proves the splits, plans the windows.

    Raises `InputError` for every fault of the files or of the settings that concern them.
    """
    genomes = tuple(_prepare(settings, genome) for genome in _wanted(settings))
    stages = []
    lengths = warmup_lengths(settings)
    for number, (first, length) in enumerate(lengths):
        plans: list[SamplePlan] = [genome.train[number] for genome in genomes]
        names, weights = [genome.name for genome in genomes], [genome.weight for genome in genomes]
        plan = plans[0] if len(plans) == 1 else MixturePlan(names, plans, weights)
        end = lengths[number + 1][0] if number + 1 < len(lengths) else settings.max_steps
        for start, planted in _with_copies(settings, plan, first, end):
            stages.append(Stage(start, planted, settings.batch_tokens // length))
    data = PretrainData(
        stages,
        _validation_sets(settings, genomes),
        steps=settings.max_steps,
        micro_batch=windows_per_pass(settings, validation_length(settings)),
        bases_a_step=settings.batch_tokens,
        num_workers=settings.num_workers,
        seed=settings.seed,
        ranks_a_window=settings.context_parallel,
    )
    return Prepared(genomes, data)


def _with_copies(
    settings: ResolvedPretrainSettings, plan: SamplePlan, first: int, end: int
) -> list[tuple[int, SamplePlan]]:
    """(first step, plan) of the parts of the steps from `first` to `end` that are planted alike."""
    if not settings.copies:
        return [(first, plan)]
    until, last = dense_steps(settings), last_copies(settings)
    kinds = (0, 1.0, hairpins), (until // 2, 1.0, dense), (until, settings.copies, scattered), (last, 0.0, scattered)
    parts: list[tuple[int, SamplePlan]] = []
    for (begin, share, draw), following in zip(kinds, (until // 2, until, last, settings.max_steps), strict=True):
        if max(begin, first) < min(following, end):
            parts.append((max(begin, first), CopiedPlan(plan, share, settings.seed, draw) if share else plan))
    return parts


def _wanted(settings: ResolvedPretrainSettings) -> list[GenomeSettings]:
    if settings.mixture is not None:
        return read_mixture(settings.mixture)
    return [
        GenomeSettings(
            name="",
            genome=[demo.genome_path()] if settings.genome is None else settings.genome,
            contigs=settings.contigs,
            train=settings.train,
            validation=settings.validation,
            test=settings.test,
            exclude=settings.exclude,
            store=settings.store,
            annotation=settings.annotation,
        )
    ]


def _prepare(settings: ResolvedPretrainSettings, genome: GenomeSettings) -> PreparedGenome:
    try:
        return _open_and_plan(settings, genome)
    except InputError as error:
        if genome.name:
            raise InputError(f"{settings.mixture}: {genome.name}: {error}") from None
        raise


def _open_and_plan(settings: ResolvedPretrainSettings, genome: GenomeSettings) -> PreparedGenome:
    with job_bar(f"reading the genome {genome.name}".strip(), "B") as progress:
        store = open_genome(genome.genome, store=genome.store, verify=settings.verify, progress=progress)
    contigs = select_contigs(store, genome.contigs)
    splits = make_splits(
        store,
        contigs,
        context_length=settings.length,
        validation_length=validation_length(settings),
        train=genome.train,
        validation=genome.validation,
        test=genome.test,
        exclude=genome.exclude or (),
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

    train: list[WindowPlan | PackedPlan] = []
    for _, length in warmup_lengths(settings):
        windows = plan(splits.train, length, training=True)
        train.append(PackedPlan(windows, splits.train, settings.max_n_fraction) if settings.pack else windows)
    validation = plan(splits.validation, validation_length(settings), training=False)
    annotation = None if genome.annotation is None else read_annotation(genome.annotation, store)
    return PreparedGenome(genome, store, contigs, splits, tuple(train), validation, annotation)


def _validation_sets(settings: ResolvedPretrainSettings, genomes: tuple[PreparedGenome, ...]) -> list[EvaluationSet]:
    """--validation_tokens shared by weight, so that the figure over all genomes is of the mixture trained on."""
    weights = np.array([genome.weight for genome in genomes])
    wanted = np.ceil(settings.validation_tokens / validation_length(settings) * (weights / weights.sum())).astype(int)
    return [
        EvaluationSet(g.name, g.validation, evenly_spread(g.validation.epoch_size(0), int(count)), g.annotation)
        for g, count in zip(genomes, wanted, strict=True)
    ]
