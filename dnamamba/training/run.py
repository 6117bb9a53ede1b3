"""A pretraining run from settings to summary: the one module that knows the order of things."""

import logging
import math
import threading
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import PyTorchProfiler

from dnamamba.errors import InputError
from dnamamba.genome.markov import MarkovScore
from dnamamba.inference.device import device_name, torch_device
from dnamamba.inference.provenance import contig_lengths
from dnamamba.model.abilities import WITHOUT_CHUNKS, Ability, abilities_of, require
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.settings import model_config
from dnamamba.outputs import os_errors, write_atomically
from dnamamba.parallel.context import SequenceParts
from dnamamba.parallel.processes import process_rank, together
from dnamamba.parallel.strategies import RanksStrategy, ShardedStrategy
from dnamamba.parallel.weights import ShardedWeights, WholeWeights
from dnamamba.pictures.learning_curve import plot_learning_curve
from dnamamba.pictures.validation_by_class import plot_validation_by_class
from dnamamba.runs.folder import RunFolder, environment
from dnamamba.runs.lines import print_lines
from dnamamba.runs.progress import clock, si
from dnamamba.runs.recompute import choose_recompute
from dnamamba.runs.resume import (
    DATA,
    kept_with_truncation,
    recorded_splits,
    refuse_changes,
    refuse_fewer_steps,
    refuse_other_splits,
)
from dnamamba.runs.schedule import learning_rate
from dnamamba.runs.summary import verdict
from dnamamba.settings.fields import as_plain, flat, named_fields
from dnamamba.training.backprop.captured import Captured
from dnamamba.training.backprop.choose import window_gradient
from dnamamba.training.backprop.whole import whole
from dnamamba.training.baseline import best_markov, bits_over_all, sees_both_sides
from dnamamba.training.callbacks import RunControl
from dnamamba.training.checkpoints import TRAINER_STATE, CheckpointKeeper, TrainerStateIO
from dnamamba.training.estimate import advice, estimate, is_worth_measuring, memory_of_each
from dnamamba.training.header import print_header
from dnamamba.training.module import PretrainModule
from dnamamba.training.prepare import Prepared, prepare_data
from dnamamba.training.resolve import (
    dense_steps,
    last_copies,
    resolve,
    validation_chunk,
    warmup_lengths,
    why_no_graph,
    windows_per_pass,
)
from dnamamba.training.settings import PretrainSettings, ResolvedPretrainSettings
from dnamamba.training.validation import perplexity, report_lines


def pretrain(requested: PretrainSettings) -> Path:
    """Trains, validates and summarises; returns the run folder.

    Raises `InputError` for everything that the user can fix, and `SystemExit` with 128 + the signal's number when one
    stopped the run early (after saving a checkpoint).
    """
    settings = resolve(requested)
    folder = RunFolder(settings.out)
    with folder.lock:
        try:
            return _pretrain(requested, settings, folder)
        except torch.OutOfMemoryError:
            raise InputError(
                f"out of memory: give less than --micro_tokens {settings.micro_tokens}, or --recompute all"
            ) from None


def _pretrain(requested: PretrainSettings, settings: ResolvedPretrainSettings, folder: RunFolder) -> Path:
    first_process = process_rank().rank == 0
    recorded = None
    if settings.resume:
        if first_process and not settings.dry_run:
            folder.lock.take()
        recorded = recorded_splits(folder)
        refuse_changes(requested, settings, folder.config, kept=_kept(settings, folder), files=recorded is None)
        refuse_fewer_steps(folder, settings.max_steps)
    elif first_process:
        folder.refuse_existing()

    config = model_config(settings.model)
    prepared = prepare_data(settings)
    refuse_other_splits(folder, recorded, prepared.fingerprint)
    torch.manual_seed(settings.seed)
    model = LanguageModel(config)
    if settings.chunk is not None:
        require(model, f"pretrain --backprop {settings.backprop}", f"; or {WITHOUT_CHUNKS}")
    positions = windows_per_pass(settings) * (settings.chunk or settings.length) // settings.context_parallel
    device = torch_device(settings.accelerator)
    model.backbone.recompute = choose_recompute(model.backbone, settings.recompute, settings.model, positions, device)
    if settings.dry_run:
        if first_process:
            print_header(settings, config, model, prepared)
            _print_estimate(settings, model, prepared)
            print_lines([("--recompute", memory_of_each(settings, model))])
        return folder.path
    if first_process:
        # As the run's settings, whoever started it this time: `--config` may take them to a new run.
        config_text = yaml.safe_dump(as_plain(replace(settings, resume=False, profile=False)), sort_keys=False)
        if settings.resume:
            folder.clean_up()
            write_atomically(folder.config, config_text)
        else:
            folder.create(config_text)
        folder.write_json(DATA, {"splits": prepared.fingerprint})
        folder.write_environment(_devices(settings))
        for genome in prepared.genomes:
            genome.splits.write_bed(folder.path / (f"splits-{genome.name}.bed" if genome.name else "splits.bed"))
        print_header(settings, config, model, prepared)
        if settings.devices == 1 and not settings.resume and is_worth_measuring(settings, model):
            _print_estimate(settings, model, prepared)

    with together(settings.devices, folder.path, f"continue with: {folder.resume_command('pretrain')}"):
        makes_the_group = settings.devices > 1 and not torch.distributed.is_initialized()
        with os_errors(folder.path):  # those of TensorBoard's files do not say where
            control = _train(settings, model, prepared, folder)
        if makes_the_group:
            torch.distributed.destroy_process_group()  # by all at once: NCCL's end waits for the peers
    if not first_process:
        # Code 0 also when a signal stopped the run: else torchrun and srun would take this for a crash.
        return folder.path
    if control.stopped_by is not None:
        reached = {"step": control.step, "steps": settings.max_steps}
        known = _draw_and_summarise(settings, prepared, folder, control, [])  # no Markov models: a signal does not wait
        folder.write_unfinished(control.stopped_by.name, reached | known)
        print(f"stopped by {control.stopped_by.name}; continue with: {folder.resume_command('pretrain')}")
        raise SystemExit(128 + control.stopped_by)
    _finish(settings, prepared, folder, control)
    return folder.path


