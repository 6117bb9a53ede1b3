"""Quality over compute: lines through the results of each system at several sizes, with intervals, and a picture.
`systems.py` calls this for workflows with `sizes`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from measured import Row, markdown
from scipy import stats

from dnamamba.pictures.figures import save_png

LEVEL = 0.95
LEAST = 3
"""Sizes through which a line is fitted."""


class Line(NamedTuple):
    """bits = intercept + slope · log10(operations), by least squares."""

    slope: float
    intercept: float
    slope_error: float
    """Half of the interval of the slope"""
    mean: float
    """of the log10(operations)"""
    spread: float
    """Σ (log10(operations) − mean)²"""
    residual: float
    """Standard deviation about the line"""
    count: int

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bits at log10(operations), and half of the line's interval there."""
        error = self.residual * np.sqrt(1 / self.count + (x - self.mean) ** 2 / self.spread)
        return self.intercept + self.slope * x, _quantile(self.count) * error


def fit(operations: Sequence[float], bits: Sequence[float]) -> Line:
    """At least `LEAST` points."""
    x, y = np.log10(operations), np.asarray(bits, float)
    mean, spread = float(x.mean()), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - mean) * (y - y.mean())).sum() / spread)
    intercept = float(y.mean() - slope * mean)
    residual = float(np.sqrt(((y - intercept - slope * x) ** 2).sum() / (len(x) - 2)))
    return Line(slope, intercept, _quantile(len(x)) * residual / math.sqrt(spread), mean, spread, residual, len(x))


def _quantile(count: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, count - 2))


def lines_of(rows: Sequence[Row]) -> dict[str, Line]:
    """Of each system with enough sizes."""
    found = {}
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        if len(own) >= LEAST:
            found[system] = fit([float(r["training_flops"]) for r in own], [float(r["bits_per_base"]) for r in own])
    return found


def fits_table(rows: Sequence[Row]) -> str:
    """Of each line: what ten times the operations are worth, and the bits at the middle of all operations."""
    lines = lines_of(rows)
    if not lines:
        return ""
    middle = float(np.mean([math.log10(float(row["training_flops"])) for row in rows]))
    cells = []
    for system, line in lines.items():
        bits, error = (float(value) for value in line.at(np.asarray(middle)))
        slope = f"{line.slope:.4f} [{line.slope - line.slope_error:.4f}, {line.slope + line.slope_error:.4f}]"
        cells.append([system, str(line.count), slope, f"{bits:.4f} [{bits - error:.4f}, {bits + error:.4f}]"])
    return markdown(["system", "sizes", "bits per tenfold operations", f"bits at {10**middle:.2g} operations"], cells)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Points, lines and their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    axes = figure.subplots()
    lines = lines_of(rows)
    for number, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        own = [row for row in rows if row["system"] == system]
        x = np.array([float(row["training_flops"]) for row in own])
        axes.plot(x, [float(row["bits_per_base"]) for row in own], "o", color=f"C{number}", label=system)
        if system in lines:
            grid = np.linspace(math.log10(x.min()), math.log10(x.max()), 50)
            bits, error = lines[system].at(grid)
            axes.plot(10**grid, bits, color=f"C{number}", linewidth=1)
            axes.fill_between(10**grid, bits - error, bits + error, color=f"C{number}", alpha=0.12)
    axes.set_xscale("log")
    axes.set(xlabel="floating-point operations of training", ylabel="validation, bits per base (lower is better)")
    axes.set_title("equal bases for all; bands: 95 % intervals of the lines")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_png(figure, path)
