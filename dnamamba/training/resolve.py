"""From what the user said to what the run does: defaults filled in, impossible numbers refused."""

import dataclasses
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dnamamba.errors import InputError
from dnamamba.inference.device import choose_compute, chunk_length
from dnamamba.model.abilities import Ability, abilities_of
from dnamamba.model.mixers import mixer_class
from dnamamba.model.settings import ModelSettings, changes, model_config, model_name
from dnamamba.parallel.context import refuse_parts
from dnamamba.parallel.processes import chosen_devices, chosen_folder
from dnamamba.training.mixture_file import bed_or_pattern
from dnamamba.training.settings import PretrainSettings, ResolvedPretrainSettings


class Budget(NamedTuple):
    """What a run is by default."""

    preset: str
    length: int
    batch_tokens: int
    steps: int
    validations: int = 10


DEMO = Budget("demo", 1024, 4096, 600, validations=5)
"""Under three minutes on two CPU cores."""
ON_CPU = Budget("250k", 1024, 8192, 2000)
"""Half an hour on two CPU cores, where what follows takes days."""
ON_GPU = Budget("1.4m", 8192, 262_144, 10_000)
VALIDATION_TOKENS = 2_000_000
"""Bases of a validation at most, unless more are wanted."""
LEARNING_RATE = 8e-3
WARMUP_FROM = 1024
"""Shortest windows of the length warm-up, as in the paper."""

_OF_REGIONS = ("regions", "region_shares")


