"""A fine-tuning run from settings to summary: the one module that knows the order of things.

RUN/
    config.yaml, environment.json    settings as resolved; versions, commit, command
    data.json                        splits, fingerprints, pretrained weights: a resumed run must find the same
    metrics.csv                      one row an epoch of every trial
    trials/seed-K-lr-R-CONJOIN/      a training each, see `dnamamba.finetuning.trial`
    test_read.json                   when the test split was read, and what had been selected by then
    seed-K/checkpoint/               the classifier with its card
    checkpoints/best                 a link to the seed that is best on dev: what `--checkpoint RUN` takes
    annotation.npz                   with --annotation: the trees on its features
    test_predictions.csv             one row a test example and seed
    summary.json                     the result
"""

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from dnamamba.cli import Ended
from dnamamba.errors import InputError
from dnamamba.finetuning.baselines.simple import simple_models
from dnamamba.finetuning.card import classifier_card
from dnamamba.finetuning.metrics import SELECT_BY, bootstrap_by_group, evaluate, over_seeds
from dnamamba.finetuning.output import print_header, print_result, write_metrics, write_predictions
from dnamamba.finetuning.predictions import predict_logits
from dnamamba.finetuning.resolve import FROM_SCRATCH, compute_of, resolve
from dnamamba.finetuning.settings import FinetuneSettings, ResolvedFinetuneSettings
from dnamamba.finetuning.tasks import sequences, species, variants
from dnamamba.finetuning.tasks.examples import Examples, FixedSet, Target, Task, canonical
from dnamamba.finetuning.trial import (
    Candidate,
    Diverged,
    EpochRow,
    Trial,
    TrialResult,
    best_weights,
    selected_by,
    standardisation,
)
from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import is_classifier, load_classifier, save_classifier
from dnamamba.formats.files import read_json
from dnamamba.inference.device import Compute, chunk_length, device_name, torch_device
from dnamamba.model.abilities import WITHOUT_CHUNKS, Ability, abilities_of, require
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import Backbone, LanguageModel
from dnamamba.model.parameters import parameter_count
from dnamamba.model.settings import model_config, model_name
from dnamamba.outputs import replace_link, write_atomically
from dnamamba.parallel.group import Group, joined
from dnamamba.parallel.processes import own_device, process_rank, together
from dnamamba.runs.folder import RunFolder
from dnamamba.runs.progress import clock, job_bar
from dnamamba.runs.recompute import choose_recompute
from dnamamba.runs.resume import DATA, kept_with_truncation, refuse_changes
from dnamamba.settings.fields import as_plain, flat, named_fields

TASKS: dict[str, Callable[[ResolvedFinetuneSettings], Task]] = {
    "species": species.build,
    "sequences": sequences.build,
    "variants": variants.build,
}
"""What `--task` takes. A task is its data: train, dev and test, the target and what is reported of them."""
TEST_READ = "test_read.json"


def finetune(requested: FinetuneSettings) -> Path:
    """Trains, selects on dev, reads the test split once, and summarises. Returns the run folder; raises
    `InputError`."""
    settings = resolve(requested)
    folder = RunFolder(settings.out)
    with folder.lock:
        return _finetune(requested, settings, folder)


