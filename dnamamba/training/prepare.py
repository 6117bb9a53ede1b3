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
from dnamamba.genome.region_classes import read_region_classes
from dnamamba.genome.splits import Splits, make_splits
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.runs.progress import job_bar
from dnamamba.training.copies import CopiedPlan, dense, hairpins, scattered
from dnamamba.training.data import EvaluationSet, PretrainData, SamplePlan, Stage, evenly_spread
from dnamamba.training.loss_weights import LossWeights
from dnamamba.training.mixture import MixturePlan
from dnamamba.training.mixture_file import GenomeSettings, read_mixture
from dnamamba.training.regions import ClassedPlan, RegionMixture, Regions, numbers_of, region_mixture, shares_of
from dnamamba.training.resolve import (
    dense_steps,
    last_copies,
    validation_length,
    validation_windows_per_pass,
    warmup_lengths,
)
from dnamamba.training.settings import ResolvedPretrainSettings


@dataclass(frozen=True)
class PreparedGenome:
    """A genome ready for training."""

    settings: GenomeSettings
    store: TokenStore
    contigs: ContigSelection
    splits: Splits
    train: tuple[WindowPlan | PackedPlan | RegionMixture, ...]
    """One a stage of the length warm-up."""
    validation: WindowPlan
    annotation: Annotation | None
    regions: Regions | None = None

    @property
    def name(self) -> str:
        """Its name in the mixture; "" for the only genome of a run."""
        return self.settings.name

    @property
    def weight(self) -> float:
        """Relative share of the training samples."""
        bases = sum(interval.length for interval in self.splits.train)
        return bases if self.settings.weight is None else self.settings.weight

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with the genome, its splits and its regions."""
        if self.regions is None:
            return self.splits.fingerprint
        return hashlib.sha256(f"{self.splits.fingerprint}{self.regions.fingerprint}".encode()).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """What a run trains and validates on."""

    genomes: tuple[PreparedGenome, ...]
    data: PretrainData
    weights: LossWeights

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that change with genomes, splits, regions and weights."""
        if len(self.genomes) == 1:
            return self.genomes[0].fingerprint
        content = [(genome.name, genome.weight, genome.fingerprint) for genome in self.genomes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prepare_data(settings: ResolvedPretrainSettings) -> Prepared:
    """Opens (or builds) the token stores, picks contigs, makes and proves the splits, plans the windows.

    Raises `InputError` for every fault of the files or of the settings that concern them.
    """
    genomes = tuple(_prepare(settings, genome) for genome in _wanted(settings))
    weights = _region_weights(settings, genomes)
    stages = []
    lengths = warmup_lengths(settings)
    for number, (first, length) in enumerate(lengths):
        plans = [_classed(genome, genome.train[number], length, weights) for genome in genomes]
        names, shares = [genome.name for genome in genomes], [genome.weight for genome in genomes]
        plan = plans[0] if len(plans) == 1 else MixturePlan(names, plans, shares)
        end = lengths[number + 1][0] if number + 1 < len(lengths) else settings.max_steps
        for start, planted in _with_copies(settings, plan, first, end):
            windows = settings.batch_tokens // length
            stages.append(Stage(start, planted, windows, first_sample=(start - first) * windows))
    data = PretrainData(
        stages,
        _validation_sets(settings, genomes),
        steps=settings.max_steps,
        micro_batch=validation_windows_per_pass(settings),
        bases_a_step=settings.batch_tokens,
        num_workers=settings.num_workers,
        seed=settings.seed,
        ranks_a_window=settings.context_parallel,
    )
    return Prepared(genomes, data, LossWeights(settings.soft_mask_weight, (1.0, *weights.values())))


def _region_weights(settings: ResolvedPretrainSettings, genomes: tuple[PreparedGenome, ...]) -> dict[str, float]:
    """Class → weight in the loss. Raises `InputError` for classes that no genome's regions have."""
    weights = numbers_of("region_weights", settings.region_weights or [])
    known = dict.fromkeys(name for genome in genomes if genome.regions for name in genome.regions.classes.names)
    for name in weights:
        if name not in known:
            raise InputError(f"--region_weights: no region is a {name}; there are {' '.join(known) or 'none'}")
    return weights


def _classed(
    genome: PreparedGenome, plan: WindowPlan | PackedPlan | RegionMixture, length: int, weights: dict[str, float]
) -> SamplePlan:
    """With the classes of bases, where the loss weighs them apart."""
    if not weights:
        return plan
    if isinstance(plan, PackedPlan):
        raise InputError("--pack: short sequences have no classes of regions; leave it, or --region_weights, out")
    return ClassedPlan(plan, length, None if genome.regions is None else genome.regions.classes, list(weights))


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
            regions=settings.regions,
            region_shares=settings.region_shares,
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

    regions = _regions(settings, genome, store)
    train: list[WindowPlan | PackedPlan | RegionMixture] = []
    for _, length in warmup_lengths(settings):
        windows = plan(splits.train, length, training=True)
        if regions is not None:
            train.append(region_mixture(windows, regions, splits.train, settings.max_n_fraction))
        else:
            train.append(PackedPlan(windows, splits.train, settings.max_n_fraction) if settings.pack else windows)
    validation = plan(splits.validation, validation_length(settings), training=False)
    annotation = None if genome.annotation is None else read_annotation(genome.annotation, store)
    return PreparedGenome(genome, store, contigs, splits, tuple(train), validation, annotation, regions)


def _regions(settings: ResolvedPretrainSettings, genome: GenomeSettings, store: TokenStore) -> Regions | None:
    if genome.regions is None:
        if genome.region_shares is not None:
            raise InputError("region_shares: needs regions, which say where the classes are")
        return None
    if settings.pack:
        raise InputError("--pack: short sequences are not drawn by class of region; leave it, or the regions, out")
    classes = read_region_classes(genome.regions, store)
    return Regions(classes, shares_of(classes, genome.region_shares))


def _validation_sets(settings: ResolvedPretrainSettings, genomes: tuple[PreparedGenome, ...]) -> list[EvaluationSet]:
    """--validation_tokens shared by weight, so that the figure over all genomes is of the mixture trained on."""
    weights = np.array([genome.weight for genome in genomes])
    wanted = np.ceil(settings.validation_tokens / validation_length(settings) * (weights / weights.sum())).astype(int)
    return [
        EvaluationSet(
            g.name,
            g.validation,
            evenly_spread(g.validation.epoch_size(0), int(count)),
            g.annotation,
            None if g.regions is None else g.regions.classes,
        )
        for g, count in zip(genomes, wanted, strict=True)
    ]
