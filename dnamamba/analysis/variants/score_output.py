"""Scores as INFO fields of the VCF they belong to, or as a table with a row for each alternate allele."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnamamba import __version__
from dnamamba.analysis.variants.score_settings import ScoreSettings
from dnamamba.analysis.variants.scores import Scores
from dnamamba.genome import vcf
from dnamamba.genome.alleles import REASON_NAMES, REASONS, Alleles, Checked
from dnamamba.genome.view import GenomeView

if TYPE_CHECKING:
    import polars

_CONTIG_EDGE = list(REASONS).index("contig_edge")
_NATS = "natural log, above 0 where the alternate allele is the likelier one"
_INFO = {
    "llr": ("LLR", f"Log-likelihood ratio of ALT to REF by a DNA language model, mean of both strands; {_NATS}"),
    "llr_forward": ("LLR_FWD", "DNAMAMBA_LLR on the forward strand"),
    "llr_reverse": ("LLR_REV", "DNAMAMBA_LLR on the reverse strand"),
    "at": ("AT", "Part of DNAMAMBA_LLR at the allele itself"),
    "after": ("AFTER", "Part of DNAMAMBA_LLR at the reference bases after the allele, the same for both alleles"),
    "distance": ("DIST", "Mean Euclidean distance of the embeddings of the bases after the allele"),
}
"""column -> INFO field, without its prefix, and what it says"""


class ScoreColumns(NamedTuple):
    """What is written of each alternate allele."""

    values: dict[str, np.ndarray]
    """Name -> (alleles,) float64, NaN where there is no score"""
    bases: np.ndarray
    """(alleles,) int64: bases after the allele that were scored, both strands"""
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


def vcf_fields(columns: ScoreColumns) -> list[vcf.Field]:
    """The INFO fields that `write_scored_vcf` adds."""
    numbers = [
        vcf.Field(f"DNAMAMBA_{name}", "A", "Float", text)
        for column, (name, text) in _INFO.items()
        if column in columns.values
    ]
    reasons = "; ".join(f"{name}: {text}" for name, text in REASONS.items() if name)
    return [
        *numbers,
        vcf.Field("DNAMAMBA_SKIPPED", "A", "String", f"Why an allele has no DNAMAMBA_LLR ({reasons})"),
        vcf.Field("DNAMAMBA_NO_ALT", "0", "Flag", "The record has no alternate allele to score"),
    ]


def write_scored_vcf(
    settings: ScoreSettings, store: GenomeView, records: vcf.Records, checked: Checked, columns: ScoreColumns
) -> None:
    """The input VCF with the scores added: every record, in order."""
    lengths = {
        name: store.contig(there).length
        for name, there in zip(records.contigs, checked.contigs, strict=True)
        if there is not None
    }
    notes = [f"##dnamamba_score=version {__version__}, checkpoint {settings.checkpoint}"]
    vcf.annotate(
        settings.vcf,
        settings.out,
        vcf_fields(columns),
        _texts(checked.alleles, columns),
        records,
        replaces="|".join(f"DNAMAMBA_{name}" for name, _ in _INFO.values()),
        notes=notes,
        contig_lengths=lengths,
    )


def scored_table(
    records: vcf.Records, ids: Sequence[str], checked: Checked, columns: ScoreColumns
) -> "polars.DataFrame":
    """A row for each alternate allele, in order, one for a record without any; 0-based half-open coordinates.

    `ids` are the records' identifiers.
    """
    import polars

    alleles = checked.alleles
    counts = np.diff(alleles.first)
    # A record without alternate alleles has a row too, with nothing in it.
    rows = np.maximum(counts, 1)
    record = np.repeat(np.arange(len(records)), rows)
    is_allele = np.repeat(counts > 0, rows)
    filled = np.flatnonzero(is_allele)

    def spread(values: np.ndarray) -> polars.Series:
        full = np.full(len(record), np.nan)
        full[filled] = values
        return polars.Series(full, dtype=polars.Float64).fill_nan(None)

    refs, starts = records.ref, records.start[record]
    alts: list[str | None] = []
    for r in range(len(records)):
        alts += records.alternates(r) or [None]
    reasons = np.full(len(record), "no_alternate", dtype=object)
    reasons[filled] = REASON_NAMES[columns.reason]
    ref_lengths = np.fromiter(map(len, refs), np.int64, len(refs))
    bases = np.zeros(len(record), np.int64)
    bases[filled] = columns.bases
    return polars.DataFrame(
        {
            "record": polars.Series(record, dtype=polars.Int64),
            "contig": polars.Series(
                np.array(records.contigs, dtype=object)[records.contig[record]], dtype=polars.String
            )
            if len(record)
            else polars.Series([], dtype=polars.String),
            "start": polars.Series(starts, dtype=polars.Int64),
            "end": polars.Series(starts + ref_lengths[record], dtype=polars.Int64),
            "id": polars.Series([ids[r] for r in record.tolist()], dtype=polars.String),
            "ref": polars.Series([refs[r] for r in record.tolist()], dtype=polars.String),
            "alt": polars.Series(alts, dtype=polars.String),
            **{name: spread(values) for name, values in columns.values.items()},
            "bases_after": polars.Series(bases, dtype=polars.Int64),
            "skipped": polars.Series([reason or None for reason in reasons.tolist()], dtype=polars.String),
        }
    )


def _texts(alleles: Alleles, columns: ScoreColumns) -> Iterator[tuple[str | None, ...]]:
    """For each record the texts of `vcf_fields`."""
    values = [columns.values[name] for name in _INFO if name in columns.values]
    names = REASON_NAMES.tolist()
    nothing = (None,) * (len(values) + 1)
    bounds = alleles.first.tolist()
    for begin, end in itertools.pairwise(bounds):
        if begin == end:
            yield (*nothing, "")
            continue
        numbers = [",".join(map(_number, column[begin:end].tolist())) for column in values]
        reasons = [names[code] or "." for code in columns.reason[begin:end].tolist()]
        yield (
            *(None if not text.strip(".,") else text for text in numbers),
            None if set(reasons) == {"."} else ",".join(reasons),
            None,
        )


def _number(value: float) -> str:
    return "." if value != value else f"{value:.6g}"
