"""The variants of a region for a page: what a VCF says of each alternate allele, and how high it is drawn."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dnamamba.errors import InputError
from dnamamba.genome.genome import Genome
from dnamamba.genome.intervals import Interval
from dnamamba.genome.vcf import info_fields, info_numbers, open_vcf, variant_of
from dnamamba.genome.view import GenomeView
from dnamamba.tables import number
from dnamamba.text_files import as_text

if TYPE_CHECKING:
    from dnamamba.api.model import Model

MOST = 50_000
"""Alleles on a page"""
DEFAULT_SCORE = "DNAMAMBA_LLR"
_PARTS = {
    "llr": "log-likelihood ratio",
    "llr_forward": "on the forward strand",
    "llr_reverse": "on the reverse strand",
    "at": "its part at the allele",
    "after": "its part at bases near it",
}
"""Column of a table of scores -> what a click calls it"""
LONGEST_TEXT = 60
"""Characters of an allele or a value that a page shows"""


class PageVariant(NamedTuple):
    """An alternate allele."""

    start: int
    """0-based, of the reference allele"""
    ref: str
    alt: str
    score: float | None
    fields: list[tuple[str, str]]
    """What a click shows: name and text"""


def read_variants(
    path: Path, genome: GenomeView, region: Interval, score: str | None = None
) -> tuple[list[PageVariant], str | None]:
    """The alternate alleles of a VCF that begin in a region, in its order, and the INFO field of their scores: `score`,
    else `DEFAULT_SCORE` if the file has it, else None. Raises `InputError` for a file that is no VCF, without this
    field, or with more than `MOST` alleles in the region."""
    found: list[PageVariant] = []
    with open_vcf(path) as (header, lines):
        numbers = info_numbers(header)
        field = score or (DEFAULT_SCORE if DEFAULT_SCORE in numbers else None)
        if field is not None and field not in numbers:
            raise InputError(f"--score: {path} declares no INFO field {field}; it has {', '.join(numbers) or 'none'}")
        names: dict[bytes, bool] = {}
        for line in lines:
            variant = variant_of(path, line)
            if variant.contig not in names:
                names[variant.contig] = genome.names.find(as_text(variant.contig)) == region.contig
            if not names[variant.contig] or not region.start <= variant.start < region.end:
                continue
            alternates = [] if variant.alt == "." else variant.alt.split(",")
            quality, filters, info, *_ = as_text(line.columns[5]).split("\t")
            common = [("ID", as_text(line.columns[2])), ("QUAL", quality), ("FILTER", filters)]
            for alt, own in zip(alternates, info_fields(numbers, info, len(alternates)), strict=True):
                shown = [*common, *own.items()]
                found.append(
                    PageVariant(
                        variant.start,
                        variant.ref,
                        alt,
                        None if field is None else finite(own.get(field, "")),
                        [(name, cut(value)) for name, value in shown if value not in (".", "")],
                    )
                )
            if len(found) > MOST:
                raise InputError(f"{path}: more than {MOST:,} alleles in the region; choose a shorter --region")
    return found, field


def score_with(
    model: "Model",
    genome: Genome,
    region: Interval,
    variants: Sequence[PageVariant],
    context: int | None,
    batch_tokens: int | None,
) -> list[PageVariant]:
    """The same variants with a model's log-likelihood ratios; those that it cannot score say why."""
    table = model.score_variants(
        [(region.contig, each.start + 1, each.ref, each.alt) for each in variants],
        genome=genome,
        context=context,
        batch_tokens=batch_tokens,
    )
    scored = []
    for each, row in zip(variants, table.iter_rows(named=True), strict=True):
        shown = [(label, f"{row[name]:.4f} nats") for name, label in _PARTS.items() if row[name] is not None]
        reason = [("skipped", row["skipped"])] if row.get("skipped") else []
        scored.append(each._replace(score=row["llr"], fields=[*shown, *reason, *each.fields]))
    return scored


def finite(value: str) -> float | None:
    """The number of a text; None for what is none, NaN and infinite ones included."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def cut(value: str) -> str:
    """A text as a page shows it."""
    return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]}…"
