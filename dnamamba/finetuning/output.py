"""What a fine-tuning run prints, and its tables."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from dnamamba.finetuning.resolve import FROM_SCRATCH
from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import Examples, Target, Task
from dnamamba.finetuning.trial import STRAND_USES, Candidate, EpochRow, TrialResult
from dnamamba.inference.device import Compute, device_name
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.parameters import parameter_count
from dnamamba.outputs import write_atomically
from dnamamba.runs.folder import RunFolder
from dnamamba.runs.lines import print_lines
from dnamamba.runs.summary import comparison_lines, figures, variant_lines


def print_header(settings: ResolvedFinetuneSettings, model: SequenceClassifier, task: Task, compute: Compute) -> None:
    """What the run trains on what, before it begins."""
    source = "from scratch" if settings.checkpoint == FROM_SCRATCH else f"from {settings.checkpoint}"
    steps_per_epoch = math.ceil(task.train.size / settings.batch_size)
    steps = settings.steps or settings.epochs * steps_per_epoch
    rates = ", ".join(Candidate(rate, settings.conjoin[0]).rate for rate in settings.learning_rate)
    uses = " or ".join(STRAND_USES[use].description for use in settings.conjoin)
    lines = [
        ("task", f"{settings.task}, {settings.mode}"),
        *task.notes,
        (
            "model",
            f"{model.config.n_layer} blocks x {model.config.d_model}, {parameter_count(model):,} parameters, {source}; "
            f"{'both alleles' if settings.task == 'variants' else f'{settings.pooling} state'}",
        ),
        ("device", f"{_several(settings)}{device_name(compute.device)}, {compute.precision}"),
        ("gradients", "" if settings.chunk is None else f"{settings.backprop}, {settings.chunk:,} bases a chunk"),
        ("kernels", describe_kernels(compute.device)),
        (
            "training",
            f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}, {steps:,} steps of {settings.batch_size} "
            f"examples ({steps / steps_per_epoch:.3g} epochs), learning rate {rates}, {uses}",
        ),
        ("run folder", str(settings.out)),
    ]
    print_lines(lines)


def _several(settings: ResolvedFinetuneSettings) -> str:
    held = " (weights, gradients and moments in parts: FSDP2)" if settings.is_sharded else ""
    return "" if settings.devices == 1 else f"{settings.devices} x{held} "


def print_result(summary: dict[str, Any], folder: RunFolder, best: TrialResult) -> None:
    """The figures of a finished run."""
    for split in ("dev", "test"):
        print(f"{split:>10}  {figures(summary[split])}")
    if unseen := summary["test_without_overlap"]:
        metrics = {name: found for name, found in unseen.items() if name != "examples"}
        print(f"{'':>10}  {figures(metrics)} on the {unseen['examples']:,} that are not in train")
    if accuracy := summary["test_intervals"].get("accuracy"):
        print(
            f"  interval  accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}], "
            f"95 % from resampling {accuracy['groups']:,} groups"
        )
    print_lines(variant_lines(summary))
    for name, found in summary["baselines"].items():
        shown = "GC, N and length alone" if name == "composition" else name
        print(f"  baseline  {shown}: {', '.join(f'{key} {value:.4f}' for key, value in found.items())}")
    print_lines(comparison_lines(summary))
    print(f"   results  {folder.summary}, {folder.path / 'test_predictions.csv'}")
    print(f"checkpoint  {folder.path / f'seed-{best.seed}' / 'checkpoint'}")


def write_predictions(
    path: Path, target: Target, test: Examples, chosen: list[TrialResult], predictions: list[np.ndarray]
) -> None:
    """test_predictions.csv: a row an example and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    outputs = [f"{'value' if target.kind == 'regression' else 'p'}_{name}" for name in target.names]
    truth = ["label"] if target.kind == "multiclass" else [f"label_{name}" for name in target.names]
    predicted = ["predicted"] if target.kind == "multiclass" else []
    variant = ["id", "ref", "alt"] if any(origin.variant for origin in test.origins) else []
    writer.writerow(["seed", "contig", "start", "end", *variant, "group", *truth, *predicted, *outputs])
    for result, values in zip(chosen, predictions, strict=True):
        for origin, label, row in zip(test.origins, test.labels, values, strict=True):
            if target.kind == "multiclass":
                known = [target.names[label], target.names[int(row.argmax())]]
            else:
                known = [f"{number:g}" for number in label]
            where = [origin.contig, origin.start, origin.end, *(origin.variant or ()), origin.group]
            writer.writerow([result.seed, *where, *known, *(f"{number:.6g}" for number in row)])
    write_atomically(path, text.getvalue())


def write_metrics(folder: RunFolder, rows: list[EpochRow]) -> None:
    """metrics.csv: a row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        rate = Candidate(float(row["peak_learning_rate"]), str(row["conjoin"])).rate
        short = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow(short | {"peak_learning_rate": rate})
    write_atomically(folder.metrics, text.getvalue())