def _finetune(requested: FinetuneSettings, settings: ResolvedFinetuneSettings, folder: RunFolder) -> Path:
    is_first = process_rank().rank == 0
    if settings.devices > 1:  # one that is alone stays on the GPU that its caller has chosen
        own_device(settings.accelerator)
    if settings.resume:
        if is_first and not settings.dry_run:
            folder.lock.take()
        test_was_read = (folder.path / TEST_READ).exists()
        recorded = _recorded_data(folder)
        kept = kept_with_truncation(settings, folder.config)
        if test_was_read:
            kept["seeds"] = "whose test split was read"
        if recorded is not None and recorded["pretrained_weights"] is None:
            kept["checkpoint"] = ""  # none, or one of others that has no fingerprint but its name
        refuse_changes(requested, settings, folder.config, kept=kept, files=recorded is None)
        if folder.summary.exists():
            raise InputError(f"{folder.path}: this run is finished, see {folder.summary}; nothing is left to resume")
    elif is_first and not settings.dry_run:
        folder.refuse_existing()
    start = _Start(settings)
    task = TASKS[settings.task](settings)
    data = {**task.facts, "pretrained_weights": (start.pretraining or {}).get("weights_sha256")}
    if settings.resume:
        _refuse_other_data(folder.path / DATA, recorded, data)
    compute = compute_of(settings)
    if settings.backprop != "whole":
        require(start, f"finetune --backprop {settings.backprop}", f"; or {WITHOUT_CHUNKS}")
        settings.chunk = settings.chunk or min(chunk_length(compute, start.config), settings.micro_tokens)
    if is_first:
        print_header(settings, start.first_model(task), task, compute)
    if settings.dry_run:
        return folder.path
    if is_first:
        config_text = yaml.safe_dump(as_plain(replace(settings, resume=False)), sort_keys=False)
        if settings.resume:
            folder.clean_up()
            write_atomically(folder.config, config_text)
        else:
            folder.create(config_text)
        folder.write_json(DATA, data)
        folder.write_environment(_devices(settings, compute))
    continued = f"continue from the last finished epoch with {folder.resume_command('finetune')}"
    agreed = flat(as_plain(settings), named_fields(type(settings)))
    try:
        with (
            together(settings.devices, folder.path, continued),
            joined(settings.devices, compute.accelerator == "gpu", agreed) as group,
        ):
            chosen = _train(settings, task, start, compute, folder, group)
            predicted = _predict(task, start, compute, folder, chosen, group)
        if is_first:
            _finish(settings, task, start, compute, folder, chosen, predicted)
    except (KeyboardInterrupt, Ended) as stopped:
        if not is_first:
            raise SystemExit(0) from None  # or torchrun and srun would take this for a crash
        _write_unfinished(settings, task, folder, stopped)
        print(f"   stopped  {continued}", flush=True)
        raise
    except torch.OutOfMemoryError:
        raise InputError(
            f"{compute.device}: out of memory: give less than --micro_tokens {settings.micro_tokens}, or "
            f"--recompute all; continue with {folder.resume_command('finetune')}"
        ) from None
    return folder.path


def _devices(settings: ResolvedFinetuneSettings, compute: Compute) -> list[str]:
    """What each process trains on."""
    return [device_name(compute.device)] * settings.devices


def _recorded_data(folder: RunFolder) -> dict[str, Any] | None:
    """data.json of a run; None where it was killed before it wrote that, and so before it trained anything."""
    path = folder.path / DATA
    return read_json(path) if path.is_file() else None


