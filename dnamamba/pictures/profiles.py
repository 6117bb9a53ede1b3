"""Averages around the same site in many genes: splice sites, start codons."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.figures import COLOURS, save_png

if TYPE_CHECKING:
    import polars


def plot_profiles(
    table: "polars.DataFrame",
    path: Path,
    *,
    title: str,
    ylabel: str,
    marks: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """A panel a kind of site, a line a measure with a band of two standard errors, to a PNG.

    Args:
        table: columns site, measure, offset (bases from the site in reading direction), mean, standard_error, count
            (sites with a value there).
        marks: site -> offset -> the letter that is (nearly) always there; written on the axis.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import MaxNLocator

    kinds = table["site"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(max(4.6 * len(kinds), 6), 4), layout="constrained")
    panels = figure.subplots(1, max(len(kinds), 1), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=False):
        rows = table.filter(table["site"] == kind)
        for number, measure in enumerate(rows["measure"].unique(maintain_order=True)):
            line = rows.filter(rows["measure"] == measure).sort("offset")
            offset, mean, error = (line[name].to_numpy() for name in ("offset", "mean", "standard_error"))
            colour = COLOURS[number % len(COLOURS)]
            axes.fill_between(offset, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.2, linewidth=0)
            axes.plot(offset, mean, ".-", color=colour, linewidth=1, markersize=3, label=measure)
        axes.axvline(-0.5, color="black", linewidth=0.7, linestyle=":")
        for position, text in _words((marks or {}).get(kind, {})):
            axes.annotate(
                text, (position, 0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", fontsize=8, fontweight="bold", color="tab:red",
            )  # fmt: skip
        count = int(np.max(rows["count"].to_numpy(), initial=0))
        axes.set(title=f"{kind}, n = {count:,}", xlabel="bases from the site, in reading direction")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(ylabel)
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    save_png(figure, path)


def _words(letters: Mapping[int, str]) -> list[tuple[float, str]]:
    """Neighbouring letters as words, with the middle of each."""
    words: list[tuple[list[int], str]] = []
    for offset in sorted(letters):
        if words and words[-1][0][-1] == offset - 1:
            words[-1] = ([*words[-1][0], offset], words[-1][1] + letters[offset])
        else:
            words.append(([offset], letters[offset]))
    return [(sum(offsets) / len(offsets), text) for offsets, text in words]
