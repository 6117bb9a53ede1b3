"""All scored variants of a gene along it, and how the scores of each class are spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.figures import COLOURS, save_png, shortened
from dnamamba.pictures.gene_models import ROW, draw_genes, pack_rows, position_axis

if TYPE_CHECKING:
    import polars


def plot_variant_landscape(
    variants: "polars.DataFrame",
    genes: "polars.DataFrame",
    path: Path,
    *,
    title: str,
    score: str = "llr",
    label: str = "log-likelihood ratio (nats)\nbelow 0: the alternate allele is less likely",
    group: str | None = None,
    order: Sequence[str] | None = None,
) -> None:
    """Dots over gene models, and to the right a box a class, on the same axis of scores; to a PNG.

    Args:
        variants: contig (the same in all rows), start (0-based), the column `score`, and the column `group` if given.
            Rows without a score are left out.
        genes: see `dnamamba.pictures.gene_models.draw_genes`.
        group: column of classes (effect, pathogenic or benign); None takes all as one.
        order: of the classes; those drawn last lie on top. Default: the largest first.
    """
    import polars as pl
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    known = variants.filter(pl.col(score).is_not_null() & pl.col(score).cast(pl.Float64).is_not_nan())
    start = known["start"].to_numpy()
    values = known[score].cast(pl.Float64).to_numpy()
    classes = known[group].cast(pl.String).fill_null("none").to_numpy() if group else np.full(len(known), "all")
    if order is None:
        names, sizes = np.unique(classes, return_counts=True)
        order = names[np.argsort(-sizes, kind="stable")].tolist()
    margin = max(int(np.ptp(start)) // 50, 10) if start.size else 10
    low, high = (int(start.min()) - margin, int(start.max()) + margin) if start.size else (0, 100)
    rows = pack_rows(genes, low, high)
    depth = max((row for row, _, _ in rows.values()), default=0) + 1
    heights = [3.8, ROW * (depth + 0.8)]
    figure = Figure(figsize=(12, sum(heights) + 1.2), layout="constrained")
    panels = figure.subplots(2, 2, height_ratios=heights, width_ratios=(4, 1 + 0.12 * len(order)))
    (top, side), (below, empty) = panels
    empty.set_visible(False)
    top.sharex(below)
    side.sharey(top)
    size = float(np.clip(15_000 / max(len(start), 1), 5, 25))
    groups = [values[classes == name] for name in order]
    for number, name in enumerate(order):
        chosen = classes == name
        colour = COLOURS[number % len(COLOURS)]
        top.scatter(
            start[chosen],
            values[chosen],
            s=size,
            color=colour,
            alpha=0.5,
            linewidths=0,
            label=f"{name} (n = {int(chosen.sum()):,})",
        )
    shown = [(number, members) for number, members in enumerate(groups) if members.size]
    if shown:
        boxes = side.boxplot(
            [members for _, members in shown],
            positions=[number for number, _ in shown],
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for box, (number, _) in zip(boxes["boxes"], shown, strict=True):
            box.set_facecolor(COLOURS[number % len(COLOURS)])
            box.set_alpha(0.6)
    side.set_xticks(range(len(order)), [shortened(name, 18) for name in order], rotation=60, ha="right", fontsize=8)
    for name in side.get_xticklabels():
        name.set_in_layout(False)  # they reach into the empty panel below
    side.set_xlim(-0.6, len(order) - 0.4)
    side.tick_params(labelleft=False)
    side.set_title("median, quartiles, range\nwithout outliers", fontsize=8)
    for axes in (top, side):
        axes.axhline(0, color="black", linewidth=0.7)
        axes.grid(alpha=0.3)
    top.tick_params(labelbottom=False)
    top.set(title=title, ylabel=label)
    if group:
        figure.legend(*top.get_legend_handles_labels(), fontsize=8, markerscale=2, ncols=5, loc="outside lower center")
    draw_genes(below, genes, rows, low, high)
    position_axis(below, str(known["contig"][0]) if len(known) else "?", low, high)
    save_png(figure, path)
