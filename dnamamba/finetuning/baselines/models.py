"""Simple models to compare with, on the same examples: what they reach needs no language model.

- `composition_accuracy`: GC, share of N and length alone. Far above chance, it says that a task can be cheated.
- `kmer_regression`: logistic regression (ridge, for numbers) on standardised k-mer frequencies.

The strength of the penalty is chosen on dev, or on a part of train where there is no dev; test is predicted once.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, C, G
from dnamamba.finetuning.baselines.kmers import kmer_frequencies
from dnamamba.finetuning.metrics import SELECT_BY, evaluate
from dnamamba.finetuning.tasks.examples import Target
from dnamamba.genome.progress import OnProgress

Sequences = Sequence[np.ndarray] | np.ndarray
"""uint8 tokens of each sequence, of one length (rows of an array) or several."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""scikit-learn's C, the inverse strength, of the logistic regression; 1 / C is the ridge's alpha."""
DEV_FRACTION = 0.1
"""Of train, where there is no dev to choose on."""
CHOOSE_EXAMPLES = 4096
"""Of train, at most, to fit on while choosing; the chosen model is fitted to all of it."""
ITERATIONS = 300


class Fitted(NamedTuple):
    """A simple model's predictions and what was chosen for it."""

    predictions: np.ndarray
    """(test examples, outputs): probabilities, or the values of a regression; as `evaluate` takes them."""
    penalty: float
    """The C chosen."""
    both_strands: bool
    dev: float
    """The metric that chose (`metrics.SELECT_BY`), on dev."""


def composition_features(sequences: Sequences) -> np.ndarray:
    """(sequences, 3) float64: GC over A, C, G, T; share of other tokens; length. NaN is GC where there is no base."""
    features = np.empty((len(sequences), 3))
    for row, sequence in zip(features, sequences, strict=True):
        counts = np.bincount(np.asarray(sequence) & TOKEN_BITS, minlength=BASES)
        bases, length = counts[:BASES].sum(), len(sequence)
        row[:] = (counts[C] + counts[G]) / bases if bases else np.nan, (length - bases) / max(length, 1), length
    return features


