"""Where a model is good: bits per base by position in the window, region class and contig."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png, shortened

MOST_CONTIGS = 30
"""Contigs shown at most: those with the most bases."""
_LABEL = "bits per base, lower is better (2 is guessing)"
_SMALL_GROUPS = {"genome": "genome", "repeat": "repeats", "cpg": "CpG", "annotation": "exons", "region": "region"}


def plot_validation_by_class(
    rows: Sequence[Mapping[str, str]],
    path: Path,
    *,
    title: str,
    markov: float | None = None,
    both_sides: bool = False,
) -> None:
    """Three panels to a PNG: a curve over the bases of context, points of region classes, points of contigs.

    Classes whose score is no finite number (no base, a model that diverged) are left out.

    Args:
        rows: as in validation_by_class.csv, cells as text; needs the columns group, class, bits_per_base and bases.
        markov: bits per base of the best Markov model over all windows, drawn as a line.
        both_sides: whether the model sees the bases on both sides of one; then its context is the shorter side.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.ticker import FixedLocator, NullLocator

    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if math.isfinite(float(row["bits_per_base"])):
            groups.setdefault(row["group"], []).append(row)
    overall = [float(row["bits_per_base"]) for row in groups.get("all", [])]
    small = {label: groups.get(group, []) for group, label in _SMALL_GROUPS.items()}
    regions = [(label, row) for label, classes in small.items() for row in classes if len(classes) > 1]
    total = sum(float(row["bases"]) for row in groups.get("all", [])) or 1.0
    labels = [f"{label}: {row['class']}, {float(row['bases']) / total:.1%}" for label, row in regions]
    contigs = sorted(groups.get("contig", []), key=lambda row: -float(row["bases"]))
    shown = [row for row in groups.get("contig", []) if row in contigs[:MOST_CONTIGS]]
    figure = Figure(figsize=(15, 5 + 0.2 * max(len(shown) - 15, len(regions) - 15, 0)), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    figure.suptitle(title)

    context = groups.get("position", [])
    starts = [int(row["class"].partition("-")[0]) for row in context]
    panels[0].plot(starts, [float(row["bits_per_base"]) for row in context], marker="o", color=COLOURS[1])
    panels[0].set_xscale("log", base=2)
    panels[0].xaxis.set_major_locator(FixedLocator(starts[::2]))
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_xticklabels([row["class"] for row in context[::2]], rotation=45, ha="right")
    panels[0].set(
        title="by context",
        xlabel="bases of the window seen" + (" (of both sides, the shorter)" if both_sides else " before the base"),
        ylabel=_LABEL,
    )
    panels[0].grid(alpha=0.3)

    lines = [*overall, *([] if markov is None else [markov])]
    _points(panels[1], labels, [row for _, row in regions], COLOURS[0], lines)
    panels[1].set_title("by region class (share of the bases)")

    _points(panels[2], [shortened(row["class"]) for row in shown], shown, COLOURS[2], lines)
    more = f", {MOST_CONTIGS} largest of {len(contigs)}" if len(contigs) > MOST_CONTIGS else ""
    panels[2].set_title(f"by contig{more}")

    for number, axes in enumerate(panels):
        draw = axes.axhline if number == 0 else axes.axvline
        for level in overall:
            draw(level, color="black", linewidth=1, label=f"all, {level:.4f}")
        if markov is not None:
            draw(markov, **BASELINE, label=f"best Markov model, {markov:.4f}")
    if overall or markov is not None:
        panels[0].legend()
    save_png(figure, path)


def _points(
    axes: Any, labels: Sequence[str], rows: Sequence[Mapping[str, str]], color: str, lines: Sequence[float]
) -> None:
    """A point a row from the top, its figure to the right of the panel, where no line crosses it; the axis begins near
    the lowest, for differences are small, which a bar's length would misstate."""
    values = [float(row["bits_per_base"]) for row in rows]
    axes.plot(values, range(len(values)), linestyle="", marker="o", color=color)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    for row, value in enumerate(values):
        axes.text(1.02, row, f"{value:.3f}", fontsize=8, va="center", transform=axes.get_yaxis_transform())
    axes.grid(alpha=0.3)
    axes.set_xlabel(_LABEL)
    if values:
        axes.set_ylim(len(values) - 0.5, -0.5)
        low, high = min([*values, *lines]), max([*values, *lines])
        margin = max((high - low) / 5, 0.01)
        axes.set_xlim(max(low - margin, 0), high + margin)
