"""Genes under a track, as genome browsers draw them: exons as boxes, their coding part thick, introns as lines."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars
    from matplotlib.axes import Axes

Rows = dict[str, tuple[int, int, int]]
"""Gene -> (row, start, end)"""

GENE_COLOUR = "#1F4E79"
REPEAT_COLOUR = "#B5651D"
ROW = 0.3
"""Inches a row of genes takes"""
_EXON, _CODING = 0.22, 0.44
"""Heights of the boxes, a row being 1"""
_CHARACTER = 0.008
"""Width of a character of a name, of the panel's"""


def pack_rows(genes: "polars.DataFrame", low: int, high: int) -> Rows:
    """Where to draw each gene, so that no two overlap in a row, names included; those outside [low, high) are left
    out. `genes`: see `draw_genes`."""
    ends: list[float] = []
    drawn: Rows = {}
    import polars as pl

    spans = genes.group_by("gene", maintain_order=True).agg(pl.col("start").min(), pl.col("end").max())
    for gene, start, end in spans.sort("start", maintain_order=True).iter_rows():
        if end <= low or start >= high:
            continue
        named = _CHARACTER * (len(gene) + 3) * (high - low)
        left = max(start, low)
        if left + named > high:  # a name that would leave the panel ends where its gene does
            left = max(min(left, min(end, high) - named), low)
        row = next((number for number, reach in enumerate(ends) if reach <= left), len(ends))
        reach = max(min(end, high), left + named) + 0.005 * (high - low)
        ends[row : row + 1] = [reach]
        drawn[gene] = (row, start, end)
    return drawn


def draw_genes(
    axes: "Axes", genes: "polars.DataFrame", rows: dict[str, tuple[int, int, int]], low: int, high: int
) -> None:
    """Gene models between positions low and high (0-based).

    Args:
        genes: columns gene (str), reverse (bool), kind ("exon" or "coding"), start, end (0-based half-open).
        rows: of `pack_rows`.
    """
    reverse = dict(genes.select("gene", "reverse").iter_rows())
    for gene, (row, start, end) in rows.items():
        axes.plot([max(start, low), min(end, high)], [row, row], color=GENE_COLOUR, linewidth=0.8, zorder=1)
        label = f"← {gene}" if reverse[gene] else f"{gene} →"
        at_edge = max(start, low) + _CHARACTER * (len(gene) + 3) * (high - low) > high
        position, side = (min(end, high), "right") if at_edge else (max(start, low), "left")
        axes.text(position, row - 0.28, label, fontsize=7, va="bottom", ha=side)
    for gene, kind, start, end in genes.select("gene", "kind", "start", "end").iter_rows():
        if gene in rows and end > low and start < high:
            height = _CODING if kind == "coding" else _EXON
            _box(axes, max(start, low), min(end, high), rows[gene][0], height, GENE_COLOUR, (high - low) / 2000)
    axes.set_ylim(max((row for row, _, _ in rows.values()), default=0) + 0.5, -0.8)
    axes.set_yticks([])
    axes.set_ylabel("genes", rotation=0, ha="right", va="center", fontsize=8)
    _bare(axes)


def draw_repeats(axes: "Axes", repeats: "polars.DataFrame", low: int, high: int) -> None:
    """Soft-masked intervals as boxes in one row. `repeats`: columns start, end (0-based half-open)."""
    for start, end in repeats.select("start", "end").iter_rows():
        if end > low and start < high:
            _box(axes, max(start, low), min(end, high), 0, 0.6, REPEAT_COLOUR, 0)
    axes.set_ylim(0.5, -0.5)
    axes.set_yticks([])
    axes.set_ylabel("repeats", rotation=0, ha="right", va="center", fontsize=8)
    _bare(axes)


def position_axis(axes: "Axes", contig: str, low: int, high: int) -> None:
    """Positions counted from 1, as genome browsers show them."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axes.set_xlim(low, high)
    ticks = MaxNLocator(nbins=7, integer=True).tick_values(low + 1, high)
    axes.xaxis.set_major_locator(FixedLocator([tick - 1 for tick in ticks if low < tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{round(position) + 1:,}"))
    axes.set_xlabel(f"position on {contig} (bp, from 1)")


def _box(axes: "Axes", start: int, end: int, row: float, height: float, colour: str, least: float) -> None:
    """At least so wide that a small exon is seen."""
    from matplotlib.patches import Rectangle

    width = max(end - start, least)
    axes.add_patch(Rectangle((start, row - height / 2), width, height, facecolor=colour, linewidth=0, zorder=2))


def _bare(axes: "Axes") -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def runs_of(positions: np.ndarray, missing: np.ndarray) -> list[tuple[int, int]]:
    """Intervals [start, end) of positions (ascending, a step of 1) that are missing."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], missing, [False])).astype(np.int8)))
    return [(int(positions[a]), int(positions[b - 1]) + 1) for a, b in edges.reshape(-1, 2)]
