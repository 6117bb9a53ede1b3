"""A region's saturation mutagenesis: the reference as a logo-like track over a heat map of all changes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.figures import save_png

if TYPE_CHECKING:
    import polars
    from matplotlib.axes import Axes

COLOURS = {"A": "#109648", "C": "#255C99", "G": "#F7B32B", "T": "#D62839", "N": "#999999"}
LETTERS_UP_TO = 240
"""Positions that are drawn as letters; more are drawn as bars in the letters' colours."""


def plot_mutagenesis(table: "polars.DataFrame", path: Path) -> None:
    """Two panels to a PNG.

    Above, each base of the reference as high as the mean of −llr over its three changes: what is tall, changes spoil.
    Below, llr of each change, red where it is less likely than the reference; the reference is dotted, N is grey.

    Args:
        table: a row a base of one interval of a contig: contig, position (0-based; the axis shows 1-based positions, as
            genome browsers do), ref, and llr_A, llr_C, llr_G, llr_T in nats: 0 for the reference base, null where there
            is none.
    """
    import polars as pl
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    contig, start = table["contig"][0], int(table["position"][0])
    length = table.height
    llr = table.select(pl.col(*(f"llr_{base}" for base in "ACGT")).fill_null(float("nan"))).to_numpy()
    figure = Figure(figsize=(float(np.clip(0.13 * length + 2, 8, 24)), 5), layout="constrained")
    logo, heat = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
    letters = table["ref"].str.to_uppercase().to_numpy()
    height = importance(llr, letters)
    if length <= LETTERS_UP_TO:
        _draw_letters(logo, letters, height)
    else:
        # Edges wider than the bars: none vanishes between two pixels.
        colours = [COLOURS.get(letter, COLOURS["N"]) for letter in letters]
        logo.bar(range(length), np.nan_to_num(height), width=1.0, color=colours, edgecolor=colours, linewidth=0.4)
        handles = [logo.plot([], [], "s", color=COLOURS[letter], label=letter)[0] for letter in "ACGT"]
        logo.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    finite = height[np.isfinite(height)]
    low, high = (min(finite.min(), 0), max(finite.max(), 0)) if finite.size else (0, 1)
    margin = 0.05 * (high - low or 1)
    logo.set(ylim=(low - margin, high + margin), ylabel="mean of −llr (nats)\ntall: changes are unlikely")
    logo.axhline(0, color="black", linewidth=0.6)
    logo.set_title(f"{contig}:{start + 1:,}-{start + length:,}, all single-base changes")

    known = llr[np.isfinite(llr) & (llr != 0)]
    limit = float(np.quantile(np.abs(known), 0.99)) if known.size else 1.0
    picture = heat.imshow(
        llr.T, aspect="auto", interpolation="nearest", cmap="RdBu", norm=TwoSlopeNorm(0, -(limit or 1), limit or 1)
    )
    heat.set_facecolor("lightgrey")
    if length <= LETTERS_UP_TO:
        rows = {letter: row for row, letter in enumerate("ACGT")}
        there = [position for position, letter in enumerate(letters) if letter in rows]
        heat.plot(there, [rows[letters[position]] for position in there], ".", color="black", markersize=3)
    heat.set_yticks(range(4), "ACGT")
    heat.set(xlim=(-0.5, length - 0.5), xlabel=f"position on {contig} (1-based)")
    heat.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    heat.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{start + 1 + round(position):,}"))
    figure.colorbar(picture, ax=heat, label="llr (nats)\nred: less likely", extend="both", pad=0.01)
    save_png(figure, path)


def importance(llr: np.ndarray, letters: np.ndarray) -> np.ndarray:
    """(positions,) mean of −llr over the three changes of each base; NaN where there are none."""
    is_change = letters[:, None] != np.array(list("ACGT"))
    return -np.where(is_change, llr, 0).sum(1) / np.maximum(is_change.sum(1), 1)


def _draw_letters(axes: "Axes", letters: np.ndarray, height: np.ndarray) -> None:
    """Each letter fills its position's width and reaches from 0 to its height, upside down below 0."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    font = FontProperties(family="DejaVu Sans", weight="bold")
    glyphs = {letter: TextPath((0, 0), letter, size=1, prop=font) for letter in "ACGT"}
    for position, (letter, size) in enumerate(zip(letters.tolist(), height.tolist(), strict=True)):
        if letter not in glyphs or not np.isfinite(size) or size == 0:
            continue
        box = glyphs[letter].get_extents()
        move = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, size / box.height)
        shape = glyphs[letter].transformed(move.translate(position - 0.45, 0))
        axes.add_patch(PathPatch(shape, facecolor=COLOURS[letter], linewidth=0))
