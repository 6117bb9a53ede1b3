"""The scores of alternate alleles as they are written: both strands and their means, as INFO fields or as a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dnamamba.analysis.variants.score_settings import ScoreSettings
from dnamamba.analysis.variants.scores import Scores
from dnamamba.genome import vcf
from dnamamba.genome.allele_output import InfoField, allele_table, annotate_alleles, skipped_field
from dnamamba.genome.alleles import REASONS, Alleles, Checked
from dnamamba.genome.view import GenomeView
from dnamamba.inference.provenance import vcf_note

if TYPE_CHECKING:
    import polars

_CONTIG_EDGE = list(REASONS).index("contig_edge")
_NATS = "natural log, above 0 where the alternate allele is the likelier one"
_INFO = {
    "llr": ("LLR", f"Log-likelihood ratio of ALT to REF by a DNA language model, mean of both strands; {_NATS}"),
    "llr_forward": ("LLR_FWD", "DNAMAMBA_LLR on the forward strand"),
    "llr_reverse": ("LLR_REV", "DNAMAMBA_LLR on the reverse strand"),
    "at": ("AT", "Part of DNAMAMBA_LLR at the allele itself"),
    "after": ("AFTER", "Part of DNAMAMBA_LLR at reference bases near the allele, the same for both alleles"),
    "percentile": ("PCT", "Share of random variants of the same kind and length with a lower DNAMAMBA_LLR"),
    "distance": ("DIST", "Mean Euclidean distance of the embeddings of the bases after the allele"),
}
"""column -> INFO field, without its prefix, and what it says"""


class ScoreColumns(NamedTuple):
    """What is written of each alternate allele."""

    values: dict[str, np.ndarray]
    """Name -> (alleles,) float64, NaN where there is no score"""
    bases: np.ndarray
    """(alleles,) int64: bases after the allele (on both sides, of a model that sees them) that were scored, both
    strands"""
    reason: np.ndarray
    """(alleles,) uint8: a code of `REASON_NAMES`"""


def combine(alleles: Alleles, scores: Scores) -> ScoreColumns:
    """Both strands and their means. Without one of the strands there is no mean, and the reason says so."""
    forward, reverse = scores.forward, scores.reverse
    values = {
        "llr": (forward.llr + reverse.llr) / 2,
        "llr_forward": forward.llr,
        "llr_reverse": reverse.llr,
        "at": (forward.at + reverse.at) / 2,
        "at_forward": forward.at,
        "at_reverse": reverse.at,
        "after": (forward.after + reverse.after) / 2,
        "after_forward": forward.after,
        "after_reverse": reverse.after,
    }
    if forward.distance is not None and reverse.distance is not None:
        values["distance"] = (forward.distance + reverse.distance) / 2
    reason = np.where((alleles.reason == 0) & np.isnan(values["llr"]), _CONTIG_EDGE, alleles.reason)
    return ScoreColumns(values, forward.bases + reverse.bases, reason)


def info_fields(columns: ScoreColumns) -> list[InfoField]:
    """The INFO fields of the scores."""
    return [
        InfoField(f"DNAMAMBA_{name}", text, columns.values[column])
        for column, (name, text) in _INFO.items()
        if column in columns.values
    ]


def write_scored_vcf(
    settings: ScoreSettings,
    store: GenomeView,
    records: vcf.Records,
    checked: Checked,
    columns: ScoreColumns,
    provenance: Mapping[str, Any],
) -> None:
    """The input VCF with the scores added: every record, in order; their provenance stands in its header."""
    notes = [vcf_note("score", provenance)]
    annotate_alleles(
        settings.vcf,
        settings.out,
        store,
        records,
        checked,
        info_fields(columns),
        columns.reason,
        skipped_field("DNAMAMBA_SKIPPED", "DNAMAMBA_LLR"),
        replaces="|".join(f"DNAMAMBA_{name}" for name, _ in _INFO.values()),
        notes=notes,
        overwrite=settings.overwrite,
    )


def scored_table(
    records: vcf.Records, ids: Sequence[str], checked: Checked, columns: ScoreColumns
) -> "polars.DataFrame":
    """A row for each alternate allele with its scores, see `allele_table`; `ids` are the records' identifiers."""
    numbers = columns.values | {"bases_after": columns.bases}
    return allele_table(records, ids, checked, numbers, columns.reason)
