"""Where a model is good: bits per base by position in the window, region class and contig."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba.report.figures import save_png

MOST_CONTIGS = 30
"""Contigs shown at most: those with the most bases."""
_SMALL_GROUPS = {"genome": "genome", "repeat": "repeats", "cpg": "CpG", "annotation": "exons", "region": "region"}


def plot_validation_by_class(
    rows: Sequence[Mapping[str, str]], path: Path, *, title: str, markov: float | None = None
) -> None:
    """Three panels to a PNG: a curve over the bases of context, points of region classes, points of contigs.

    Classes whose score is no finite number (no base, a model that diverged) are left out.

    Args:
        rows: as in validation_by_class.csv, cells as text; needs the columns group, class, bits_per_base and bases.
        markov: bits per base of the best Markov model over all windows, drawn as a line.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import FixedLocator, NullLocator

    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if math.isfinite(float(row["bits_per_base"])):
            groups.setdefault(row["group"], []).append(row)
    overall = [float(row["bits_per_base"]) for row in groups.get("all", [])]
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    figure.suptitle(title)

    context = groups.get("position", [])
    starts = [int(row["class"].partition("-")[0]) for row in context]
    panels[0].plot(starts, [float(row["bits_per_base"]) for row in context], marker="o", color="tab:orange")
    panels[0].set_xscale("log", base=2)
    panels[0].xaxis.set_major_locator(FixedLocator(starts[::2]))
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_xticklabels([row["class"] for row in context[::2]], rotation=45, ha="right")
    panels[0].set(
        title="by context",
        xlabel="bases of the window seen (of two sides, the shorter)",
        ylabel="bits per base (A, C, G, T only)",
    )
    panels[0].grid(alpha=0.3)

    small = {label: groups.get(group, []) for group, label in _SMALL_GROUPS.items()}
    regions = [(label, row) for label, classes in small.items() for row in classes if len(classes) > 1]
    total = sum(float(row["bases"]) for row in groups.get("all", [])) or 1.0
    labels = [f"{label}: {row['class']}\n{float(row['bases']) / total:.1%} of the bases" for label, row in regions]
    _points(panels[1], labels, [row for _, row in regions], "tab:blue")
    panels[1].set_title("by region class")

    contigs = sorted(groups.get("contig", []), key=lambda row: -float(row["bases"]))
    shown = [row for row in groups.get("contig", []) if row in contigs[:MOST_CONTIGS]]
    _points(panels[2], [row["class"] for row in shown], shown, "tab:green")
    more = f", {MOST_CONTIGS} largest of {len(contigs)}" if len(contigs) > MOST_CONTIGS else ""
    panels[2].set_title(f"by contig{more}")

    for number, axes in enumerate(panels):
        draw = axes.axhline if number == 0 else axes.axvline
        for level in overall:
            draw(level, color="black", linewidth=1, label=f"all, {level:.4f}")
        if markov is not None:
            draw(markov, color="tab:gray", linestyle="--", label=f"best Markov model, {markov:.4f}")
    if overall or markov is not None:
        panels[0].legend()
    save_png(figure, path)


def _points(axes: Any, labels: Sequence[str], rows: Sequence[Mapping[str, str]], color: str) -> None:
    """A point a row from the top, each with its figure; the axis begins near the lowest, for differences are small,
    which a bar's length would misstate."""
    values = [float(row["bits_per_base"]) for row in rows]
    axes.plot(values, range(len(values)), linestyle="", marker="o", color=color)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    for row, value in enumerate(values):
        shift = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{value:.3f}", (value, row), fontsize=8, **shift)
    axes.grid(alpha=0.3, axis="y")
    axes.set_xlabel("bits per base")
    if values:
        axes.set_ylim(len(values) - 0.5, -0.5)
        low, high = min(values), max(values)
        margin = max(high - low, 0.02)
        axes.set_xlim(max(low - margin, 0), high + margin)
