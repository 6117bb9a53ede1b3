"""What is reported of a variant classifier but its accuracy: ranking, by gene, missense, calibration, shortcuts."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.finetuning.baselines.trees import FittedTrees, fit_trees, sigmoid
from dnamamba.finetuning.metrics import matthews
from dnamamba.finetuning.tasks.examples import Examples
from dnamamba.genome.effects import EFFECTS
from dnamamba.genome.variant_features import FEATURES

RESAMPLES = 1000
LEAST = 5
"""Variants of either class that a group needs for an AUROC of its own"""


class AnnotatedVariants(NamedTuple):
    """What an annotation of genes says of each variant (`dnamamba.genome.variant_features`): (variants, features)."""

    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    transcripts: int
    """Of the annotation"""

    def facts(self) -> dict[str, Any]:
        """For data.json: a resumed run must find the same."""
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(rows).tobytes() for rows in self[:3])).hexdigest()
        return {"transcripts": self.transcripts, "features": self.train.shape[1], "sha256": digest}


@dataclass(frozen=True)
class VariantReport:
    """What is known apart from the sequences; class 1 is the positive one."""

    train_labels: np.ndarray
    train_effects: list[str] | None
    test_effects: list[str] | None
    dev_labels: np.ndarray
    annotated: AnnotatedVariants | None = None

    @cached_property
    def trees(self) -> FittedTrees:
        """On the features of the annotation, fitted on train and chosen on dev."""
        assert self.annotated is not None
        return fit_trees(FEATURES, self.annotated.train, self.train_labels, self.annotated.dev, self.dev_labels)

    def keep(self, folder: Path) -> None:
        """Writes the trees as annotation.npz; nothing without an annotation."""
        if self.annotated is not None:
            self.trees.trees.save(folder / "annotation.npz")

    def measure(self, test: Examples, predictions: list[np.ndarray], on_dev: list[np.ndarray]) -> dict[str, Any]:
        """For summary.json; `predictions` of test and `on_dev` are (examples, 2) of each seed: their means count.
        Without any, only what needs no model."""
        model = [np.mean([values[:, 1] for values in each], axis=0) for each in (predictions, on_dev) if each]
        positive = test.labels == 1
        group = np.array([origin.group for origin in test.origins])
        of_model = self._figures(test, *model) if model else {}
        missense = {name: of_model.pop(name) for name in ("missense",) if name in of_model}
        found = of_model | {"shortcuts": {"group_mean": _auroc(positive, leave_one_out(positive, group))}} | missense
        if self.train_effects is not None and self.test_effects is not None:
            found["shortcuts"]["effect_class"] = _auroc(
                positive, effect_rates(self.train_effects, self.train_labels == 1, self.test_effects)
            )
        if self.annotated is not None:
            found["annotation"] = self._with_annotation(test, *model)
        return {"variants": found}

    def _with_annotation(
        self, test: Examples, model: np.ndarray | None = None, model_on_dev: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Figures of the trees alone; and with a model's probabilities of test and dev those of both together
        (`with_model`, a logistic regression on their logits, fitted on dev), and what the model adds (`model_adds`)."""
        assert self.annotated is not None
        trees, chosen, dev_loss = self.trees
        logits, on_dev = trees.logits(self.annotated.test), trees.logits(self.annotated.dev)
        found = {
            **self._figures(test, sigmoid(logits), sigmoid(on_dev)),
            "trees": {**chosen, "dev_loss": dev_loss},
        }
        if model is None or model_on_dev is None or len(np.unique(self.dev_labels)) < 2:
            return found
        both = np.column_stack((on_dev, _logit(model_on_dev))), np.column_stack((logits, _logit(model)))
        together, together_on_dev = _joined(both[0], self.dev_labels, both[1])
        found["with_model"] = self._figures(test, together, together_on_dev)
        group = np.array([origin.group for origin in test.origins])
        found["model_adds"] = {
            name: gained(test.labels[rows] == 1, logits[rows], together[rows], group[rows])
            for name, rows in (("all", np.ones(len(test), bool)), ("missense", self._missense(len(test))))
            if 0 < (test.labels[rows] == 1).sum() < rows.sum()
        }
        return found

    def _figures(self, test: Examples, probability: np.ndarray, dev_probability: np.ndarray) -> dict[str, Any]:
        """Of a predictor's probabilities (examples,)."""
        positive = test.labels == 1
        group = np.array([origin.group for origin in test.origins])
        found: dict[str, Any] = {
            "all": ranking(positive, probability, group),
            "calibration": calibration(positive, probability),
            "threshold": at_threshold(positive, probability, best_threshold(self.dev_labels == 1, dev_probability)),
        }
        missense = self._missense(len(test))
        if missense.any():
            found["missense"] = ranking(positive[missense], probability[missense], group[missense])
            found["missense"]["calibration"] = calibration(positive[missense], probability[missense])
        return found

    def _missense(self, examples: int) -> np.ndarray:
        """(test examples,) bool; by the column of effects where there is one, else by the annotation."""
        if self.test_effects is not None:
            return np.char.find(np.char.lower(np.array(self.test_effects)), "missense") >= 0
        if self.annotated is not None:
            return self.annotated.test[:, FEATURES.index("effect")] == EFFECTS.index("missense")
        return np.zeros(examples, bool)