def _refuse_other_data(path: Path, recorded: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raises `InputError` where what is in the files has changed since the run began; the files may have moved."""
    if recorded is None:
        return
    before, after = _without_paths(recorded), _without_paths(json.loads(json.dumps(now)))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise InputError(f"{path}: other data than the run began with ({', '.join(changed)}); begin a new run")


def _without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts of a task that say what is in its files, without those that say where they are."""
    kept = {name: found for name, found in facts.items() if name not in ("data", "genome")}
    if "species" in kept:
        kept["species"] = {
            name: {key: value for key, value in found.items() if key != "fasta"}
            for name, found in kept["species"].items()
        }
    return kept


class _Start:
    """The model before training: pretrained, or new weights for each seed."""

    def __init__(self, settings: ResolvedFinetuneSettings) -> None:
        self.settings = settings
        self.pretraining: dict[str, Any] | None = None
        self._backbone: dict[str, torch.Tensor] = {}
        if settings.checkpoint == FROM_SCRATCH:
            self.config: ModelConfig = model_config(settings.model)
            return
        load = load_classifier if is_classifier(settings.checkpoint) else load_checkpoint
        model, self.pretraining = load(settings.checkpoint)  # type: ignore[operator]
        self._backbone = model.backbone.state_dict()
        self.config = model.config

    @property
    def abilities(self) -> Ability:
        """Of the backbone."""
        return abilities_of(self.config)

    def _head(self, task: Task, candidate: Candidate) -> HeadConfig:
        shift: tuple[float, ...] = ()
        scale: tuple[float, ...] = ()
        if task.target.kind == "regression":
            assert isinstance(task.train, FixedSet)
            shift, scale = standardisation(task.train.examples.labels)
        strands = candidate.strands.predicting
        pooling = "alleles" if self.settings.task == "variants" else self.settings.pooling
        return HeadConfig(task.target.kind, task.target.names, pooling, strands, shift, scale)

    def model(self, task: Task, candidate: Candidate, seed: int) -> SequenceClassifier:
        """A function of the seed: its head, and from scratch all weights."""
        torch.manual_seed(seed)
        head = self._head(task, candidate)
        if self._backbone:
            with torch.device("meta"):
                backbone = Backbone(self.config)
            backbone.load_state_dict({k: v.clone() for k, v in self._backbone.items()}, assign=True)
        else:
            backbone = LanguageModel(self.config).backbone
        positions, device = self.settings.micro_tokens, torch_device(self.settings.accelerator)
        backbone.recompute = choose_recompute(backbone, self.settings.recompute, self.settings.model, positions, device)
        return SequenceClassifier(self.config, head, backbone)

    def first_model(self, task: Task) -> SequenceClassifier:
        """That of the first trial."""
        return self.model(task, Candidate(self.settings.learning_rate[0], self.settings.conjoin[0]), self.settings.seed)

    def best(self, task: Task, result: TrialResult) -> SequenceClassifier:
        """The model of a finished trial."""
        model = self.model(task, result.candidate, result.seed)
        model.load_state_dict(best_weights(result.folder, torch.device("cpu")))
        return model


def _train(
    settings: ResolvedFinetuneSettings, task: Task, start: _Start, compute: Compute, folder: RunFolder, group: Group
) -> list[TrialResult]:
    """One result a seed. Of several candidates the first seed tries all, and dev decides. The first rank of the `group`
    writes and prints."""
    metric = SELECT_BY[task.target.kind]
    finished: list[TrialResult] = []

    def run(seed: int, candidate: Candidate) -> TrialResult:
        trial = Trial(task, settings, compute, seed, candidate, folder.path / "trials", group)

        def report(rows: list[EpochRow]) -> None:
            write_metrics(folder, [*(row for done in finished for row in done.rows), *rows])
            _report(rows[-1], trial.epochs, metric)

        result = trial.run(lambda: start.model(task, candidate, seed), report)
        finished.append(result)
        if not group.is_first:
            return result
        write_metrics(folder, [row for done in finished for row in done.rows])
        label = f"seed {seed}, learning rate {candidate.rate}, {candidate.strands.description}"
        value = result.dev[metric] if math.isfinite(result.dev[metric]) else result.dev["loss"]
        best = f"best {selected_by([result], metric)} {value:.4f} at epoch {result.epoch}"
        print(f"{label}: {best}, {clock(result.seconds)}", flush=True)
        return result

    candidates = [Candidate(rate, use) for use in settings.conjoin for rate in settings.learning_rate]
    first: list[TrialResult] = []
    for candidate in candidates:
        try:
            first.append(run(settings.seed, candidate))
        except Diverged as error:
            if candidate == candidates[-1] and not first:
                raise
            if group.is_first:
                print(f"{error}: left out", flush=True)
    best = max(first, key=lambda result: result.rank(metric))
    rest = range(settings.seed + 1, settings.seed + settings.seeds)
    return [best] + [run(seed, best.candidate) for seed in rest]


def _write_unfinished(
    settings: ResolvedFinetuneSettings, task: Task, folder: RunFolder, stopped: BaseException
) -> None:
    """What is known of a run that a signal stopped: its task, and the last epoch; `metrics.csv` has them all."""
    rows = folder.read_metrics() if folder.metrics.exists() else []
    last = {name: float(text) for name, text in rows[-1].items() if name.startswith("dev_")} if rows else {}
    reached = {
        "epoch": len(rows),
        "epochs": _all_epochs(settings, task),
        "task": settings.task,
        "kind": task.target.kind,
        "classes": list(task.target.names),
        "checkpoint": settings.checkpoint,
        "last_epoch": last,
    }
    folder.write_unfinished((stopped.signal if isinstance(stopped, Ended) else signal.SIGINT).name, reached)


def _all_epochs(settings: ResolvedFinetuneSettings, task: Task) -> int:
    """Of all trials together."""
    trials = len(settings.conjoin) * len(settings.learning_rate) + settings.seeds - 1
    steps_per_epoch = math.ceil(task.train.size / settings.batch_size)
    return trials * (math.ceil(settings.steps / steps_per_epoch) if settings.steps else settings.epochs)


def _report(row: EpochRow, epochs: int, metric: str) -> None:
    print(
        f"seed {row['seed']}  epoch {row['epoch']}/{epochs}  train {row['train_loss']:.4f}  dev {row['dev_loss']:.4f}  "
        f"{metric} {row[f'dev_{metric}']:.4f}  {row['examples_per_second']:,.0f} examples/s",
        flush=True,
    )


class _Predicted(NamedTuple):
    """What the selected models say of dev and test."""

    selection: dict[str, Any]
    read_at: str
    """When the test split was read first"""
    test: Examples
    on_test: list[np.ndarray]
    """(examples, outputs) of each seed"""
    on_dev: list[np.ndarray]
    """The same of dev, where the task measures something by it"""


def _predict(
    task: Task, start: _Start, compute: Compute, folder: RunFolder, chosen: list[TrialResult], group: Group
) -> _Predicted:
    """The test split is read here and nowhere else, after everything has been selected."""
    selection = {
        "by": selected_by(chosen, SELECT_BY[task.target.kind]),
        **chosen[0].candidate._asdict(),
        "epochs": {str(result.seed): result.epoch for result in chosen},
    }
    record = folder.path / TEST_READ
    if group.is_first:
        if record.exists() and read_json(record)["selection"] != selection:
            raise InputError(f"{record}: the test split was read for another selection; begin a new run")
        if not record.exists():
            folder.write_json(TEST_READ, {"read_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "selection": selection})
    read_at = group.as_first(read_json(record)["read_at"] if group.is_first else "")
    found = _Predicted(selection, read_at, task.test.read(selection), [], [])
    for result in chosen:
        model = start.best(task, result).to(compute.device)
        with job_bar(f"predicting test, seed {result.seed}", "examples", group.is_first) as progress:
            logits = predict_logits(model, found.test, compute, progress, group)
        group.agree(compute.device)
        found.on_test.append(model.predictions(logits).cpu().numpy())
        if task.measure:
            logits = predict_logits(model, task.dev, compute, group=group)
            found.on_dev.append(model.predictions(logits).cpu().numpy())
    return found


def _finish(
    settings: ResolvedFinetuneSettings,
    task: Task,
    start: _Start,
    compute: Compute,
    folder: RunFolder,
    chosen: list[TrialResult],
    predicted: _Predicted,
) -> None:
    """Baselines, checkpoints, tables and the summary."""
    metric = SELECT_BY[task.target.kind]
    test, predictions = predicted.test, predicted.on_test
    baselines = simple_models(task, test, settings.kmer)
    scores = [evaluate(values, test.labels, task.target) for values in predictions]
    for result, score in zip(chosen, scores, strict=True):
        card = classifier_card(settings, task, start.pretraining, result, score, baselines, _devices(settings, compute))
        checkpoint = folder.path / f"seed-{result.seed}" / "checkpoint"
        save_classifier(start.best(task, result), checkpoint, card, overwrite=True)
    best = max(chosen, key=lambda result: result.rank(metric))
    replace_link(folder.checkpoints / "best", Path("..", f"seed-{best.seed}", "checkpoint"))
    write_predictions(folder.path / "test_predictions.csv", task.target, test, chosen, predictions)

    summary: dict[str, Any] = {
        "task": settings.task,
        "kind": task.target.kind,
        "classes": list(task.target.names),
        "mode": settings.mode,
        "checkpoint": settings.checkpoint,
        "preset": model_name(settings.model) if settings.checkpoint == FROM_SCRATCH else None,
        "parameters": parameter_count(start.model(task, chosen[0].candidate, 0)),
        "length": task.length,
        "seeds": [result.seed for result in chosen],
        "selection": predicted.selection,
        "dev": over_seeds([result.dev for result in chosen]),
        "test": over_seeds(scores),
        "test_intervals": _intervals(task.target, test, predictions),
        "test_without_overlap": _without_overlap(task, test, predictions),
        "baselines": baselines,
        "seconds": sum(result.seconds for result in chosen),
        "test_read_at": predicted.read_at,
        **task.facts,
        **(task.measure(test, predictions, predicted.on_dev) if task.measure else {}),
    }
    if task.keep:
        task.keep(folder.path)
    folder.write_summary(summary)
    print_result(summary, folder, best)


def _intervals(target: Target, test: Examples, predictions: list[np.ndarray]) -> dict[str, Any]:
    """95 % intervals from resampling groups of neighbours; the seeds' mean for each example."""
    if target.kind != "multiclass":
        return {}
    correct = np.mean([values.argmax(1) == test.labels for values in predictions], axis=0)
    return {"accuracy": bootstrap_by_group(correct, [origin.group for origin in test.origins])._asdict()}


def _without_overlap(task: Task, test: Examples, predictions: list[np.ndarray]) -> dict[str, Any] | None:
    """The metrics on test sequences that train does not hold, on either strand; None where it holds none or all."""
    if not isinstance(task.train, FixedSet):
        return None
    known = {canonical(sequence) for sequence in task.train.examples.sequences()}
    new = np.array([canonical(sequence) not in known for sequence in test.sequences()])
    if new.all() or not new.any():
        return None
    found = over_seeds([evaluate(values[new], test.labels[new], task.target) for values in predictions])
    return {"examples": int(new.sum()), **found}
