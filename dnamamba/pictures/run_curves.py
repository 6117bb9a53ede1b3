"""Several runs or trials as lines: a column of metrics.csv against the bases or epochs that they have seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dnamamba.pictures.figures import COLOURS, save_png, shortened

MARKERS = "osD^v<>PX"


def plot_run_curves(
    runs: Mapping[str, Sequence[Mapping[str, str]]],
    path: Path,
    *,
    column: str,
    label: str,
    scale: float = 1.0,
    title: str = "",
    against: Literal["tokens", "epoch"] = "tokens",
    from_zero: bool = False,
) -> None:
    """A line a run, to a PNG or SVG; rows without a value in `column` are left out.

    Args:
        runs: what to call each -> its rows of metrics.csv, cells as text, with the columns `against` and `column`.
        label: of the axis, with its unit and which way is better.
        scale: what values are divided by.
        from_zero: whether the axis begins at zero.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import MaxNLocator

    unit, x_label = (1e6, "bases seen (millions)") if against == "tokens" else (1.0, "epoch")
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, rows) in enumerate(runs.items()):
        points = [(float(row[against]) / unit, float(row[column]) / scale) for row in rows if row.get(column)]
        if points:
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            marked = 4 if len(points) <= 40 else 0
            axes.plot(*zip(*points, strict=True), label=shortened(name, 40), markersize=marked, linewidth=1.2, **style)
    axes.set(title=title, xlabel=x_label, ylabel=label)
    axes.grid(alpha=0.3)
    if against == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    save_png(figure, path)
