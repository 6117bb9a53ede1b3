"""What is found of alternate alleles, as INFO fields of the VCF they belong to, or as a table with a row for each."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome import vcf
from dnamamba.genome.alleles import REASON_NAMES, REASONS, Checked
from dnamamba.genome.contig_names import some
from dnamamba.genome.view import GenomeView
from dnamamba.outputs import table_format

if TYPE_CHECKING:
    import polars


class InfoField(NamedTuple):
    """An INFO field with a value for each alternate allele."""

    name: str
    description: str
    values: np.ndarray
    """(alleles,) float64, NaN where there is none; or (alleles,) object: text, None where there is none"""

    @property
    def field(self) -> vcf.Field:
        """Its declaration."""
        return vcf.Field(self.name, "A", "String" if self.values.dtype == object else "Float", self.description)


def skipped_field(name: str, what: str) -> vcf.Field:
    """The INFO field that says why an allele has no `what`."""
    reasons = "; ".join(f"{reason}: {text}" for reason, text in REASONS.items() if reason)
    return vcf.Field(name, "A", "String", f"Why an allele has no {what} ({reasons})")


NO_ALT = vcf.Field("DNAMAMBA_NO_ALT", "0", "Flag", "The record has no alternate allele to score")


def annotate_alleles(
    path: Path,
    out: Path,
    store: GenomeView,
    records: vcf.Records,
    checked: Checked,
    fields: Sequence[InfoField],
    reason: np.ndarray,
    skipped: vcf.Field,
    *,
    replaces: str,
    notes: Sequence[str],
    overwrite: bool,
) -> None:
    """Writes the VCF at `path` to `out` with the fields added: every record, in order (`vcf.annotate`).

    Args:
        reason: (alleles,) uint8, a code of `REASON_NAMES`; it goes into the field `skipped`.
        replaces, notes, overwrite: as of `vcf.annotate`.
    """
    lengths = {
        name: store.contig(there).length
        for name, there in zip(records.contigs, checked.contigs, strict=True)
        if there is not None
    }
    texts = _texts(checked.alleles.first, fields, reason)
    declared = [*(each.field for each in fields), skipped, NO_ALT]
    vcf.annotate(
        path,
        out,
        declared,
        texts,
        records,
        replaces=replaces,
        notes=notes,
        contig_lengths=lengths,
        overwrite=overwrite,
    )


def refuse_output(path: Path, vcf_in: Path) -> None:
    """For before the long work begins. Raises `InputError` for a name that is neither VCF nor table, and for the
    input itself."""
    if not vcf.is_vcf_name(path):
        try:
            table_format(path)
        except InputError as error:
            raise InputError(f"{error}, .vcf or .vcf.gz") from None
    if path.exists() and vcf_in.exists() and path.samefile(vcf_in):
        raise InputError(f"{path}: --out is the input VCF itself; give another name")


def checked_lines(records: vcf.Records, store: GenomeView, checked: Checked) -> list[tuple[str, str]]:
    """Labelled lines for the head of a job: how many variants there are, and how they fit the genome. A text may be
    empty."""
    missing = [name for name, there in zip(records.contigs, checked.contigs, strict=True) if there is None]
    return [
        (
            "variants",
            f"{len(records):,} records, {len(checked.alleles):,} alternate alleles, "
            f"{int((checked.alleles.reason == 0).sum()):,} to score",
        ),
        ("contigs", store.names.matched()),
        ("no contig", some(missing)),
        ("REF", f"{len(checked.mismatches):,} of {checked.compared:,} records differ from the genome"),
    ]


def skipped_lines(reason: np.ndarray) -> list[tuple[str, str]]:
    """Labelled lines for the end of a job: how many alleles have no score, by reason (codes of `REASON_NAMES`)."""
    names = REASON_NAMES.tolist()
    counts = Counter(reason.tolist()).most_common()
    return [("skipped", f"{count:,} {names[code]} ({REASONS[names[code]]})") for code, count in counts if code]


def allele_table(
    records: vcf.Records, ids: Sequence[str], checked: Checked, columns: Mapping[str, np.ndarray], reason: np.ndarray
) -> "polars.DataFrame":
    """A row for each alternate allele, in order, one for a record without any; 0-based half-open coordinates.

    Args:
        ids: the records' identifiers.
        columns: name → (alleles,) float64, int64 or object (text). NaN and None are missing. A record without an
            alternate allele has 0 for an integer and else nothing.
        reason: (alleles,) uint8, a code of `REASON_NAMES`; the column `skipped`.
    """
    import polars

    counts = np.diff(checked.alleles.first)
    # A record without alternate alleles has a row too, with nothing in it.
    rows = np.maximum(counts, 1)
    record = np.repeat(np.arange(len(records)), rows)
    alleles = np.flatnonzero(np.repeat(counts > 0, rows))
    nothing = {"f": np.nan, "i": 0, "O": None}
    kinds = {"f": polars.Float64, "i": polars.Int64, "O": polars.String}

    def spread(values: np.ndarray) -> polars.Series:
        full = np.full(len(record), nothing[values.dtype.kind], values.dtype)
        full[alleles] = values
        series = polars.Series(full.tolist() if values.dtype == object else full, dtype=kinds[values.dtype.kind])
        return series.fill_nan(None) if values.dtype.kind == "f" else series

    refs, starts = records.ref, records.start[record]
    alts: list[str | None] = []
    for r in range(len(records)):
        alts += records.alternates(r) or [None]
    reasons = np.full(len(record), "no_alternate", dtype=object)
    reasons[alleles] = REASON_NAMES[reason]
    ref_lengths = np.fromiter(map(len, refs), np.int64, len(refs))
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
            **{name: spread(values) for name, values in columns.items()},
            "skipped": polars.Series([reason or None for reason in reasons.tolist()], dtype=polars.String),
        }
    )


def _texts(first: np.ndarray, fields: Sequence[InfoField], reason: np.ndarray) -> Iterator[tuple[str | None, ...]]:
    """For each record the texts of the fields, of the reason and of `NO_ALT`."""
    names = REASON_NAMES.tolist()
    nothing = (None,) * (len(fields) + 1)
    for begin, end in itertools.pairwise(first.tolist()):
        if begin == end:
            yield (*nothing, "")
            continue
        found = [",".join(map(_text, each.values[begin:end].tolist())) for each in fields]
        reasons = [names[code] or "." for code in reason[begin:end].tolist()]
        yield (
            *(None if not text.strip(".,") else text for text in found),
            None if set(reasons) == {"."} else ",".join(reasons),
            None,
        )


def _text(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "." if value is None or value != value else f"{value:.6g}"
