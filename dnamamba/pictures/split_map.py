"""Where on the chromosomes the splits of a run lie, as an ideogram."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dnamamba.pictures.figures import COLOURS, save_png, shortened

MOST_CONTIGS = 40
"""Contigs shown at most: the longest"""
SPLITS = {"train": COLOURS[5], "validation": COLOURS[1], "test": "#000000"}


def plot_split_map(
    intervals: Sequence[tuple[str, int, int, str]], lengths: Mapping[str, int], path: Path, *, title: str
) -> None:
    """A bar a contig, coloured where its bases are in a split and white where they are in none, to a PNG or SVG.

    Args:
        intervals: contig, start, end (0-based half-open), and one of `SPLITS`.
        lengths: bases of each contig, in the order to draw; contigs without intervals are left out.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from matplotlib.patches import Patch

    used = {contig for contig, *_ in intervals}
    longest = sorted((name for name in lengths if name in used), key=lambda name: -lengths[name])[:MOST_CONTIGS]
    shown = [name for name in lengths if name in set(longest)]
    figure = Figure(figsize=(9, 1.2 + 0.26 * len(shown)), layout="constrained")
    axes = figure.subplots()
    unit, name_of_unit = (1e6, "Mb") if max(lengths.values(), default=0) >= 2_000_000 else (1e3, "kb")
    for row, contig in enumerate(shown):
        axes.broken_barh([(0, lengths[contig] / unit)], (row - 0.35, 0.7), facecolor="white", edgecolor="#8C8C8C")
        for split, colour in SPLITS.items():
            spans = [
                (start / unit, (end - start) / unit)
                for name, start, end, own in intervals
                if name == contig and own == split
            ]
            axes.broken_barh(spans, (row - 0.35, 0.7), facecolor=colour, linewidth=0)
    axes.set_yticks(range(len(shown)), [shortened(name) for name in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(left=0)
    more = f", {MOST_CONTIGS} longest of {len(used)} contigs" if len(used) > MOST_CONTIGS else ""
    axes.set(title=f"{title}{more}", xlabel=f"position ({name_of_unit})")
    totals = {split: sum(end - start for _, start, end, own in intervals if own == split) for split in SPLITS}
    handles = [
        Patch(facecolor=colour, label=f"{split}, {totals[split]:,} bases")
        for split, colour in SPLITS.items()
        if totals[split]
    ]
    handles.append(Patch(facecolor="white", edgecolor="#8C8C8C", label="in no split: margins, N, left out"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    save_png(figure, path)