def ranking(positive: np.ndarray, score: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """AUROC and AUPRC with 95 % intervals from resampling whole groups, and the mean of the groups' own AUROCs.

    All arrays (examples,): bool, higher where positives are likelier, and what is resampled as a whole.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    found: dict[str, Any] = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    if not 0 < positive.sum() < positive.size:
        return found
    names, number = np.unique(group, return_inverse=True)
    intervals = np.nanpercentile(resampled(positive, score, number), [2.5, 97.5], axis=0).T.tolist()
    values = float(roc_auc_score(positive, score)), float(average_precision_score(positive, score))
    for name, value, (low, high) in zip(("auroc", "auprc"), values, intervals, strict=True):
        found[name] = {"value": value, "low": low, "high": high, "groups": len(names)}
    own = [
        float(roc_auc_score(positive[here], score[here]))
        for here in (number == index for index in range(len(names)))
        if min(positive[here].sum(), (~positive[here]).sum()) >= LEAST
    ]
    found["mean_auroc_by_group"] = {"value": float(np.mean(own)) if own else None, "groups": len(own)}
    return found


def resampled(positive: np.ndarray, score: np.ndarray, number: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, 2) AUROC and AUPRC of groups `number` (examples,) drawn with replacement; NaN for one class alone.

    Ranked once and weighted by how often each group was drawn: scikit-learn would rank every time.
    """
    order = np.argsort(-score, kind="stable")
    truth, drawn_as = positive[order], number[order]
    run = np.concatenate(([0], np.cumsum(np.diff(score[order]) < 0)))  # equal scores are one threshold
    groups = int(number.max()) + 1
    rng = np.random.default_rng(0)
    found = np.full((resamples, 2), np.nan)
    for row in found:
        weight = np.bincount(rng.integers(groups, size=groups), minlength=groups)[drawn_as]
        up, down = np.bincount(run, weights=weight * truth), np.bincount(run, weights=weight * ~truth)
        if up.any() and down.any():
            above, below = np.cumsum(up), np.cumsum(down)
            row[0] = (down * (above - up / 2)).sum() / (above[-1] * below[-1])
            row[1] = (up * above / np.maximum(above + below, 1)).sum() / above[-1]
    return found


def gained(positive: np.ndarray, before: np.ndarray, after: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """How much higher the AUROC of `after` is than that of `before`, with a 95 % interval: both of the same drawn
    groups. Arguments as `ranking`'s."""
    number = np.unique(group, return_inverse=True)[1]
    drawn = resampled(positive, after, number)[:, 0] - resampled(positive, before, number)[:, 0]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
    value = (_auroc(positive, after) or 0.0) - (_auroc(positive, before) or 0.0)
    return {"auroc": value, "low": low, "high": high}


def calibration(positive: np.ndarray, probability: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Tenths of the examples by their probability, the Brier score, and the mean gap between said and seen."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    said = [float(probability[part].mean()) for part in parts]
    seen = [float(positive[part].mean()) for part in parts]
    gap = sum(part.size * abs(a - b) for part, a, b in zip(parts, said, seen, strict=True)) / positive.size
    return {
        "brier": float(((probability - positive) ** 2).mean()),
        "expected_calibration_error": float(gap),
        "bins": [
            {"variants": part.size, "predicted": a, "observed": b} for part, a, b in zip(parts, said, seen, strict=True)
        ],
    }


def best_threshold(positive: np.ndarray, probability: np.ndarray) -> float:
    """The probability from which on calling positives gives the highest Matthews correlation; chosen on dev alone."""
    order = np.argsort(-probability, kind="stable")
    truth, ranked = positive[order], probability[order]
    called, hits = np.arange(1, truth.size + 1), np.cumsum(truth)
    total, count = truth.size, truth.sum()
    spread = np.sqrt(1.0 * called * (total - called) * count * (total - count))
    mcc = np.where(spread > 0, (hits * total - 1.0 * called * count) / np.maximum(spread, 1e-12), 0.0)
    mcc[:-1][ranked[:-1] == ranked[1:]] = -1.0  # no threshold parts equal probabilities
    return float(ranked[int(mcc.argmax())])


def at_threshold(positive: np.ndarray, probability: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Test figures of calling positive what has at least the threshold; None where a class has no example."""
    called = probability >= threshold
    return {
        "chosen_on_dev": threshold,
        "accuracy": float((called == positive).mean()),
        "mcc": matthews(positive, called),
        "sensitivity": float(called[positive].mean()) if positive.any() else None,
        "specificity": float((~called[~positive]).mean()) if (~positive).any() else None,
    }


def effect_rates(train: list[str], positive: np.ndarray, test: list[str]) -> np.ndarray:
    """The share of positives among the training variants of the same effect; of all for an effect never seen."""
    overall = float(positive.mean())
    rates = {effect: float(positive[np.array(train) == effect].mean()) for effect in set(train)}
    return np.array([rates.get(effect, overall) for effect in test])


def leave_one_out(positive: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The share of positives among the *other* variants of the group: what a split that mixes genes would let a model
    know, and no honest predictor does."""
    number = np.unique(group, return_inverse=True)[1]
    total, count = np.bincount(number, weights=positive)[number], np.bincount(number)[number]
    return np.where(count > 1, (total - positive) / np.maximum(count - 1, 1), positive.mean())


def _logit(probability: np.ndarray) -> np.ndarray:
    """Finite for 0 and 1 too."""
    inside = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(inside) - np.log1p(-inside)


def _joined(on_dev: np.ndarray, labels: np.ndarray, on_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of test and of dev by a logistic regression on logits (examples, 2), fitted on dev."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=1000).fit(on_dev, labels)
    test, dev = (model.predict_proba(logits)[:, 1] for logits in (on_test, on_dev))
    return test, dev


def _auroc(positive: np.ndarray, score: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < positive.size else None
