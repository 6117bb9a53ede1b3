"""A fine-tuned model applied to files: one row a sequence or window, with the probability of each class.

Variants are in `dnamamba.finetuning.apply_variants`.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dnamamba.alphabet import BASES
from dnamamba.errors import InputError, one_line
from dnamamba.finetuning.apply_variants import predict_vcf, takes_variants
from dnamamba.finetuning.predictions import predict_logits
from dnamamba.finetuning.queries import Queries, in_blocks, read_queries
from dnamamba.finetuning.settings import PredictSettings
from dnamamba.genome.allele_output import refuse_output
from dnamamba.genome.indexed import described
from dnamamba.genome.sequences import NamedSequence, open_for_sequences
from dnamamba.genome.vcf import is_vcf_name
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference, load_classifier_for_inference
from dnamamba.inference.provenance import result_provenance
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.kernels import describe_kernels
from dnamamba.outputs import refuse_existing, table_files, table_format, text_table, write_table
from dnamamba.runs.progress import job_bar, si

if TYPE_CHECKING:
    import polars

GIVE = {"sequences": "sequences, or genome= and regions=", "variants": "variants= and genome="}
PredictionColumns = dict[str, list[Any]]


def predict(settings: PredictSettings) -> None:
    """Reads, predicts and writes. Raises `InputError`; the table is whole or not there."""
    _check_settings(settings)
    assert settings.checkpoint is not None and settings.out is not None
    inference = load_classifier_for_inference(
        settings.checkpoint, settings.accelerator, settings.precision, settings.micro_tokens
    )
    head = inference.model.head_config
    refuse_other_queries(inference, of_variants=settings.vcf is not None)
    outputs = f"{', '.join(head.names[:12])}{', …' if len(head.names) > 12 else ''}"
    task = f"task {inference.provenance.get('task')}, {head.kind}: {outputs}"
    print(f"checkpoint  {settings.checkpoint}: {one_line(task)}")
    print(f"   kernels  {describe_kernels(inference.device)}")
    if settings.vcf is not None:
        predict_vcf(settings, inference)
    else:
        _predict_sequences(settings, inference, settings.out)


def _check_settings(settings: PredictSettings) -> None:
    """What can be refused before anything is read."""
    if settings.checkpoint is None or settings.out is None or bool(settings.input) == (settings.vcf is not None):
        raise InputError("give --checkpoint, --out, and --input (sequences) or --vcf (variants)")
    if settings.vcf is not None:
        refuse_output(settings.out, settings.vcf)
    elif settings.annotation is not None:
        raise InputError("--annotation: goes with --vcf")
    outputs = [settings.out] if settings.vcf is not None and is_vcf_name(settings.out) else table_files(settings.out)
    refuse_existing(outputs, settings.overwrite)


def _predict_sequences(settings: PredictSettings, inference: Inference[SequenceClassifier], out: Path) -> None:
    head = inference.model.head_config
    genome = _genome(settings)
    if genome is not None:
        print(f"    genome  {', '.join(map(str, settings.genome or []))}: {described(genome)}")

    columns: PredictionColumns = {name: [] for name in column_names(head)}
    longest = bases = 0
    for path in settings.input or []:
        for queries in in_blocks(read_queries(path, genome, settings.sequence_column, settings.window)):
            try:
                values = predict_values(inference, queries)
            except torch.OutOfMemoryError:
                raise InputError(
                    f"out of memory: give less than --micro_tokens {inference.compute.micro_tokens}"
                ) from None
            add_rows(columns, queries, values, head)
            longest, bases = max(longest, int(queries.lengths.max())), bases + int(queries.lengths.sum())
            print(f"   progress {len(columns['name']):,} sequences, {si(bases)}bases", flush=True)
    if genome is not None and (matched := genome.names.matched()):
        print(f"   contigs  {matched}")
    if not columns["name"]:
        raise InputError(f"{', '.join(map(str, settings.input or []))}: no sequences")
    trained = inference.provenance.get("length")
    if isinstance(trained, int) and longest > 2 * trained:
        print(f"      note  sequences of up to {longest:,} bases, trained up to {trained:,}: see --window")
    provenance = result_provenance(inference, settings.genome or [], genome) | {"window": settings.window}
    write_columns(columns, out, settings.overwrite, provenance)
    print(f"   results  {out}: {len(columns['name']):,} rows")


def refuse_other_queries(inference: Inference[SequenceClassifier], *, of_variants: bool) -> None:
    """Raises `InputError` where a classifier of sequences is given variants, or the other way round."""
    if takes_variants(inference.model.head_config) != of_variants:
        kind, give = ("sequences", "--input") if of_variants else ("variants", "--vcf and --genome")
        raise InputError(f"{inference.checkpoint}: classifies {kind}; give {give} (in Python: {GIVE[kind]})")


def prediction_table(
    inference: Inference[SequenceClassifier], sequences: Sequence[NamedSequence]
) -> "polars.DataFrame":
    """A row a sequence, with the columns of `column_names`."""
    import polars

    head = inference.model.head_config
    columns: PredictionColumns = {name: [] for name in column_names(head)}
    queries = Queries(list(sequences))
    add_rows(columns, queries, predict_values(inference, queries), head)
    return polars.DataFrame(columns)


def predict_values(inference: Inference[SequenceClassifier], queries: Queries) -> np.ndarray:
    """(queries, outputs) fp32: probabilities, or the values of a regression."""
    logits = predict_logits(inference.model, queries, inference.compute)
    return inference.model.predictions(logits).cpu().numpy()


def column_names(head: HeadConfig) -> list[str]:
    """Of the table: where the sequence comes from, the class (multiclass) or labels above one half, the numbers."""
    predicted = [] if head.kind == "regression" else ["predicted"]
    prefix = "value" if head.kind == "regression" else "p"
    return ["name", "start", "end", "strand", "n_share", *predicted, *(f"{prefix}_{name}" for name in head.names)]


def add_rows(columns: PredictionColumns, queries: Queries, values: np.ndarray, head: HeadConfig) -> None:
    """Appends one row a sequence."""
    for sequence, row in zip(queries.sequences, values, strict=True):
        n_share = float((sequence.tokens() >= BASES).mean())
        cells: list[Any] = [sequence.contig, sequence.start, sequence.end, sequence.strand, n_share]
        if head.kind == "multiclass":
            cells.append(head.names[int(row.argmax())])
        elif head.kind == "multilabel":
            cells.append(";".join(name for name, p in zip(head.names, row, strict=True) if p > 0.5))
        cells += row.tolist()
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)


def write_columns(
    columns: PredictionColumns,
    path: Path,
    overwrite: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """By the suffix; text needs no polars. Probabilities with seven digits in text, in full in Parquet."""
    if table_format(path) == ".parquet":
        import polars

        write_table(polars.DataFrame(columns), path, overwrite, provenance)
        return
    with text_table(path, overwrite, provenance) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row)


def _genome(settings: PredictSettings) -> GenomeView | None:
    if settings.genome is None:
        return None
    with job_bar("reading the genome", "B") as progress:
        return open_for_sequences(settings.input or [], settings.genome, None, progress)
