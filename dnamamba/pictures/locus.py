"""A locus as a genome browser shows it: the likelihood of every base over the exons and repeats there."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png
from dnamamba.pictures.gene_models import ROW, draw_genes, draw_repeats, pack_rows, position_axis, runs_of

if TYPE_CHECKING:
    import polars

DOTS_UP_TO = 6_000
"""Positions that are drawn as dots, too; more would be a cloud."""
BITS = 1 / np.log(2)


def plot_locus(
    track: "polars.DataFrame",
    genes: "polars.DataFrame",
    path: Path,
    *,
    title: str,
    columns: Mapping[str, str],
    repeats: "polars.DataFrame | None" = None,
    window: int = 51,
) -> None:
    """The likelihood track of one locus with gene models below, to a PNG.

    Args:
        track: as `dnamamba likelihood` writes it: contig (the same in all rows), position (0-based, ascending), and
            natural log-likelihoods, NaN or null where there are none (grey).
        genes: gene, reverse, kind, start, end: see `dnamamba.pictures.gene_models.draw_genes`.
        columns: column of `track` -> what to call it; each is a line.
        repeats: start, end of the repeats; None draws no row for them.
        window: bases of the running mean.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    position = track["position"].to_numpy()
    low, high = int(position[0]), int(position[-1]) + 1
    rows = pack_rows(genes, low, high)
    depth = max((row for row, _, _ in rows.values()), default=0) + 1
    heights = [3.2, ROW * (depth + 0.8), *([] if repeats is None else [ROW])]
    figure = Figure(figsize=(11, sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    top = panels[0]
    missing = np.ones(len(position), bool)
    for (column, label), colour in zip(columns.items(), COLOURS, strict=False):
        values = track[column].cast(float).fill_null(float("nan")).to_numpy() * BITS
        missing &= np.isnan(values)
        mean = f", mean {np.nanmean(values):.3f}" if not np.isnan(values).all() else ""
        if len(position) <= DOTS_UP_TO and len(columns) == 1:
            top.plot(position, values, ".", color=colour, markersize=2, alpha=0.25)
        top.plot(position, running_mean(values, window), color=colour, linewidth=1.1, label=f"{label}{mean}")
    top.axhline(-2, **BASELINE, label="guessing, −2")
    for start, end in runs_of(position, missing):
        top.axvspan(start, end, color="0.9", zorder=0)
    unit = f"bits, mean of {window} bases" if window > 1 else "bits"
    top.set(title=title, ylabel=f"log₂ likelihood of the base,\nhigher is better ({unit})")
    top.grid(alpha=0.3)
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=5)
    draw_genes(panels[1], genes, rows, low, high)
    if repeats is not None:
        draw_repeats(panels[2], repeats, low, high)
    position_axis(panels[-1], str(track["contig"][0]), low, high)
    save_png(figure, path)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over the window around each value, over those that are there; NaN where it is missing itself."""
    there = ~np.isnan(values)
    before = window // 2

    def sums(terms: np.ndarray) -> np.ndarray:
        total = np.concatenate(([0.0], np.cumsum(terms)))
        index = np.arange(len(terms))
        ends = np.minimum(index - before + window, len(terms))
        return total[ends] - total[np.maximum(index - before, 0)]

    with np.errstate(invalid="ignore"):
        mean = sums(np.where(there, values, 0.0)) / sums(there.astype(float))
    return np.where(there, mean, np.nan)