def resolve(settings: PretrainSettings) -> ResolvedPretrainSettings:
    """Every `None` that stands for a default filled in, paths made absolute. Raises `InputError`."""
    is_demo = settings.genome is None and settings.mixture is None
    _refuse_with_mixture(settings)
    compute = choose_compute(settings.accelerator, settings.precision)
    usual = DEMO if is_demo else ON_CPU if compute.accelerator == "cpu" else ON_GPU
    length = _or(settings.length, usual.length)
    devices = chosen_devices(settings.devices, compute.accelerator, resumed=settings.resume)
    ranks = settings.context_parallel
    unit = length * max(devices // ranks, 1)
    batch_tokens = _or(settings.batch_tokens, max(usual.batch_tokens // unit, 1) * unit)
    max_steps = _or(settings.max_steps, usual.steps)
    if settings.tokens is not None:
        if settings.max_steps is not None and not settings.resume:
            raise InputError("--tokens and --max_steps both say how long to train: give one of them")
        max_steps = math.ceil(settings.tokens / max(batch_tokens, 1))
    validation_every = _or(settings.validation_every, math.ceil(max_steps / usual.validations))
    model = _model(settings.model, usual.preset, length)
    fitting = None
    if settings.backprop != "whole":
        fitting = chunk_length(compute, model_config(model))
        fitting = min(fitting, _or(settings.micro_tokens, fitting)) * ranks
    chunk = settings.chosen_chunk(fitting, resumed=settings.resume)
    changed = replace(
        settings,
        genome=settings.genome and [path.absolute() for path in settings.genome],
        mixture=settings.mixture and settings.mixture.absolute(),
        train=_beds_or_patterns(settings.train),
        validation=_beds_or_patterns(settings.validation),
        test=_beds_or_patterns(settings.test),
        exclude=settings.exclude and [path.absolute() for path in settings.exclude],
        annotation=settings.annotation and settings.annotation.absolute(),
        regions=settings.regions and [path.absolute() for path in settings.regions],
        store=settings.store and settings.store.absolute(),
        model=model,
        length=length,
        tokens=None,
        batch_tokens=batch_tokens,
        chunk=chunk,
        micro_tokens=_or(
            settings.micro_tokens, max(compute.micro_tokens, length // ranks) if chunk is None else chunk // ranks
        ),
        max_steps=max_steps,
        devices=devices,
        learning_rate=_or(settings.learning_rate, LEARNING_RATE),
        validation_every=validation_every,
        validation_tokens=_or(
            settings.validation_tokens,
            min(VALIDATION_TOKENS, max(batch_tokens * validation_every, _or(settings.validation_length, length))),
        ),
        log_every=_or(settings.log_every, min(max(max_steps // 100, 1), 50)),
        accelerator=compute.accelerator,
        precision=compute.precision,
    )
    resolved = ResolvedPretrainSettings(
        **{field.name: getattr(changed, field.name) for field in dataclasses.fields(changed)}
    )
    _check_together(resolved)
    resolved.out = chosen_folder(settings.out, lambda: _usual_folder(resolved))
    return resolved


def validation_count(settings: ResolvedPretrainSettings) -> int:
    """Validations of a whole run: one every `validation_every` steps, and one after the last."""
    return math.ceil(settings.max_steps / settings.validation_every)


def windows_per_step(settings: ResolvedPretrainSettings) -> int:
    """Windows of one optimiser step over all devices."""
    return settings.batch_tokens // settings.length


def windows_per_pass(settings: ResolvedPretrainSettings, length: int | None = None) -> int:
    """Windows of this length, by default the full one, or chunks of them, in one forward pass on one device, or on
    those that share them."""
    length = length or settings.length
    return max(settings.micro_tokens * settings.context_parallel // min(length, settings.chunk or length), 1)


def validation_length(settings: ResolvedPretrainSettings) -> int:
    """Bases of a window of the validation split."""
    return settings.validation_length or settings.length


def validation_windows_per_pass(settings: ResolvedPretrainSettings) -> int:
    """Windows of the validation split in one forward pass: on one device, which has them whole."""
    return windows_per_pass(replace(settings, context_parallel=1), validation_length(settings))


def validation_chunk(settings: ResolvedPretrainSettings) -> int | None:
    """Positions of a validation window that go through the model together; None is all. Where several devices share a
    training window, one has a validation window by itself, but no more of it at a time than of the former."""
    shares = settings.context_parallel > 1 and Ability.CAUSAL in abilities_of(model_config(settings.model))
    return settings.chunk or (-(-settings.length // settings.context_parallel) if shares else None)


def warmup_lengths(settings: ResolvedPretrainSettings) -> list[tuple[int, int]]:
    """(first step, window length) of each stage: the lengths double up to `settings.length`, tokens a step constant.

    The paper's sequence-length warm-up (arXiv 2312.00752, appendix E.3.2), begun at the halving of `length` that is
    nearest above 1024; the stages before the last share `length_warmup` of the steps equally.
    """
    lengths = [settings.length]
    while settings.length_warmup and lengths[0] % 2 == 0 and lengths[0] // 2 >= WARMUP_FROM:
        lengths.insert(0, lengths[0] // 2)
    share = settings.length_warmup * settings.max_steps / max(len(lengths) - 1, 1)
    return [(round(number * share), length) for number, length in enumerate(lengths)]


def why_no_graph(settings: ResolvedPretrainSettings) -> str:
    """What stands against recording micro-batches as CUDA graphs; empty where they are recorded. Raises `InputError`
    where --cuda_graph on cannot be had."""
    if settings.cuda_graph == "off":
        return "--cuda_graph off"
    config = model_config(settings.model)
    on_host = [name for name in dict.fromkeys(config.mixers) if mixer_class(name).packs_on_host(config)]
    reason = ""
    if settings.accelerator == "cpu":
        reason = "it needs a GPU"
    elif settings.is_sharded:
        reason = "--strategy fsdp gathers weights block by block"
    elif settings.context_parallel > 1:
        reason = "--context_parallel sends states between devices"
    elif settings.backprop != "whole":
        reason = f"--backprop {settings.backprop} makes gradients chunk by chunk"
    elif on_host and settings.pack:
        reason = f"{on_host[0]} cuts packed windows on the host"
    elif on_host and Ability.CAUSAL not in abilities_of(config):  # which reads up to a sequence's padding
        reason = f"{on_host[0]} cuts off padding on the host"
    if reason and settings.cuda_graph == "on":
        raise InputError(f"--cuda_graph on: {reason}; leave it at auto")
    return reason


def dense_steps(settings: ResolvedPretrainSettings) -> int:
    """Steps, the first, whose windows are repeats from end to end (`dnamamba.training.copies`)."""
    return round(settings.copies_warmup * settings.max_steps) if settings.copies else 0


def last_copies(settings: ResolvedPretrainSettings) -> int:
    """The step from which on no copies are planted any more."""
    return settings.max_steps - round(settings.copies_cooldown * settings.max_steps)


def _beds_or_patterns(items: list[str] | None) -> list[str] | None:
    return items and [bed_or_pattern(item, Path.cwd()) for item in items]


def _model(settings: ModelSettings, preset: str, length: int) -> ModelSettings:
    """With a preset; Hyena's filters reach over a window."""
    settings = replace(settings, preset=settings.preset or preset)
    chosen = "filter_length" in changes(settings) or "hyena" not in model_config(settings).mixers
    reach: dict[str, Any] = {} if chosen else {"filter_length": length}
    return replace(settings, **reach)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _refuse_with_mixture(settings: PretrainSettings) -> None:
    if settings.mixture is None:
        return
    for name in ("genome", "contigs", "train", "validation", "test", "exclude", "annotation", "store", *_OF_REGIONS):
        if getattr(settings, name) is not None:
            raise InputError(f"--{name}: with --mixture this stands in {settings.mixture}, below the genome it is of")


def _check_together(settings: ResolvedPretrainSettings) -> None:
    """What concerns several settings at once; the bounds of each stand at its field."""
    why_no_graph(settings)
    if settings.mixture is None and settings.regions is None:
        for name in ("region_shares", "region_weights"):
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} needs --regions, which says where the classes are")
    if settings.batch_tokens % settings.length or settings.batch_tokens < settings.length:
        raise InputError(f"--batch_tokens: {settings.batch_tokens} is not a multiple of --length {settings.length}")
    ranks = settings.context_parallel
    together = [min(length, settings.chunk or length) for _, length in warmup_lengths(settings)]
    rests = [length % settings.chunk or length for _, length in warmup_lengths(settings)] if settings.chunk else []
    refuse_parts(model_config(settings.model), ranks, settings.devices, together + rests, settings.pack)
    if windows_per_step(settings) % (settings.devices // ranks):
        share = f"{settings.devices} devices" if ranks == 1 else f"{settings.devices} devices, {ranks} a window"
        raise InputError(f"--batch_tokens: its {windows_per_step(settings)} windows do not divide over {share}")
    if settings.copies_cooldown and not settings.copies:
        raise InputError("--copies_cooldown needs --copies, which says how many windows have copies before it")
    if dense_steps(settings) > last_copies(settings):
        raise InputError(
            f"--copies_cooldown: {settings.copies_cooldown} and --copies_warmup {settings.copies_warmup} are more than "
            "all steps; give shares that add up to 1 at most"
        )
    if settings.length_warmup and len(warmup_lengths(settings)) == 1:
        raise InputError(
            f"--length_warmup: --length {settings.length} has no shorter stage; take an even one from {2 * WARMUP_FROM}"
        )


def _usual_folder(settings: ResolvedPretrainSettings) -> Path:
    source = settings.mixture or (settings.genome[0] if settings.genome else Path("ecoli-demo"))
    genome = source.name.split(".")[0]
    model = re.sub("[^A-Za-z0-9._-]+", "-", model_name(settings.model))
    name = f"{genome}-{model}-{settings.length}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Path("runs", name)
