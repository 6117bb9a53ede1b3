"""The part of a report about fine-tunings: results on test, baselines, what is taken for what, and how to repeat it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnamamba.pages.html import figure, labelled, table, text
from dnamamba.pages.run import ReportedRun
from dnamamba.pictures.accuracy_by_length import plot_accuracy_by_length
from dnamamba.pictures.calibration import calibrations, plot_calibration
from dnamamba.pictures.confusion import plot_confusion
from dnamamba.pictures.roc import plot_roc_and_calibration
from dnamamba.pictures.run_curves import plot_run_curves
from dnamamba.pictures.run_tables import accuracy_rows
from dnamamba.runs.summary import comparisons, summary_lines

MOST_CURVES = 8
"""Classes with a ROC curve: those with the most test examples"""
BINS = 6
"""Of test examples by length, with equal numbers in each"""


class Finetuning(ReportedRun):
    """What the run folder of a fine-tuning holds."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.metrics = self.folder.read_metrics() if self.folder.metrics.is_file() else []
        predictions = path / "test_predictions.csv"
        self.rows: list[dict[str, str]] = []
        if predictions.is_file():
            with predictions.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if row["seed"] == rows[0]["seed"]]

    @property
    def classes(self) -> list[str]:
        """Those with a probability in `rows`; none of a regression."""
        return [name[2:] for name in (self.rows[0] if self.rows else {}) if name.startswith("p_")]


def finetuning_section(run: Finetuning) -> str:
    """HTML of one run."""
    parts = [f"<h2>{text(run.name)}</h2>", labelled([*run.lines, *summary_lines(run.summary)])]
    parts += ["<h3>Test</h3>", _results(run.summary), _curves(run)]
    if run.rows and run.classes and "label" in run.rows[0]:
        parts += _multiclass(run)
    elif run.rows and run.classes:
        parts += _multilabel(run)
    elif run.rows:
        parts += _regression(run)
    return "\n".join([*parts, *_reliability(run.summary)])


def _reliability(summary: Mapping[str, Any]) -> list[str]:
    """Of a variant classifier with an annotation: are the probabilities of each of its predictors true shares?"""
    if "annotation" not in (variants := summary.get("variants", {})):
        return []
    predictors, positive = calibrations(variants), summary.get("classes", ["", "positive"])[-1]
    return [
        figure(
            lambda path: plot_calibration(predictors, path, title="calibration on test", positive=positive),
            "Test variants in tenths by the probability that a predictor gives them, against the share that is "
            f"{text(positive)}.",
        )
    ]


def by_length(runs: list[Finetuning]) -> str:
    """HTML with the accuracy of runs at several lengths; none where all have one."""
    known = [run for run in runs if "accuracy" in run.summary.get("test", {}) and run.summary.get("length")]
    if len({run.summary["length"] for run in known}) < 2:
        return ""
    rows = accuracy_rows([("the models", run.path) for run in known])
    return figure(
        lambda path: plot_accuracy_by_length(rows, path, title="accuracy by length"),
        "Accuracy on test of the runs, each at its length, with its interval.",
    )


def comparison(runs: list[Finetuning]) -> str:
    """HTML that compares several runs; none of one."""
    if len(runs) < 2:
        return ""
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.summary.get("test", {})))
    rows = [(run.name, *(_mean(run.summary.get("test", {}).get(metric)) for metric in metrics)) for run in runs]
    return "\n".join(["<h2>Fine-tunings compared, on test</h2>", table(("run", *metrics), rows), by_length(runs)])


def _mean(found: Mapping[str, Any] | None) -> str:
    if not found or found.get("mean") is None:
        return "–"
    return f"{found['mean']:.4f}" + (f" ± {found['std']:.4f}" if found.get("std") is not None else "")


def _results(summary: Mapping[str, Any]) -> str:
    intervals = summary.get("test_intervals", {})
    rows = []
    for metric, found in summary.get("test", {}).items():
        ends = intervals.get(metric) or {}
        known = ends.get("low") is not None and ends.get("high") is not None
        rows.append((metric, _mean(found), f"{ends['low']:.4f} to {ends['high']:.4f}" if known else "–"))
    baselines = [
        (each.name, each.metric, f"{each.simple:.4f}", f"{each.model:.4f}", "no" if each.is_as_good else "yes")
        for each in comparisons(dict(summary))
    ]
    parts = [table(("metric, higher is better", "value", "95 % interval"), rows)]
    if baselines:
        parts.append(table(("baseline", "metric", "its value", "the model", "the model is better"), baselines))
    if read_at := summary.get("test_read_at"):
        parts.append(f'<p class="muted">Test was read once, at {text(read_at)}; choices were made on dev.</p>')
    return "\n".join(parts)


