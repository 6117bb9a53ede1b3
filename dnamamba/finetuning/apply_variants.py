"""A fine-tuned classifier of variants applied: the probability of each class for every alternate allele.

Reading, checking and windows are those of its training (`dnamamba.finetuning.tasks.variants`), so that a variant of the
test split gets the probabilities that the run wrote for it.
"""

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dnamamba.errors import InputError
from dnamamba.finetuning.apply_annotation import annotated_predictions, trees_of_run
from dnamamba.finetuning.predictions import predict_logits
from dnamamba.finetuning.settings import PredictSettings
from dnamamba.finetuning.tasks.examples import pad
from dnamamba.finetuning.tasks.variants import window
from dnamamba.genome import vcf
from dnamamba.genome.allele_output import (
    InfoField,
    allele_table,
    annotate_alleles,
    checked_lines,
    skipped_field,
    skipped_lines,
)
from dnamamba.genome.alleles import Alleles, check, refuse_mismatches
from dnamamba.genome.indexed import open_for
from dnamamba.genome.progress import OnProgress
from dnamamba.genome.store import open_genome
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.inference.provenance import genome_warning, result_provenance, vcf_note
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.outputs import write_table
from dnamamba.runs.lines import genome_line, print_lines
from dnamamba.runs.progress import job_bar

if TYPE_CHECKING:
    import polars

BLOCK_BASES = 1 << 24
"""Windows held at a time."""


