"""How well scores distinguish two classes, and whether predicted probabilities are calibrated."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.pictures.calibration import calibration_label, draw_calibration, frame_calibration
from dnamamba.pictures.figures import BASELINE, COLOURS, save_png

if TYPE_CHECKING:
    import polars
    from matplotlib.axes import Axes

BINS = 10
"""Of the calibration curve, with equal numbers in each"""


def plot_roc_and_calibration(
    table: "polars.DataFrame", path: Path, *, title: str, positive: str = "positive", negative: str = "negative"
) -> None:
    """ROC curves with their AUROC on the left and, where there are probabilities, their calibration on the right; to a
    PNG.

    Args:
        table: columns predictor (str), label (0 or 1), score (the higher the more like 1), and optionally probability
            (of label 1; null for predictors that give none). Rows without a score are left out; predictors that do not
            see both labels are named in the legend without a curve.
        positive, negative: what the labels 1 and 0 are called.
    """
    import polars as pl
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept
    from sklearn.metrics import roc_auc_score, roc_curve

    known = table.filter(pl.col("score").is_not_null() & pl.col("score").cast(pl.Float64).is_not_nan())
    calibrated = "probability" in known.columns and known["probability"].is_not_null().any()
    figure = Figure(figsize=(11.5 if calibrated else 6, 5.2), layout="constrained")
    panels = figure.subplots(1, 2 if calibrated else 1, squeeze=False)[0]
    roc = panels[0]
    reach = 0.05
    for number, name in enumerate(known["predictor"].unique(maintain_order=True)):
        own = known.filter(pl.col("predictor") == name)
        colour = COLOURS[number % len(COLOURS)]
        label = own["label"].to_numpy()
        score = own["score"].cast(pl.Float64).to_numpy()
        counts = f"{int(label.sum()):,} / {int((label == 0).sum()):,}"
        if len(np.unique(label)) < 2:
            roc.plot([], [], color=colour, label=f"{name}: only one class ({counts})")
            continue
        false, true, _ = roc_curve(label, score)
        roc.plot(false, true, color=colour, label=f"{name}: AUROC {roc_auc_score(label, score):.3f} ({counts})")
        if calibrated and own["probability"].is_not_null().all():
            probability = own["probability"].cast(pl.Float64).to_numpy()
            reach = max(reach, _calibration(panels[1], str(name), label, probability, colour))
    roc.plot([0, 1], [0, 1], **BASELINE, label="chance: 0.5")
    roc.set(
        xlabel=f"false positive rate ({negative} called {positive})",
        ylabel=f"true positive rate ({positive} found)",
        aspect="equal",
        title=f"ROC, the nearer to the upper left the better ({positive} / {negative})",
    )
    if calibrated:
        text = f"calibration, the nearer to the line the better ({BINS} bins at most)"
        frame_calibration(panels[1], text, positive, (0, min(1.1 * reach, 1)))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))  # below: curves may be anywhere
    figure.suptitle(title)
    save_png(figure, path)


def _calibration(axes: "Axes", name: str, label: np.ndarray, probability: np.ndarray, colour: str) -> float:
    """Draws one predictor's curve; returns how far its points reach."""
    # Equal probabilities stay in one bin.
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, BINS + 1)[1:-1]))
    number = np.digitize(probability, edges)
    parts = [part for bin_ in range(len(edges) + 1) if (part := np.flatnonzero(number == bin_)).size]
    predicted = np.array([probability[part].mean() for part in parts])
    observed = np.array([label[part].mean() for part in parts])
    size = np.array([part.size for part in parts])
    gap = float((np.abs(predicted - observed) * size).sum() / size.sum())
    brier = float(((probability - label) ** 2).mean())
    return draw_calibration(axes, calibration_label(name, gap, brier), predicted, observed, size, colour)
