"""How good predictions are, by scikit-learn; over seeds as mean and deviation, over groups by resampling."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dnamamba.finetuning.tasks.examples import Target
from dnamamba.model.config import Kind

SELECT_BY = {"multiclass": "mcc", "multilabel": "auroc", "regression": "pearson"}
"""The dev metric by which epochs and learning rates are selected; higher is better. Ties go to the lower loss."""
RESAMPLES = 1000


class ConfidenceInterval(NamedTuple):
    """A statistic with its 95 % interval."""

    value: float
    low: float
    high: float
    groups: int
    """What was resampled."""


def evaluate(predictions: np.ndarray, labels: np.ndarray, target: Target) -> dict[str, float]:
    """Metrics by name; NaN where one is not defined (a class that no example has).

    Args:
        predictions: (examples, outputs): probabilities, or the values of a regression.
        labels: multiclass (examples,); multilabel and regression (examples, outputs).
    """
    return _EVALUATE[target.kind](predictions, labels)


def _multiclass(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    predicted = probabilities.argmax(1)
    classes = np.arange(probabilities.shape[1])
    return {
        "accuracy": float((predicted == labels).mean()),
        "mcc": matthews(labels, predicted),
        "f1": float(metrics.f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "auroc": _multiclass_auroc(probabilities, labels),
    }


def _multiclass_auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Of two classes that of the second's probability; of more the mean of each against the rest."""
    if probabilities.shape[1] == 2:
        return _auroc(labels == 1, probabilities[:, 1])
    return float(np.mean([_auroc(labels == k, probabilities[:, k]) for k in range(probabilities.shape[1])]))


def _multilabel(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    predicted = probabilities > 0.5
    each = [_auroc(labels[:, k] > 0, probabilities[:, k]) for k in range(labels.shape[1])]
    defined = [value for value in each if not math.isnan(value)]  # a label that no test example has
    return {
        "accuracy": float((predicted == (labels > 0)).mean()),
        "exact_match": float((predicted == (labels > 0)).all(1).mean()),
        "mcc": float(np.mean([matthews(labels[:, k] > 0, predicted[:, k]) for k in range(labels.shape[1])])),
        "f1": float(metrics.f1_score(labels > 0, predicted, average="macro", zero_division=0)),
        "auroc": float(np.mean(defined)) if defined else math.nan,
    }


def _regression(values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Correlations are the mean over targets whose labels differ; NaN where the predictions of one do not."""
    from scipy import stats

    def mean(statistic: Callable[..., tuple[float, float]]) -> float:
        columns = [(a, b) for a, b in zip(values.T, labels.T, strict=True) if b.std() > 0]
        each = [statistic(a, b)[0] if a.std() > 0 else math.nan for a, b in columns]
        return float(np.mean(each)) if each else math.nan

    return {
        "pearson": mean(stats.pearsonr),
        "spearman": mean(stats.spearmanr),
        "mse": float(((values - labels) ** 2).mean()),
    }


_EVALUATE: dict[Kind, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _auroc(is_positive: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if is_positive.all() or not is_positive.any():
        return math.nan
    return float(roc_auc_score(is_positive, scores))


def matthews(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation of (examples,) classes; 0 where either side has one class alone."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(truth)) < 2 or len(np.unique(predicted)) < 2:
        return 0.0  # as scikit-learn has it, which warns where both are constant
    return float(matthews_corrcoef(truth, predicted))


def over_seeds(values: Sequence[dict[str, float]]) -> dict[str, dict[str, object]]:
    """Metric → mean, std (over seeds, n − 1; None for one seed) and the value by seed; None stands for undefined."""
    summary: dict[str, dict[str, object]] = {}
    for name in values[0]:
        numbers = np.array([seed[name] for seed in values])
        summary[name] = {
            "mean": _finite(numbers.mean()),
            "std": _finite(numbers.std(ddof=1)) if len(numbers) > 1 else None,
            "by_seed": [_finite(number) for number in numbers],
        }
    return summary


def bootstrap_by_group(
    values: np.ndarray, groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> ConfidenceInterval:
    """The mean of `values` (examples,) with a 95 % interval from resampling whole groups with replacement.

    Neighbouring windows share sequence, homologous ones of several species their locus: resampling windows would count
    them as independent and make the interval too narrow. Percentiles of the ratio of sums over the drawn groups.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(number, weights=values, minlength=len(names))
    counts = np.bincount(number, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return ConfidenceInterval(float(values.mean()), float(low), float(high), len(names))


def bootstrap_matthews(
    truth: np.ndarray, predicted: np.ndarray, groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> ConfidenceInterval:
    """The mean over seeds of the Matthews correlation, with a 95 % interval from resampling groups as above.

    Args:
        truth: (examples,) classes, from 0.
        predicted: (seeds, examples) classes.
    """
    classes = int(max(truth.max(), predicted.max())) + 1
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    weights = np.stack([np.ones(len(names)), *(np.bincount(row, minlength=len(names)) for row in drawn)])
    found = []
    for each in predicted:
        cells = np.bincount((number * classes + truth) * classes + each, minlength=len(names) * classes**2)
        found.append(_matthews_of((weights @ cells.reshape(len(names), -1)).reshape(-1, classes, classes)))
    value, *resampled = np.mean(found, axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return ConfidenceInterval(float(value), float(low), float(high), len(names))


def _matthews_of(counts: np.ndarray) -> np.ndarray:
    """Of (…, truth, predicted) counts; 0 where either side has one class alone."""
    total, right = counts.sum((-1, -2)), counts.trace(axis1=-2, axis2=-1)
    truth, predicted = counts.sum(-1), counts.sum(-2)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    covered = right * total - (truth * predicted).sum(-1)
    return np.where(spread > 0, covered / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def _finite(number: float) -> float | None:
    """JSON has no NaN."""
    return float(number) if math.isfinite(number) else None
