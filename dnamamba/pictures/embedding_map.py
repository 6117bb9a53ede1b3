"""Embeddings in the plane that shows most of their spread, coloured by what they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.figures import COLOURS, save_png, shortened

if TYPE_CHECKING:
    import polars

_MARKERS = "osD^v<>PX"
"""One more or fewer than the colours would do: together they distinguish 72 labels"""


def plot_embedding_map(
    table: "polars.DataFrame", path: Path, *, title: str, columns: Sequence[str], label: str
) -> None:
    """The first two principal components as a scatter, a colour a label, to a PNG.

    Args:
        table: the column `label`, and the numbers of the embedding.
        columns: the columns that hold these, a number each, or the one that holds a list or an array.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    vectors = np.asarray(table[columns[0]].to_list() if len(columns) == 1 else table.select(columns).to_numpy(), float)
    labels = table[label].cast(str).fill_null("none").to_numpy()
    coordinates, share = principal_components(vectors)
    names = sorted(set(labels.tolist()))
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        chosen = labels == name
        axes.scatter(
            coordinates[chosen, 0], coordinates[chosen, 1], s=14, alpha=0.6, linewidths=0,
            color=COLOURS[number % len(COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
            label=f"{shortened(name)} ({int(chosen.sum()):,})",
        )  # fmt: skip
    axes.set(
        title=title,
        xlabel=f"principal component 1 ({share[0]:.1%} of the variance)",
        ylabel=f"principal component 2 ({share[1]:.1%} of the variance)",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save_png(figure, path)


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, dimensions) → the first two coordinates (rows, 2), dimensions brought to unit variance first, and the
    share (2,) of the variance that each shows. The largest loading of each is positive, so that no sign is left to
    chance."""
    centred = vectors - vectors.mean(0)
    spread = centred.std(0)
    centred = centred / np.where(spread > 0, spread, 1)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    power = sizes**2 / max((sizes**2).sum(), 1e-30)
    coordinates = centred @ axes.T
    lacking = 2 - coordinates.shape[1]
    return np.pad(coordinates, ((0, 0), (0, lacking))), np.pad(power[:2], (0, 2 - len(power[:2])))
