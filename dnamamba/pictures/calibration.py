"""Whether predicted probabilities are true shares: a reliability picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dnamamba.pictures.figures import BASELINE, COLOURS, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_calibration(
    predictors: Mapping[str, Mapping[str, Any]], path: Path, *, title: str, positive: str = "positive"
) -> None:
    """A line a predictor over bins of its probabilities, to a PNG.

    Args:
        predictors: name → what summary.json has as `calibration`: brier, expected_calibration_error, and bins with
            variants (how many), predicted (mean probability) and observed (share that is positive).
        positive: what the probabilities are of.
    """
    from matplotlib.figure import Figure  # not pyplot: no display is needed, no state is kept

    figure = Figure(figsize=(6.5, 6.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, found) in enumerate(predictors.items()):
        predicted, observed, size = (
            np.array([each[key] for each in found["bins"]], float) for key in ("predicted", "observed", "variants")
        )
        label = calibration_label(name, found["expected_calibration_error"], found["brier"])
        draw_calibration(axes, label, predicted, observed, size, COLOURS[number % len(COLOURS)])
    frame_calibration(axes, title, positive, (-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    save_png(figure, path)


def draw_calibration(
    axes: "Axes", label: str, predicted: np.ndarray, observed: np.ndarray, size: np.ndarray, colour: str
) -> float:
    """One predictor's line over its bins; returns how far its points reach."""
    error = np.sqrt(observed * (1 - observed) / size)
    axes.errorbar(predicted, observed, error, color=colour, marker="o", markersize=4, capsize=2, label=label)
    return float(max(predicted.max(), (observed + error).max()))


def calibration_label(name: str, error: float, brier: float) -> str:
    """Of a predictor's line."""
    return f"{name}: calibration error {error:.3f}, Brier {brier:.3f}"


def frame_calibration(axes: "Axes", title: str, positive: str, limits: tuple[float, float]) -> None:
    """The line of a perfect predictor, and what both axes, of the same limits, show."""
    axes.plot([0, 1], [0, 1], **BASELINE, label="perfect")
    axes.set(
        xlabel=f"predicted probability of {positive}",
        ylabel=f"fraction that is {positive}, ± 1 standard error",
        xlim=limits,
        ylim=limits,
        aspect="equal",
        title=title,
    )


def calibrations(variants: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Predictors for `plot_calibration` of what summary.json of a variant classifier has under `variants`: the model,
    the trees on the annotation, and both together, each over all and over missense variants."""
    annotation = variants.get("annotation", {})
    parts = {"the model": variants, "annotation": annotation, "both together": annotation.get("with_model", {})}
    found: dict[str, Mapping[str, Any]] = {}
    for name, figures in parts.items():
        for subset, of in ((name, figures), (f"{name}, missense", figures.get("missense", {}))):
            if of.get("calibration"):
                found[subset] = of["calibration"]
    return found
