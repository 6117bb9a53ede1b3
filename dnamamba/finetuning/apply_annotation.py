"""The trees of a fine-tuning with `--annotation` applied to the alleles of a VCF: probability, effect, and reasons."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.finetuning.baselines.trees import BoostedTrees, sigmoid
from dnamamba.genome.allele_output import InfoField
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.effects import EFFECTS
from dnamamba.genome.genes import read_genes
from dnamamba.genome.store import TokenStore
from dnamamba.genome.variant_features import FEATURES, variant_features

REASONS = 3
"""Features named for an allele"""
BLOCK = 1 << 16
"""Alleles that go through the trees at a time"""
_EFFECT_TEXTS = np.array([*(name.replace(",", "").replace(" ", "_") for name in EFFECTS), "coding_change"], object)


class AnnotatedPredictions(NamedTuple):
    """Of each alternate allele; NaN and None for those with a reason (`Alleles.reason`)."""

    positive: str
    """The class whose probability it is"""
    probability: np.ndarray
    """(alleles,) float64"""
    effect: np.ndarray
    """(alleles,) object: of `EFFECTS`, with `_` for spaces"""
    reasons: np.ndarray
    """(alleles,) object: the features that move the logit most, as `effect:+2.31|donor_distance:-0.40|…`"""

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """As the table has them."""
        return {
            f"annotation_p_{self.positive}": self.probability,
            "annotation_effect": self.effect,
            "annotation_reasons": self.reasons,
        }

    def info_fields(self) -> list[InfoField]:
        """The same as INFO fields."""
        shown = self.positive.replace("\\", "/").replace('"', "'")
        by = "by trees on the annotation of genes"
        return [
            InfoField("DNAMAMBA_ANNOTATION_P", f"Probability of the class {shown} {by}", self.probability),
            InfoField("DNAMAMBA_ANNOTATION_EFFECT", "Most severe effect on a transcript", self.effect),
            InfoField(
                "DNAMAMBA_ANNOTATION_REASONS",
                "The features that change the logit of DNAMAMBA_ANNOTATION_P most, and by how much",
                self.reasons,
            ),
        ]


def trees_of_run(run: Path) -> BoostedTrees:
    """Raises `InputError` for a run without `--annotation`, and for features of another version."""
    path = run / "annotation.npz"
    if not path.is_file():
        raise InputError(f"{path}: no such file; --annotation needs the run folder of a finetune with --annotation")
    trees = BoostedTrees.load(path)
    if trees.features != FEATURES:
        raise InputError(f"{path}: trees on other features than this version of dnamamba has; train again")
    return trees


def annotated_predictions(
    trees: BoostedTrees, annotation: Path, store: TokenStore, alleles: Alleles, positive: str
) -> AnnotatedPredictions:
    """The trees' answer for all alleles. Raises `InputError` as `read_genes` does."""
    features = variant_features(store, read_genes(annotation, store), alleles)
    probability = np.full(len(alleles), np.nan)
    effect, reasons = np.full((2, len(alleles)), None, object)
    known = np.flatnonzero(alleles.reason == 0)
    effect[known] = _EFFECT_TEXTS[features[known, FEATURES.index("effect")].astype(np.int64)]
    for first in range(0, known.size, BLOCK):
        rows = known[first : first + BLOCK]
        logits, parts = trees.explained(features[rows])
        probability[rows] = sigmoid(logits)
        largest = np.argsort(-np.abs(parts), axis=1, kind="stable")[:, :REASONS]
        for row, columns, values in zip(rows.tolist(), largest.tolist(), parts, strict=True):
            reasons[row] = "|".join(f"{FEATURES[column]}:{values[column]:+.2f}" for column in columns)
    return AnnotatedPredictions(positive, probability, effect, reasons)
