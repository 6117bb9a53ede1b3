"""How well the classes of sequences are distinguished, by length: a line a model, from a table of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png


def plot_accuracy_by_length(
    rows: Sequence[Mapping[str, str]], path: Path, *, title: str, chance: float | None = None
) -> None:
    """One line a model over lengths on a logarithmic axis, with its intervals where the table has them, to a PNG.

    Args:
        rows: cells as text, missing ones empty; needs the columns model, length and accuracy (0 to 1), and may have low
            and high, the ends of an interval. Rows without a length or an accuracy are left out.
        chance: accuracy of guessing, drawn as a line.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import FixedLocator, NullLocator

    models: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row["length"] and row["accuracy"]:
            models.setdefault(row["model"], []).append(row)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    markers = "osD^v*<>"
    for number, (model, points) in enumerate(models.items()):
        points = sorted(points, key=lambda row: int(row["length"]))
        lengths = [int(row["length"]) for row in points]
        values = [float(row["accuracy"]) for row in points]
        ends = [[float(row.get(end) or row["accuracy"]) for row in points] for end in ("low", "high")]
        # An interval of resamples need not hold the mean over all: no negative bars.
        below = [max(value - low, 0.0) for value, low in zip(values, ends[0], strict=True)]
        above = [max(high - value, 0.0) for value, high in zip(values, ends[1], strict=True)]
        marker = markers[number % len(markers)]
        style: dict[str, Any] = {"marker": marker, "markersize": 5, "color": COLOURS[number % len(COLOURS)]}
        axes.errorbar(lengths, values, (below, above), label=model, capsize=3, alpha=0.9, **style)
    if chance is not None:
        axes.axhline(chance, **BASELINE, label=f"chance, {chance:.3f}")
    ticks = sorted({int(row["length"]) for points in models.values() for row in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([_short(tick) for tick in ticks])
    axes.set(
        title=title, xlabel="length of the sequence (bases)", ylabel="accuracy on held-out sequences, higher is better"
    )
    axes.grid(alpha=0.3)
    if models or chance is not None:
        figure.legend(loc="outside lower center", ncols=4)
    save_png(figure, path)


def _short(length: int) -> str:
    """1024 as 1k, as the field writes lengths that are powers of two."""
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"