def _curves(run: Finetuning) -> str:
    """The metric by which the trials were compared, on dev, by epoch."""
    by = run.summary.get("selection", {}).get("by", "").removeprefix("dev ")
    trials: dict[str, list[dict[str, str]]] = {}
    for row in run.metrics:
        name = f"seed {row['seed']}, rate {row['peak_learning_rate']}, both strands: {row['conjoin']}"
        trials.setdefault(name, []).append(row)
    if not by or not any(row.get(f"dev_{by}") and float(row["epoch"]) > 1 for row in run.metrics):
        return ""  # of a single epoch there is no curve
    label = f"{by} on dev, {'lower' if by == 'loss' else 'higher'} is better"
    return figure(
        lambda path: plot_run_curves(trials, path, column=f"dev_{by}", label=label, against="epoch"),
        "Each trial on dev, epoch by epoch; the best epoch of the best trial is the one that test saw.",
    )


def _multiclass(run: Finetuning) -> list[str]:
    names = run.classes
    number = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for row in run.rows:
        counts[number[row["label"]], number[row["predicted"]]] += 1
    parts = [
        figure(
            lambda path: plot_confusion(counts, names, path, title="confusion on test"),
            "Rows are true classes, columns predicted ones: a perfect model fills the diagonal alone.",
        )
    ]
    labels = {name: np.array([row["label"] == name for row in run.rows]) for name in names}
    shown = sorted(names, key=lambda name: -int(labels[name].sum()))[:MOST_CURVES] if len(names) > 2 else names[-1:]
    parts.append(_roc(run, {name: labels[name] for name in shown}))
    right = np.array([row["label"] == row["predicted"] for row in run.rows])
    return [*parts, *_by_length(run, right)]


def _multilabel(run: Finetuning) -> list[str]:
    names = [name for name in run.classes if f"label_{name}" in run.rows[0]][:MOST_CURVES]
    return [_roc(run, {name: np.array([float(row[f"label_{name}"]) > 0.5 for row in run.rows]) for name in names})]


def _roc(run: Finetuning, labels: Mapping[str, np.ndarray]) -> str:
    import polars as pl

    frames = []
    for name, label in labels.items():
        p = np.array([float(row[f"p_{name}"]) for row in run.rows])
        columns = {"label": label.astype(np.int64), "score": p, "probability": p}
        frames.append(pl.DataFrame({"predictor": [name] * len(p), **columns}))
    only = len(labels) == 1
    positive, negative = (next(iter(labels)), "another class") if only else ("the class", "another")
    return figure(
        lambda path: plot_roc_and_calibration(
            pl.concat(frames), path, title="ROC and calibration on test", positive=positive, negative=negative
        ),
        "Left: how well a class is distinguished from the others. Right: whether predicted probabilities are true "
        "shares.",
    )


def _by_length(run: Finetuning, right: np.ndarray) -> list[str]:
    """The accuracy on test by length, where lengths differ."""
    lengths = np.array([int(row["end"]) - int(row["start"]) for row in run.rows])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)[1:-1], method="nearest"))
    if len(np.unique(lengths)) < 3:
        return []
    bins = np.searchsorted(edges, lengths, side="left")
    rows = []
    for each in np.unique(bins).tolist():
        chosen = right[bins == each]
        low, high = _wilson(int(chosen.sum()), len(chosen))
        at = str(int(np.median(lengths[bins == each])))
        ends = {"low": str(low), "high": str(high)}
        rows.append({"model": "the model", "length": at, "accuracy": str(float(chosen.mean())), **ends})
    return [
        figure(
            lambda path: plot_accuracy_by_length(rows, path, title="accuracy on test by length"),
            "Test examples in bins of equal numbers by their length; bars are 95 % intervals (Wilson).",
        )
    ]


def _wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, divisor = right / of, 1 + z * z / of
    centre = (share + z * z / (2 * of)) / divisor
    half = z * float(np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))) / divisor
    return centre - half, centre + half


def _regression(run: Finetuning) -> list[str]:
    rows = []
    for column in run.rows[0]:
        if column.startswith("value_") and f"label_{column[6:]}" in run.rows[0]:
            true = np.array([float(row[f"label_{column[6:]}"]) for row in run.rows])
            value = np.array([float(row[column]) for row in run.rows])
            error = float(np.sqrt(((true - value) ** 2).mean()))
            spread = float(np.corrcoef(true, value)[0, 1]) if len(true) > 1 and true.std() and value.std() else np.nan
            rows.append((column[6:], f"{len(true):,}", f"{spread:.4f}", f"{error:.4g}", f"{true.std():.4g}"))
    header = ("target", "test examples", "Pearson correlation", "root mean squared error", "spread of the target")
    return [table(header, rows)]
