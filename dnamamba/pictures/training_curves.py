"""Several runs in one picture: what they learned, at which rate, how steadily and how fast; and by context."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png

if TYPE_CHECKING:
    import polars

WORST = 2.1
"""Bits per base that the axes reach at most; 2 is guessing"""
_PANELS = (
    ("validation_bits_per_base", "validation, bits per base\n(A, C, G, T only; lower is better)", "linear"),
    ("train_bits_per_base", "training, bits per base\n(each row of metrics.csv)", "linear"),
    ("gradient_norm", "norm of the gradient\n(before clipping)", "log"),
    ("learning_rate", "learning rate", "log"),
)


def plot_training_curves(
    runs: Mapping[str, "polars.DataFrame"], path: Path, *, title: str, markov: float | None = None
) -> None:
    """Four panels over the bases seen, a line a run, to a PNG.

    Args:
        runs: name -> the run's metrics.csv; needs the columns tokens, train_bits_per_base, validation_bits_per_base,
            gradient_norm and learning_rate. Missing values, of steps without a validation, are left out.
        markov: bits per base of the best Markov model on the same validation windows, drawn as a line.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (column, label, scale) in zip(panels.flat, _PANELS, strict=True):
        for name, table, style in _styled(runs):
            known = table.drop_nulls(column)
            marker = "o" if column.startswith("validation") else ""
            axes.plot(known["tokens"] / 1e6, known[column], label=name, marker=marker, markersize=4, **style)
        axes.set(ylabel=label, yscale=scale)
        axes.grid(alpha=0.3)
    for axes in panels[0]:
        if markov is not None:
            axes.axhline(markov, **BASELINE, label=f"best Markov model, {markov:.3f}")
        axes.set_ylim(top=min(axes.get_ylim()[1], WORST))
    for axes in panels[1]:
        axes.set_xlabel("bases seen (millions)")
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=8)
    save_png(figure, path)


def plot_by_context(runs: Mapping[str, "polars.DataFrame"], path: Path, *, title: str) -> None:
    """Bits per base against the bases that a position's context holds, a line a run, to a PNG.

    Args:
        runs: name -> the run's validation_by_class.csv; needs the columns group, class and bits_per_base.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    labels: dict[int, str] = {}
    for name, table, style in _styled(runs):
        rows = table.filter(table["group"] == "position")
        starts = [int(each.partition("-")[0]) for each in rows["class"]]
        labels |= dict(zip(starts, rows["class"], strict=True))
        axes.plot(starts, rows["bits_per_base"], label=name, marker="o", markersize=4, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(labels)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([labels[start] for start in sorted(labels)], rotation=45, ha="right", fontsize=8)
    axes.axhline(2, **BASELINE, label="guessing one of four, 2")
    axes.set(title=title, xlabel="bases of the window seen before the base", ylabel="bits per base (lower is better)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    save_png(figure, path)


def _styled(runs: Mapping[str, "polars.DataFrame"]) -> list[tuple[str, "polars.DataFrame", dict[str, Any]]]:
    """Each run with its own colour, and dashes where colours come again."""
    dashes = ("-", "--", ":", "-.")
    return [
        (name, table, {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes[i // len(COLOURS) % len(dashes)]})
        for i, (name, table) in enumerate(runs.items())
    ]
