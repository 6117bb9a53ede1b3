"""Which classes a classifier takes for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnamamba.pictures.figures import save_png, shortened

MOST_NUMBERS = 20
"""Classes up to which each cell has its numbers"""


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path, *, title: str) -> None:
    """A matrix whose rows are shares of the true class: the darker the diagonal the better; to a PNG or SVG.

    Args:
        counts: (classes, classes) int, rows true, columns predicted.
        names: of the classes.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    size = float(np.clip(0.7 * len(names) + 2, 4, 11))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [shortened(name, 18) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), [f"{label} (n = {n:,})" for label, n in zip(labels, counts.sum(1), strict=True)])
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    for row, column in np.ndindex(counts.shape) if len(names) <= MOST_NUMBERS else ():
        dark = shares[row, column] > 0.55
        text = f"{shares[row, column]:.0%}\n{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    save_png(figure, path)
