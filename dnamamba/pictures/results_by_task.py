"""Results on several tasks, the models side by side, from a table of results."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dnamamba.pictures.figures import COLOURS, save_png


def plot_results_by_task(rows: Sequence[Mapping[str, str]], path: Path, *, title: str, metric: str) -> None:
    """A group of bars a task, a bar a model, to a PNG.

    Args:
        rows: cells as text, missing ones empty; needs the columns task, model and one called as the metric, and may
            have `METRIC_std`, drawn as an error bar. Rows without a value are left out.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    shown = [row for row in rows if row[metric] and math.isfinite(float(row[metric]))]
    tasks = list(dict.fromkeys(row["task"] for row in shown))
    models = list(dict.fromkeys(row["model"] for row in shown))
    figure = Figure(figsize=(max(8.0, 1.6 * len(tasks) + 2), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(models), 1)
    for number, model in enumerate(models):
        own = {row["task"]: row for row in shown if row["model"] == model}
        centres = [tasks.index(task) + (number - (len(models) - 1) / 2) * width for task in own]
        values = [float(row[metric]) for row in own.values()]
        spread = [float(row.get(f"{metric}_std") or 0) for row in own.values()]
        bars = axes.bar(
            centres, values, width, yerr=spread, label=model, color=COLOURS[number % len(COLOURS)], capsize=2
        )
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=7)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(title)
    axes.set(ylabel=f"{metric} on test, higher is better")
    axes.grid(alpha=0.3, axis="y")
    if models:
        figure.legend(loc="outside lower center", ncols=len(models))
    save_png(figure, path)
