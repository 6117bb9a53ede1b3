"""From what the user said to what the run does: defaults filled in, impossible settings refused."""

import dataclasses
import time
from dataclasses import replace
from pathlib import Path

from dnamamba.errors import InputError
from dnamamba.finetuning.settings import FinetuneSettings, ResolvedFinetuneSettings
from dnamamba.finetuning.trial import STRAND_USES, WARMUP_FROM, warmup_lengths
from dnamamba.formats import read_card
from dnamamba.formats.files import located
from dnamamba.inference.device import Compute, choose_compute
from dnamamba.model.abilities import Ability, abilities_of, require_last_state
from dnamamba.model.config import ModelConfig
from dnamamba.model.settings import ModelSettings, model_config
from dnamamba.parallel.processes import chosen_devices, chosen_folder

FROM_SCRATCH = "none"


def resolve(settings: FinetuneSettings) -> ResolvedFinetuneSettings:
    """Every `None` that stands for a default filled in, paths made absolute. Raises `InputError`."""
    if settings.checkpoint is None:
        raise InputError("--checkpoint: name a pretrained checkpoint or run folder, or none to train from scratch")
    scratch = settings.checkpoint == FROM_SCRATCH
    preset = settings.model.preset or ("1.4m" if scratch else None)
    if scratch:
        config = model_config(replace(settings.model, preset=preset))
    else:
        config = ModelConfig(**read_card(settings.checkpoint)["config"])
    abilities = abilities_of(config)
    compute = choose_compute(settings.accelerator, settings.precision, settings.micro_tokens)
    is_species = settings.task == "species"
    is_variants = settings.task == "variants"
    length = 1024 if settings.task != "sequences" and settings.length is None else settings.length
    changed = replace(
        settings,
        data=settings.data and settings.data.absolute(),
        species=settings.species and settings.species.absolute(),
        variants=settings.variants and settings.variants.absolute(),
        annotation=settings.annotation and settings.annotation.absolute(),
        genome=settings.genome and [path.absolute() for path in settings.genome],
        checkpoint=settings.checkpoint if scratch else str(located(Path(settings.checkpoint)).absolute()),
        model=replace(settings.model, preset=preset),
        pooling=settings.pooling or ("last" if Ability.CAUSAL in abilities or is_variants else "mean"),
        conjoin=settings.conjoin or ["no" if settings.reverse_complement is False or config.rc_equivariant else "test"],
        length=length,
        chunk=settings.chosen_chunk(None, resumed=settings.resume),
        micro_tokens=compute.micro_tokens,
        learning_rate=settings.learning_rate or [1e-2 if settings.mode == "probe" else 1e-3],
        kmer=(0 if is_variants else 6 if is_species else 5) if settings.kmer is None else settings.kmer,
        devices=chosen_devices(settings.devices, compute.accelerator, resumed=settings.resume),
        accelerator=compute.accelerator,
        precision=compute.precision,
    )
    resolved = ResolvedFinetuneSettings(
        **{field.name: getattr(changed, field.name) for field in dataclasses.fields(changed)}
    )
    _check(resolved)
    if resolved.pooling == "last" and not is_variants:
        require_last_state(abilities, "--pooling last", "--pooling mean")
    resolved.out = chosen_folder(settings.out, lambda: _usual_folder(resolved))
    return resolved


def compute_of(settings: ResolvedFinetuneSettings) -> Compute:
    """Where the run computes."""
    return choose_compute(settings.accelerator, settings.precision, settings.micro_tokens)


def _check(settings: ResolvedFinetuneSettings) -> None:
    for use in settings.conjoin:
        if use not in STRAND_USES:
            raise InputError(f"--conjoin: {use!r} is none of {', '.join(STRAND_USES)}")
    for name in ("learning_rate", "conjoin"):
        if len(set(getattr(settings, name))) < len(getattr(settings, name)):
            raise InputError(f"--{name}: the same value is given twice")
    scratch = settings.checkpoint == FROM_SCRATCH
    if scratch and settings.mode == "probe":
        raise InputError("--mode probe: needs a pretrained model; give --checkpoint, or --mode full")
    if not scratch and replace(settings.model, activation_checkpointing=False) != ModelSettings():
        raise InputError("--model: a pretrained model has its sizes; leave these flags out")
    _check_task(settings)


def _check_task(settings: ResolvedFinetuneSettings) -> None:
    """Flags of the other task are refused rather than ignored."""
    defaults = {field.name: field.default for field in dataclasses.fields(FinetuneSettings)}
    of_sequences = ("data", "sequence_column", "subset", "kind", "dev_fraction", "refuse_overlap")
    of_species = ("species", "intervals_by_name", "examples", "fixed_windows", "evaluation_examples", "length_warmup")
    of_variants = ("variants", "genome", "split_by", "effect_column", "effects", "annotation")
    if settings.task == "variants" and settings.pooling != "last":  # which stands for none in config.yaml
        raise InputError("--pooling: not a flag of --task variants")
    others = {
        "species": ("label_columns", *of_sequences, *of_variants),
        "sequences": (*of_species, *of_variants),
        "variants": ("backprop", "chunk", *of_sequences, *of_species),
    }[settings.task]
    for name in others:
        if getattr(settings, name) != defaults[name]:
            raise InputError(f"--{name}: not a flag of --task {settings.task}")
    if settings.length_warmup and not warmup_lengths(settings.length_warmup, settings.length or 0):
        raise InputError(
            f"--length_warmup: --length {settings.length} has no shorter stage; take an even one from {2 * WARMUP_FROM}"
        )


def _usual_folder(settings: ResolvedFinetuneSettings) -> Path:
    source = settings.species or settings.data or settings.variants or Path("data")
    length = [str(settings.length)] if settings.length else []
    return Path("runs", "-".join([settings.task, source.stem, *length, time.strftime("%Y%m%d-%H%M%S")]))