def composition_accuracy(
    train_tokens: Sequences, train_labels: np.ndarray, test_tokens: Sequences, test_labels: np.ndarray
) -> float:
    """Accuracy on test of a classifier that sees GC, the share of N, and the length of each sequence, nothing else.

    Gradient-boosted trees: a class may lie in the middle of the range, where a linear rule would miss it.

    Args:
        train_labels, test_labels: (examples,) integers.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=50, early_stopping=False, random_state=0)
    model.fit(composition_features(train_tokens), train_labels)
    return float((model.predict(composition_features(test_tokens)) == test_labels).mean())


def kmer_regression(
    k: int,
    train_tokens: Sequences,
    train_labels: np.ndarray,
    test_tokens: Sequences,
    test_labels: np.ndarray,
    target: Target | None = None,
    *,
    dev: tuple[Sequences, np.ndarray] | None = None,
    both_strands: bool | None = None,
) -> dict[str, Any]:
    """Metrics on test (`metrics.evaluate`) of a regression on k-mer frequencies, and `k`, `penalty`, `both_strands`,
    `dev`: what was chosen, and its score there. The arguments are those of `kmer_predictions`; without `target` the
    labels are classes 0 … n − 1.
    """
    if target is None:
        target = Target("multiclass", tuple(map(str, range(int(np.max(train_labels)) + 1))))
    fitted = kmer_predictions(k, train_tokens, train_labels, test_tokens, target, dev=dev, both_strands=both_strands)
    chosen = {"k": k, "penalty": fitted.penalty, "both_strands": fitted.both_strands, "dev": fitted.dev}
    return {**evaluate(fitted.predictions, test_labels, target), **chosen}


def kmer_predictions(
    k: int,
    train_tokens: Sequences,
    train_labels: np.ndarray,
    test_tokens: Sequences,
    target: Target,
    *,
    dev: tuple[Sequences, np.ndarray] | None = None,
    both_strands: bool | None = None,
    progress: OnProgress | None = None,
) -> Fitted:
    """Chooses on dev, fits on train, predicts test.

    Args:
        train_labels: multiclass (examples,) integers; multilabel and regression (examples, outputs).
        dev: sequences and labels to choose on; None takes a tenth of train.
        both_strands: counts of both strands; None chooses on dev too.
        progress: called with (examples fitted so far, in all) after each of the fits, of which the last is of all.
    """
    # In a drawn order: classes may take turns, and every n-th example would miss some.
    order = np.random.default_rng(0).permutation(len(train_labels))
    if dev is None:
        held, order = np.split(order, [max(round(DEV_FRACTION * len(order)), 1)])
        dev = _take(train_tokens, held), train_labels[held]
    fit_tokens, fit_labels = _take(train_tokens, order[:CHOOSE_EXAMPLES]), train_labels[order[:CHOOSE_EXAMPLES]]
    dev_tokens, dev_labels = dev
    best: tuple[float, float, bool] | None = None
    uses = (False, True) if both_strands is None else (both_strands,)
    fitted, to_fit = 0, len(uses) * len(PENALTIES) * len(fit_labels) + len(train_labels)
    for strands in uses:
        fit_features, dev_features = (
            kmer_frequencies(tokens, k, both_strands=strands) for tokens in (fit_tokens, dev_tokens)
        )
        for penalty in PENALTIES:
            predicted = fit_linear(fit_features, fit_labels, target, penalty)(dev_features)
            score = evaluate(predicted, dev_labels, target)[SELECT_BY[target.kind]]
            score = score if math.isfinite(score) else -math.inf  # not defined on this dev: never the better one
            if best is None or score > best[0]:
                best = score, penalty, strands
            fitted += len(fit_labels)
            if progress is not None:
                progress(fitted, to_fit)
    assert best is not None
    score, penalty, strands = best
    model = fit_linear(kmer_frequencies(train_tokens, k, both_strands=strands), train_labels, target, penalty)
    return Fitted(model(kmer_frequencies(test_tokens, k, both_strands=strands)), penalty, strands, score)


def fit_linear(
    features: np.ndarray, labels: np.ndarray, target: Target, penalty: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Logistic regression, or ridge for numbers, on standardised features.

    Args:
        features: (examples, features).
        labels: as `kmer_predictions` takes them.
        penalty: scikit-learn's C; 1 / C is the ridge's alpha.

    Returns:
        The fitted model, (examples, features) → (examples, outputs).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import StandardScaler

    def logistic(classes: np.ndarray) -> Pipeline:
        pipeline = make_pipeline(StandardScaler(copy=True), LogisticRegression(C=penalty, max_iter=ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a strong model, not a converged one, is wanted
            return pipeline.fit(features, classes)

    if target.kind == "regression":
        ridge = make_pipeline(StandardScaler(copy=True), Ridge(alpha=1 / penalty)).fit(features, labels)
        return lambda features: ridge.predict(features).reshape(len(features), -1)
    if target.kind == "multilabel":
        each = [logistic(column > 0) if np.ptp(column) else None for column in labels.T]
        constant = labels.mean(0)
        return lambda features: np.column_stack(
            [m.predict_proba(features)[:, 1] if m else np.full(len(features), constant[i]) for i, m in enumerate(each)]
        )
    classes = np.unique(labels).astype(np.int64)
    model = logistic(labels) if len(classes) > 1 else None  # a rare class may be in no example of a part of train

    def probabilities(features: np.ndarray) -> np.ndarray:
        table = np.zeros((len(features), len(target.names)))
        table[:, classes] = model.predict_proba(features) if model else 1.0
        return table

    return probabilities


def _take(sequences: Sequences, rows: np.ndarray) -> Sequences:
    return sequences[rows] if isinstance(sequences, np.ndarray) else [sequences[row] for row in rows.tolist()]
