"""Gradient-boosted trees of two classes, fitted by scikit-learn, kept as plain arrays and read without it.

A pickle would run code of whoever made it; the arrays of an .npz do not.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.outputs import whole_file

CANDIDATES = (
    {"max_leaf_nodes": 7, "l2_regularization": 10.0},
    {"max_leaf_nodes": 15, "l2_regularization": 1.0},
    {"max_leaf_nodes": 15, "l2_regularization": 30.0},
)
"""What is tried on dev; the number of trees is chosen there too"""
TREES, EVERY = 300, 25
"""At most, and the step in which their number is tried"""
COMMON = {"learning_rate": 0.05, "min_samples_leaf": 40, "early_stopping": False, "random_state": 0}
_FORMAT = "dnamamba trees 1"


class BoostedTrees(NamedTuple):
    """log(p / (1 − p)) = base + Σ over trees of the value of the leaf that an example falls into.

    A node sends an example to `left` where its feature is at most `threshold`, or is NaN and `nan_left`, else to
    `right`; both are nodes' numbers in the arrays of all trees. A leaf is its own `left` and `right`.
    """

    features: tuple[str, ...]
    base: float
    roots: np.ndarray
    """(trees,) int32"""
    feature: np.ndarray
    """(nodes,) int32"""
    threshold: np.ndarray
    """(nodes,) float64"""
    nan_left: np.ndarray
    """(nodes,) bool"""
    left: np.ndarray
    """(nodes,) int32"""
    right: np.ndarray
    """(nodes,) int32"""
    value: np.ndarray
    """(nodes,) float64: of an inner node the mean of its training examples"""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(examples,) float64 of (examples, features)."""
        return self.base + self._contributions(features).sum(1)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(examples,) of class 1."""
        return sigmoid(self.logits(features))

    def explained(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logits (examples,), and (examples, features) what each feature adds to them: how the mean of the training
        examples changes along the path through each tree where that feature decides (Saabas 2014). A logit is the sum
        of its row and a constant."""
        parts = self._contributions(features)
        return self.base + parts.sum(1), parts[:, :-1]

    def _contributions(self, features: np.ndarray) -> np.ndarray:
        """(examples, features + 1); the last column is of the roots, the same for all."""
        rows = np.arange(len(features))
        found = np.zeros((len(features), len(self.features) + 1))
        found[:, -1] = self.value[self.roots].sum()
        for root in self.roots.tolist():
            node = np.full(len(features), root)
            while (inner := self.left[node] != node).any():
                column = self.feature[node]
                cell = features[rows, column]
                to_left = np.where(np.isnan(cell), self.nan_left[node], cell <= self.threshold[node])
                below = np.where(to_left, self.left[node], self.right[node])
                found[rows[inner], column[inner]] += (self.value[below] - self.value[node])[inner]
                node = below
        return found

    def save(self, path: Path) -> None:
        """Writes an .npz, whole or not at all."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in self._asdict().items()}
        with whole_file(path, overwrite=True) as partial, partial.open("wb") as file:
            np.savez_compressed(file, format=np.array(_FORMAT), **arrays)

    @classmethod
    def load(cls, path: Path) -> "BoostedTrees":
        """Raises `InputError` for a file that is none or that fits no such trees."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("format", *cls._fields)}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path}: no trees of a variant classifier ({type(error).__name__})") from None
        names = tuple(map(str, arrays["features"]))
        nodes = len(arrays["feature"])
        children = np.concatenate((arrays["left"], arrays["right"]))
        own = np.tile(np.arange(nodes), 2)
        if (
            str(arrays.pop("format")) != _FORMAT
            or any(len(arrays[name]) != nodes for name in ("threshold", "nan_left", "left", "right", "value"))
            or not (arrays["feature"] >= 0).all()
            or not (arrays["feature"] < len(names)).all()
            or not ((children >= own) & (children < nodes)).all()  # no way back: every path ends
        ):
            raise InputError(f"{path}: not the trees that this version of dnamamba writes")
        return cls(**(arrays | {"features": names, "base": float(arrays["base"])}))


class FittedTrees(NamedTuple):
    """Trees and how they were chosen."""

    trees: BoostedTrees
    chosen: dict[str, float]
    """Of `CANDIDATES`, with the number of trees"""
    dev_loss: float
    """Nats an example"""


def fit_trees(
    names: tuple[str, ...], train: np.ndarray, labels: np.ndarray, dev: np.ndarray, dev_labels: np.ndarray
) -> FittedTrees:
    """Fits each of `CANDIDATES` on train, and takes the one and the number of trees with the least log loss on dev.

    Args:
        train, dev: (examples, features) float32, NaN where there is no value.
        labels, dev_labels: (examples,) 0 or 1; train has both.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    best: FittedTrees | None = None
    for candidate in CANDIDATES:
        model = HistGradientBoostingClassifier(max_iter=TREES, **COMMON, **candidate).fit(train, labels)
        for count, stage in enumerate(model.staged_decision_function(dev), 1):
            loss = _log_loss(stage.reshape(-1), dev_labels)
            if count % EVERY == 0 and (best is None or loss < best.dev_loss):
                best = FittedTrees(exported(model, names, count), {**candidate, "trees": count}, loss)
    assert best is not None
    return best


def exported(model: object, names: tuple[str, ...], count: int) -> BoostedTrees:
    """The first `count` trees of a fitted `HistGradientBoostingClassifier` of two classes without categories."""
    parts = [predictors[0].nodes for predictors in model._predictors[:count]]  # type: ignore[attr-defined]
    offsets = np.cumsum([0, *map(len, parts)])
    nodes = np.concatenate(parts)
    shift = np.repeat(offsets[:-1], list(map(len, parts)))
    own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
    left, right = (np.where(leaf, own, nodes[side].astype(np.int64) + shift) for side in ("left", "right"))
    value = np.where(leaf, nodes["value"], 0.0)
    weight = nodes["count"].astype(np.float64)
    for node in np.flatnonzero(~leaf)[::-1].tolist():  # children come after their parent
        sides = [int(left[node]), int(right[node])]
        value[node] = (value[sides] * weight[sides]).sum() / weight[sides].sum()
    return BoostedTrees(
        names,
        float(np.ravel(model._baseline_prediction)[0]),  # type: ignore[attr-defined]
        offsets[:-1].astype(np.int32),
        np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32),
        nodes["num_threshold"].astype(np.float64),
        nodes["missing_go_to_left"].astype(bool),
        left.astype(np.int32),
        right.astype(np.int32),
        value,
    )


def _log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), without overflow."""
    return np.exp(-np.logaddexp(0, -logits))
