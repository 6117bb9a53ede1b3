"""How scores of variants are spread, over all and by class."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dnamamba.pictures.figures import COLOURS, save_png, shortened

MOST_CLASSES = 25
"""Classes shown at most: those with the most variants"""


def plot_score_distribution(
    scores: np.ndarray, by_class: Mapping[str, np.ndarray], path: Path, *, title: str, label: str, zero: str = ""
) -> None:
    """A histogram, and below it on the same axis a box a class (median, quartiles, 5 to 95 %), to a PNG or SVG.

    Args:
        scores: (variants,) without NaN.
        by_class: class -> scores; classes without scores are left out.
        label: of the axis of scores, with its unit.
        zero: what 0 means; without it 0 is not marked.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    classes = sorted((name for name in by_class if by_class[name].size), key=lambda name: -by_class[name].size)
    shown = sorted(classes[:MOST_CLASSES], key=lambda name: float(np.median(by_class[name])))
    heights = [2.6, *([0.32 * len(shown) + 0.3] if shown else [])]
    figure = Figure(figsize=(9, sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    low, high = np.quantile(scores, (0.002, 0.998)) if scores.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 1.0
    panels[0].hist(np.clip(scores, low, high), bins=80, range=(low, high), color=COLOURS[5])
    panels[0].set(title=title, ylabel="variants")
    panels[0].set_xlim(low - margin, high + margin)
    for row, name in enumerate(shown):
        low_end, quarter, median, three_quarters, high_end = np.quantile(by_class[name], (0.05, 0.25, 0.5, 0.75, 0.95))
        panels[1].plot([low_end, high_end], [row, row], color="black", linewidth=1, zorder=1)
        panels[1].barh(row, three_quarters - quarter, 0.6, quarter, color=COLOURS[5], edgecolor="black", zorder=2)
        panels[1].plot([median, median], [row - 0.3, row + 0.3], color="black", linewidth=2, zorder=3)
    if shown:
        labels = [f"{shortened(name, 30)} (n = {by_class[name].size:,})" for name in shown]
        panels[1].set_yticks(range(len(shown)), labels, fontsize=8)
        panels[1].set_ylim(-0.7, len(shown) - 0.3)
        more = f"; the {MOST_CLASSES} largest of {len(classes)}" if len(classes) > MOST_CLASSES else ""
        panels[1].set_title(f"median, quartiles, 5 to 95 %{more}", fontsize=9)
    for axes in panels:
        axes.grid(alpha=0.3)
        if zero:
            axes.axvline(0, color="black", linewidth=0.8)
    panels[-1].set_xlabel(f"{label}{f'; {zero}' if zero else ''}")
    save_png(figure, path)