class AlleleWindows:
    """Rows of both alleles (`window`), cut from the genome as they are read, as `predict_logits` wants them."""

    def __init__(self, store: GenomeView, alleles: Alleles, index: np.ndarray, length: int) -> None:
        """`index`: which of the alleles; `length`: bases of the reference around each."""
        self.store, self.alleles, self.index, self.length = store, alleles, index, length
        alt = np.array([len(alleles.alt[i]) for i in index.tolist()], np.int64)
        self.lengths = 2 + 2 * length - alleles.ref_length[index] + alt

    def __len__(self) -> int:
        return len(self.index)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, longest of them) uint8 and lengths."""
        return pad([window(self.store, self.alleles, i, self.length) for i in self.index[rows].tolist()])


class Predictions(NamedTuple):
    """Of each alternate allele."""

    values: np.ndarray
    """(alleles, classes) float64: probabilities, NaN where there are none"""
    names: tuple[str, ...]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """As the table has them: the likeliest class, and the probability of each."""
        likeliest = np.array([*self.names, None], object)
        known = ~np.isnan(self.values[:, 0])
        predicted = likeliest[np.where(known, np.where(known[:, None], self.values, 0.0).argmax(1), -1)]
        return {"predicted": predicted, **{f"p_{name}": self.values[:, i] for i, name in enumerate(self.names)}}

    def info_fields(self) -> list[InfoField]:
        """The same as INFO fields."""
        columns = self.columns
        shown = np.array([None if name is None else _info_text(name) for name in columns["predicted"]], object)
        by = "by a DNA language model fine-tuned on labelled variants"
        return [
            InfoField("DNAMAMBA_CLASS", f"The likeliest class {by}", shown),
            *(
                InfoField(info_name, f"Probability of the class {_quoted(name)} {by}", columns[f"p_{name}"])
                for name, info_name in zip(self.names, probability_fields(self.names), strict=True)
            ),
        ]


def predict_vcf(settings: PredictSettings, inference: Inference[SequenceClassifier]) -> None:
    """Reads, predicts and writes as the settings say. Raises `InputError`; the output is whole or not there."""
    assert settings.vcf is not None and settings.out is not None
    if not settings.genome:
        raise InputError("--genome: give the FASTA file that the VCF was made with")
    length = window_length(inference, settings.window)
    assert settings.checkpoint is not None
    trees = trees_of_run(settings.checkpoint) if settings.annotation else None
    with job_bar("reading the VCF", "B") as progress:
        records = vcf.read_vcf(settings.vcf, progress)
    whole = open_genome(settings.genome) if trees else None  # genes are read whole
    with job_bar("reading the genome", "B") as progress:
        store = whole or open_for(settings.genome, None, lambda _: length * len(records), progress)
    checked = check(records, store, longest=length // 2)
    mismatches = refuse_mismatches(checked, records, store, settings.max_mismatches, str(settings.vcf))
    print_lines(
        [
            genome_line(settings.genome, store),
            *checked_lines(records, store, checked),
            ("windows", f"{length:,} bases of the reference around each variant"),
            *(("mismatch", line) for line in mismatches),
            ("warning", genome_warning(inference.provenance, store)),
        ]
    )
    with job_bar("predicting", "alleles") as progress:
        found = predict_alleles(inference, store, checked.alleles, length, progress)
    fields, columns = found.info_fields(), found.columns
    if trees is not None and whole is not None and settings.annotation is not None:
        annotated = annotated_predictions(trees, settings.annotation, whole, checked.alleles, found.names[1])
        fields, columns = fields + annotated.info_fields(), columns | annotated.columns
    reason = checked.alleles.reason
    provenance = result_provenance(inference, settings.genome, store) | {"window": length}
    if vcf.is_vcf_name(settings.out):
        notes = [vcf_note("predict", provenance)]
        skipped = skipped_field("DNAMAMBA_CLASS_SKIPPED", "DNAMAMBA_CLASS")
        annotate_alleles(
            settings.vcf,
            settings.out,
            store,
            records,
            checked,
            fields,
            reason,
            skipped,
            replaces="DNAMAMBA_P_.*",
            notes=notes,
            overwrite=settings.overwrite,
        )
    else:
        table = allele_table(records, vcf.read_ids(settings.vcf, records), checked, columns, reason)
        write_table(table, settings.out, settings.overwrite, provenance)
    print_lines(
        [
            ("predicted", f"{int((reason == 0).sum()):,} alleles"),
            *skipped_lines(reason),
            ("results", str(settings.out)),
        ]
    )


def variant_table(
    inference: Inference[SequenceClassifier],
    store: GenomeView,
    records: vcf.Records,
    ids: list[str],
    max_mismatches: float,
) -> "polars.DataFrame":
    """A row for each alternate allele, as `predict --vcf VCF --out x.parquet` writes it. Raises `InputError`."""
    length = window_length(inference, None)
    checked = check(records, store, longest=length // 2)
    refuse_mismatches(checked, records, store, max_mismatches, "variants", hint="; max_mismatches raises the limit")
    found = predict_alleles(inference, store, checked.alleles, length)
    return allele_table(records, ids, checked, found.columns, checked.alleles.reason)


def predict_alleles(
    inference: Inference[SequenceClassifier],
    store: GenomeView,
    alleles: Alleles,
    length: int,
    progress: OnProgress | None = None,
) -> Predictions:
    """The probabilities of all alleles without a reason (`Alleles.reason` 0). Raises `InputError` without memory."""
    head = inference.model.head_config
    wanted = np.flatnonzero(alleles.reason == 0)
    values = np.full((len(alleles), len(head.names)), np.nan)
    block = max(BLOCK_BASES // (2 * length), 1)
    for first in range(0, wanted.size, block):
        index = wanted[first : first + block]
        windows = AlleleWindows(store, alleles, index, length)
        try:
            logits = predict_logits(inference.model, windows, inference.compute)
        except torch.OutOfMemoryError:
            raise InputError(f"out of memory: give less than --micro_tokens {inference.compute.micro_tokens}") from None
        values[index] = inference.model.predictions(logits).cpu().numpy()
        if progress is not None:
            progress(first + index.size, wanted.size)
    return Predictions(values, head.names)


def takes_variants(head: HeadConfig) -> bool:
    """Whether a classifier is one of variants, and not of sequences."""
    return head.pooling == "alleles"


def window_length(inference: Inference[SequenceClassifier], given: int | None) -> int:
    """Bases of the reference around a variant: as given, or as in training. Raises `InputError` if neither says."""
    length = inference.trained_length if given is None else given
    if length is None:
        raise InputError(f"{inference.checkpoint}: does not say the length of its training windows; give --window")
    return length


def probability_fields(names: tuple[str, ...]) -> list[str]:
    """A name of an INFO field for each class: letters, digits, `_` and `.` alone, and no two alike."""
    found: list[str] = []
    for number, name in enumerate(names):
        plain = f"DNAMAMBA_P_{re.sub('[^0-9A-Za-z_.]', '_', name)}"
        found.append(f"{plain}_{number}" if plain in found else plain)
    return found


def _info_text(name: str) -> str:
    """Percent-encoded where a value of INFO cannot hold the character (VCF 4.3, 1.2)."""
    return re.sub(r"[;=,\s]", lambda match: f"%{ord(match[0]):02X}", name)


def _quoted(name: str) -> str:
    """As a description in a VCF header can hold it."""
    return name.replace("\\", "/").replace('"', "'")