def _kept(settings: ResolvedPretrainSettings, folder: RunFolder) -> dict[str, str]:
    """Settings that this run may not change when it is resumed, though others may; and which runs those are."""
    kept = kept_with_truncation(settings, folder.config)
    staged = {
        "length_warmup": len(warmup_lengths(settings)) > 1,
        "copies_warmup": dense_steps(settings) > 0,
        "copies_cooldown": settings.copies and last_copies(settings) < settings.max_steps,
    }
    flag = next((name for name, has_stages in staged.items() if has_stages), "")
    if flag:
        kept["max_steps"] = f"with --{flag}, whose stages are shares of the steps,"
    return kept


def _train(
    settings: ResolvedPretrainSettings, model: LanguageModel, prepared: Prepared, folder: RunFolder
) -> RunControl:
    _quiet_lightning()
    captured = None if why_no_graph(settings) else Captured(whole)
    parts = SequenceParts(settings.context_parallel)
    module = PretrainModule(
        model,
        gradient=window_gradient(settings, prepared.weights, captured or whole, parts),
        learning_rate=partial(
            learning_rate,
            peak=settings.learning_rate,
            steps=settings.max_steps,
            warmup_fraction=settings.warmup_fraction,
            final_fraction=settings.final_learning_rate,
        ),
        weight_decay=settings.weight_decay,
        gradient_clip=settings.gradient_clip,
        windows_per_pass=partial(windows_per_pass, settings),
        chunk=settings.chunk,
        loss_weights=prepared.weights,
        gradient_outlier=settings.gradient_outlier,
        parts=parts,
        weights=ShardedWeights() if settings.is_sharded else WholeWeights(),
    )
    keeper = CheckpointKeeper(folder.checkpoints, keep=settings.keep, provenance=_provenance(settings, prepared))
    control = RunControl(
        folder,
        keeper,
        steps=settings.max_steps,
        log_every=settings.log_every,
        validation_every=settings.validation_every,
        save_every=settings.save_every,
        save_minutes=settings.save_minutes,
        on_fault=settings.on_fault,
        patience=settings.patience,
        validation_chunk=validation_chunk(settings),
    )
    devices_here = process_rank().local_size or settings.devices
    trainer = L.Trainer(
        accelerator=settings.accelerator,
        devices=devices_here,
        num_nodes=settings.devices // devices_here,
        strategy=_strategy(settings),
        plugins=[LightningEnvironment(), TrainerStateIO()],
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        max_steps=settings.max_steps,
        callbacks=[control],
        profiler=_profiler(folder) if settings.profile else None,
        logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
        limit_val_batches=0,  # RunControl validates: every window once, whatever the number of processes
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert trainer.world_size == settings.devices
    resumed_from = folder.last_checkpoint() if settings.resume else None
    if settings.resume and trainer.is_global_zero:
        print(f"resuming from {resumed_from}" if resumed_from else "no checkpoint yet: starting from the first step")
    try:
        trainer.fit(
            module,
            datamodule=prepared.data,
            ckpt_path=None if resumed_from is None else resumed_from / TRAINER_STATE,
            weights_only=True,
        )
    finally:
        if captured is not None:
            captured.free()
    return control


def _strategy(settings: ResolvedPretrainSettings) -> Any:
    """Lightning's."""
    if settings.devices == 1:
        return "auto"
    agreed = flat(as_plain(settings), named_fields(type(settings)))
    return ShardedStrategy(agreed, settings.devices) if settings.is_sharded else RanksStrategy(agreed)


def _print_estimate(settings: ResolvedPretrainSettings, model: LanguageModel, prepared: Prepared) -> None:
    """Before a run starts: what it will take, and what to do where that is too long."""
    expected = estimate(settings, model, prepared)
    print_lines([("estimate", str(expected)), ("note", advice(settings, model, expected))])


def _profiler(folder: RunFolder) -> PyTorchProfiler:
    """Traces three steps after two to warm up, and writes profile.json."""
    return PyTorchProfiler(
        schedule=torch.profiler.schedule(wait=2, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(folder.path / "profile.json")),
        export_to_chrome=False,
    )


def _quiet_lightning() -> None:
    """Its notices speak to programmers; what a user should know is in the header."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    threading.excepthook = _excepthook


def _excepthook(raised: threading.ExceptHookArgs) -> None:
    """TensorBoard writes from a thread of its own, and raises in ours what it raises there."""
    if not (isinstance(raised.exc_value, OSError) and type(raised.thread).__module__.startswith("tensorboard")):
        threading.__excepthook__(raised)


def _devices(settings: ResolvedPretrainSettings) -> list[str]:
    """What each process trains on."""
    return [device_name(torch_device(settings.accelerator))] * settings.devices


def _provenance(settings: ResolvedPretrainSettings, prepared: Prepared) -> dict[str, Any]:
    return {
        "settings": as_plain(settings),
        "genomes": [
            {
                "name": g.name,
                "source": g.store.source,
                "fingerprint": g.store.fingerprint,
                "weight": g.weight,
                "contigs": contig_lengths(g.contigs.chosen),
            }
            for g in prepared.genomes
        ],
        "splits": prepared.fingerprint,
        **environment(_devices(settings)),
    }


def _finish(settings: ResolvedPretrainSettings, prepared: Prepared, folder: RunFolder, control: RunControl) -> None:
    markov = best_markov(settings, prepared)
    summary = _draw_and_summarise(settings, prepared, folder, control, markov)
    folder.write_summary(summary)
    by_genome, by_class = summary.get("genomes", {}), folder.read_validation()
    bits, tokens, markov_bits = control.validation_bits_per_base, summary["tokens"], summary["markov_bits_per_base"]
    if control.out_of_patience:
        print(f"   stopped  early: {settings.patience} validations without a new best (step {control.best_step})")
    which = "masked " if Ability.PREDICTS_MASKED_BASE in abilities_of(model_config(settings.model)) else ""
    print(f"validation  {bits:.4f} bits/base, perplexity {perplexity(bits):.4f} over {which}A, C, G, T")
    if markov_bits is not None and math.isfinite(bits):
        orders = ", ".join(str(score.order) for score in markov)
        sides = ", of each base from both sides" if markov[0].both_sides else ""
        print(f"    Markov  {markov_bits:.4f} bits/base (order {orders}{sides}); {verdict(bits, markov_bits)}")
    for name, figures in by_genome.items():
        print(f"{name[:10]:>10}  " + ", ".join(f"{key.replace('_', ' ')} {v:.4f}" for key, v in figures.items()))
    for line in report_lines(by_class):
        print(line)
    print(f"  training  {si(tokens)}bases in {clock(control.seconds)}, {si(tokens / control.seconds)}bases/s")
    print(f"   results  {folder.learning_curve}, {folder.validation_plot}, {folder.summary}")
    print(f"checkpoint  {folder.checkpoints / ('best' if control.best_step else 'last')}")
    if control.out_of_patience:
        print(f"      next  continue all the same: {folder.resume_command('pretrain')} --patience 0")
    elif not settings.length_warmup:
        print(f"      next  train longer: {folder.resume_command('pretrain')} --max_steps {2 * settings.max_steps}")


def _draw_and_summarise(
    settings: ResolvedPretrainSettings,
    prepared: Prepared,
    folder: RunFolder,
    control: RunControl,
    markov: list[MarkovScore],
) -> dict[str, Any]:
    """Draws the pictures of what there is; returns what summary.json says."""
    rows, by_class = folder.read_metrics(), folder.read_validation()
    markov_bits = bits_over_all(markov)
    if rows:
        plot_learning_curve(rows, folder.learning_curve, title=folder.path.name, markov=markov_bits)
    if by_class:
        plot_validation_by_class(
            by_class,
            folder.validation_plot,
            title=folder.path.name,
            markov=markov_bits,
            both_sides=sees_both_sides(settings),
        )
    by_genome: dict[str, dict[str, float]] = {
        genome.name: {"validation_bits_per_base": control.bits_by_genome.get(genome.name, math.nan)}
        for genome in prepared.genomes
    }
    for figures, score in zip(by_genome.values(), markov, strict=bool(markov)):
        figures["markov_bits_per_base"] = score.bits_per_base
    bits, tokens = control.validation_bits_per_base, control.bases_read
    return {
        "validation_bits_per_base": _finite(bits),
        "validation_perplexity": _finite(perplexity(bits)),
        "best_validation_bits_per_base": _finite(control.best_bits_per_base),
        "markov_bits_per_base": markov_bits,
        "markov_order": max((score.order for score in markov), default=None),
        **({"markov_both_sides": True} if any(score.both_sides for score in markov) else {}),
        **({"genomes": by_genome} if len(by_genome) > 1 else {}),
        "tokens": tokens,
        "seconds": control.seconds,
        "tokens_per_second": tokens / control.seconds if control.seconds else None,
    }


def _finite(number: float) -> float | None:
    """JSON has no NaN."""
    return number if math.isfinite(number) else None
