"""The results of a workflow's finished runs as tables and a picture.

    python pipelines/collect.py WORKFLOW.yaml

Writes into the workflow's folder results.csv (a row a model and task or length), results.md (the same as a grid) and
results.png. Unfinished runs are left out and named. Intervals (95 %), of accuracy and of MCC, are from resampling whole
groups of neighbouring windows; where species are homologous, whole loci over all species.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from plan import Plan, Run, make_plan
from systems import collect_systems

from dnamamba import cli
from dnamamba.finetuning.metrics import bootstrap_by_group, bootstrap_matthews
from dnamamba.outputs import write_atomically
from dnamamba.pictures.accuracy_by_length import plot_accuracy_by_length
from dnamamba.pictures.results_by_task import plot_results_by_task

METRICS = ("accuracy", "mcc", "f1", "auroc", "auprc", "pearson", "spearman")
COLUMNS = (
    "task", "length", "model", *(name for metric in METRICS for name in (metric, f"{metric}_std")),
    "low", "high", "mcc_low", "mcc_high", "groups", "seeds", "parameters", "seconds", "run",
)  # fmt: skip
Row = dict[str, str]
_ORDER = {"pretrained": 0, "scratch": 1, "cnn": 2, "composition": 4, "majority": 5}
"""Of the models in the tables; k-mer regressions stand at 3."""


def main(arguments: list[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    for file in given:
        config = yaml.safe_load(Path(file).read_text("utf-8"))
        collect(make_plan(config), config)


def collect(plan: Plan, config: Mapping[str, Any]) -> list[Row]:
    """Reads what is finished, writes the three files (of systems, the tables), returns the rows."""
    if config.get("systems"):
        return collect_systems(plan)
    splits = config.get("splits")
    is_homologous = bool((splits if isinstance(splits, Mapping) else config).get("homologous"))
    rows: list[Row] = []
    missing = []
    for run in plan.runs:
        if "model" not in run.facts:
            continue
        if (plan.folder(run) / run.result).exists():
            rows += _rows(run, plan.folder(run), is_homologous)
        else:
            missing.append(run.name)
    # Simple models come with every fine-tuning; one row of each is enough, and the trained ones come first.
    first = {(row["task"], row["length"], row["model"]): row for row in reversed(rows)}
    rows = sorted(first.values(), key=lambda row: (row["task"], int(row["length"] or 0), _ORDER.get(row["model"], 3)))
    for name, published in (config.get("published") or {}).items():
        metric = published["metric"]
        for task, value in published["values"].items():
            rows.append({**dict.fromkeys(COLUMNS, ""), "task": task, "model": name, metric: f"{value:g}"})
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    plan.out.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.out / "results.csv", text.getvalue())
    metric = str(config.get("metric") or ("accuracy" if config.get("lengths") else "mcc"))
    grid = _grid(rows, metric)
    write_atomically(plan.out / "results.md", grid)
    if config.get("lengths"):
        chance = _chance(plan)
        plot_accuracy_by_length(rows, plan.out / "results.png", title=plan.out.name, chance=chance)
    else:
        plot_results_by_task(rows, plan.out / "results.png", title=plan.out.name, metric=metric)
    print(grid)
    if missing:
        print(f"not finished: {', '.join(missing)}")
    return rows


def _rows(run: Run, folder: Path, is_homologous: bool) -> list[Row]:
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    task = run.facts["task"] or str(summary["task"])
    common = {**dict.fromkeys(COLUMNS, ""), "task": task, "length": run.facts["length"], "run": run.name}
    intervals = _intervals(folder / "test_predictions.csv", is_homologous)
    rows = []
    if "test" in summary:
        model = "cnn" if run.facts["model"] == "simple" else run.facts["model"]
        found = {name: value for name, value in summary["test"].items() if name in METRICS}
        row = {
            **common,
            "model": model,
            "parameters": str(summary["parameters"]),
            "seconds": f"{summary['seconds']:.0f}",
        }
        row["seeds"] = str(len(next(iter(found.values()))["by_seed"]))
        for name, value in found.items():
            row[name] = _text(value["mean"])
            row[f"{name}_std"] = _text(value["std"])
        rows.append(row | intervals.get(model if run.facts["model"] == "simple" else "", {}))
    for model, values in summary.get("baselines", {}).items():
        row = {**common, "model": model}
        row |= {name: _text(value) for name, value in values.items() if name in METRICS}
        rows.append(row | intervals.get(model, {}))
    return rows


def _intervals(path: Path, is_homologous: bool) -> dict[str, Row]:
    """Model ("" where the table has only one) → low and high of the accuracy and of MCC, and the groups."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if "predicted" not in (reader.fieldnames or ()):
            return {}
        by_model: dict[str, dict[str, list[dict[str, str]]]] = {}
        for row in reader:
            by_model.setdefault(row.get("model") or "", {}).setdefault(row["seed"], []).append(row)
    found: dict[str, Row] = {}
    for model, seeds in by_model.items():
        first = next(iter(seeds.values()))
        groups = [row["contig"] if is_homologous else row["group"] for row in first]
        names = sorted({row[column] for rows in seeds.values() for row in rows for column in ("label", "predicted")})
        truth = np.array([names.index(row["label"]) for row in first])
        predicted = np.array([[names.index(row["predicted"]) for row in rows] for rows in seeds.values()])
        interval = bootstrap_by_group((truth == predicted).mean(0), groups)
        mcc = bootstrap_matthews(truth, predicted, groups)
        found[model] = {"low": _text(interval.low), "high": _text(interval.high), "groups": str(interval.groups)}
        found[model] |= {"mcc_low": _text(mcc.low), "mcc_high": _text(mcc.high)}
    return found


_ENDS = {"accuracy": ("low", "high"), "mcc": ("mcc_low", "mcc_high")}
"""Columns of a metric's interval"""


def _grid(rows: Sequence[Row], metric: str) -> str:
    """A Markdown table: a row a task or length, a column a model."""
    models = list(dict.fromkeys(row["model"] for row in rows if row[metric]))
    cells = list(dict.fromkeys((row["task"], row["length"]) for row in rows if row[metric]))
    lines = [f"| {metric} | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for task, length in cells:
        cells = []
        for model in models:
            found = [row for row in rows if (row["task"], row["length"], row["model"]) == (task, length, model)]
            cells.append(_cell(found[0], metric) if found and found[0][metric] else "")
        lines.append(f"| {f'{int(length):,}' if length else task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row, metric: str) -> str:
    spread = f" ± {float(row[f'{metric}_std']):.3f}" if row[f"{metric}_std"] else ""
    ends = [row[column] for column in _ENDS.get(metric, ()) if row[column]]
    interval = f" [{', '.join(f'{float(end):.3f}' for end in ends)}]" if ends else ""
    return f"{float(row[metric]):.3f}{spread}{interval}"


def _chance(plan: Plan) -> float | None:
    for run in plan.runs:
        file = plan.folder(run) / "summary.json"
        if "model" in run.facts and file.exists():
            return 1 / max(len(json.loads(file.read_text("utf-8"))["classes"]), 1)
    return None


def _text(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(cli.run(main))
