"""Scored variants as the tables that `pictures/` takes: changes of a saturation, effects, probabilities."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, encode
from dnamamba.genome.effects import effects_of_changes
from dnamamba.genome.genes import Gene
from dnamamba.genome.store import TokenStore

if TYPE_CHECKING:
    import polars

FOLDS = 5


def changes_table(saturation: "polars.DataFrame") -> "polars.DataFrame":
    """The table of `dnamamba mutagenesis`, a row a base, as a row a change: contig, start (0-based), ref, alt, llr."""
    import polars as pl

    return (
        saturation.select("contig", pl.col("position").alias("start"), "ref", *(f"llr_{base}" for base in "ACGT"))
        .unpivot(index=["contig", "start", "ref"], variable_name="alt", value_name="llr")
        .with_columns(pl.col("alt").str.strip_prefix("llr_"))
        .filter((pl.col("ref") != pl.col("alt")) & pl.col("ref").is_in(list("ACGT")) & pl.col("llr").is_not_null())
        .sort("start", "alt")
    )


def with_effects(variants: "polars.DataFrame", store: TokenStore, genes: Iterable[Gene]) -> "polars.DataFrame":
    """The table (contig, start, ref, alt) with `effect` (`dnamamba.genome.effects.EFFECTS`) of each single-base change;
    null for other variants."""
    import polars as pl

    genes = list(genes)
    effect = np.full(len(variants), None, object)
    one_base = [pl.col(name).str.len_bytes() == 1 for name in ("ref", "alt")]
    plain = variants.select(plain=pl.all_horizontal(*one_base, pl.col("alt").is_in(list("ACGTacgt"))))["plain"]
    contigs = variants["contig"].cast(pl.String).to_numpy()
    for contig in np.unique(contigs).tolist():
        rows = np.flatnonzero((contigs == contig) & plain.fill_null(False).to_numpy())
        alt = encode("".join(variants["alt"].gather(rows).to_list())) & TOKEN_BITS
        start = variants["start"].gather(rows).to_numpy().astype(np.int64)
        effect[rows] = effects_of_changes(store, genes, contig, start, alt)
    return variants.with_columns(effect=pl.Series(effect.tolist(), dtype=pl.String))


def is_transversion(variants: "polars.DataFrame") -> np.ndarray:
    """(rows,) 1.0 where a purine becomes a pyrimidine or the other way round: the simplest predictor of harm."""
    purine = [variants[name].is_in(list("AGag")).to_numpy() for name in ("ref", "alt")]
    return (purine[0] != purine[1]).astype(float)


def predictor_table(
    name: str, label: np.ndarray, score: np.ndarray, group: np.ndarray | None = None
) -> "polars.DataFrame":
    """A row a variant for `pictures.roc`: predictor, label, score, probability.

    Probabilities come from a logistic regression of the label on the score alone. With `group` (genes, blocks) it is
    fitted on other groups than those it predicts for, in at most `FOLDS` parts; without, or where a part would see
    one label alone, there are none (null).
    """
    import polars as pl

    probability = None if group is None else cross_fitted(score, label, group)
    return pl.DataFrame(
        {
            "predictor": [name] * len(label),
            "label": label.astype(np.int64),
            "score": score.astype(np.float64),
            "probability": pl.Series([None] * len(label) if probability is None else probability, dtype=pl.Float64),
        }
    )


def cross_fitted(score: np.ndarray, label: np.ndarray, group: np.ndarray) -> np.ndarray | None:
    """(rows,) probabilities of label 1, each fitted without its own group; None if that cannot be done."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(group)))
    if folds < 2:
        return None
    out = np.empty(len(label))
    for fitted, held_out in GroupKFold(folds).split(score, label, group):
        if len(np.unique(label[fitted])) < 2:
            return None
        # Scaled, so that the penalty does not depend on the score's unit.
        centre, spread = score[fitted].mean(), score[fitted].std() or 1.0
        model = LogisticRegression().fit((score[fitted, None] - centre) / spread, label[fitted])
        out[held_out] = model.predict_proba((score[held_out, None] - centre) / spread)[:, 1]
    return out
