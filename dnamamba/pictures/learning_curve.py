"""The learning curve of a run, from the rows of its metrics.csv."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png


def plot_learning_curve(
    rows: Sequence[Mapping[str, str]], path: Path, *, title: str, markov: float | None = None
) -> None:
    """Bits per base against bases seen, training and validation, to a PNG.

    Args:
        rows: as in metrics.csv, cells as text, missing ones empty; needs the columns tokens, train_bits_per_base and
            validation_bits_per_base.
        markov: bits per base of the best Markov model on the same validation windows, drawn as a line.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    curves: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("train_bits_per_base", "training", {"color": COLOURS[5], "linewidth": 1.0}),
        ("validation_bits_per_base", "validation", {"color": COLOURS[1], "marker": "o", "markersize": 4}),
    )
    for column, label, style in curves:
        points = [(float(row["tokens"]) / 1e6, float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{label}, last {points[-1][1]:.4f}", **style)
    if markov is not None:
        axes.axhline(markov, **BASELINE, label=f"best Markov model, {markov:.4f}")
    axes.set(
        title=title,
        xlabel="bases seen (millions)",
        ylabel="bits per base, lower is better\n(2 is guessing; A, C, G, T only)",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)
