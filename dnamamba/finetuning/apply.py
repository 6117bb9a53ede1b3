"""A fine-tuned model applied to files: one row a sequence or window, with the probability of each class."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnamamba.alphabet import BASES
from dnamamba.errors import InputError
from dnamamba.finetuning.predictions import Compute, predict_logits
from dnamamba.finetuning.queries import Asked, in_blocks, read_queries
from dnamamba.finetuning.settings import PredictSettings
from dnamamba.formats.checkpoint import load_classifier
from dnamamba.genome.indexed import described
from dnamamba.genome.sequences import open_for_sequences
from dnamamba.genome.view import GenomeView
from dnamamba.inference.device import MICRO_TOKENS_CPU, MICRO_TOKENS_GPU, uses_gpu
from dnamamba.model.classifier import HeadConfig, MambaClassifier
from dnamamba.model.kernels import describe_kernels
from dnamamba.outputs import refuse_existing, table_format, whole_file, write_table
from dnamamba.runs.progress import job_bar, si

Columns = dict[str, list[Any]]


def predict(settings: PredictSettings) -> None:
    """Reads, predicts and writes. Raises `InputError`; the table is whole or not there."""
    if settings.checkpoint is None or not settings.input or settings.out is None:
        raise InputError("give --checkpoint, --input and --out")
    if settings.window is not None and settings.window < 1:
        raise InputError(f"--window: {settings.window} is below 1")
    table_format(settings.out)
    refuse_existing([settings.out], settings.overwrite)
    compute = _compute(settings)
    model, provenance = load_classifier(settings.checkpoint, compute.device)
    model.eval().requires_grad_(False)
    genome = _genome(settings)
    head = model.head_config
    if head.pooling == "alleles":
        raise InputError(f"{settings.checkpoint}: classifies variants, which are no sequences of their own")
    outputs = f"{', '.join(head.names[:12])}{', …' if len(head.names) > 12 else ''}"
    print(f"checkpoint  {settings.checkpoint}: task {provenance.get('task')}, {head.kind}: {outputs}")
    print(f"   kernels  {describe_kernels(compute.device)}")
    if genome is not None:
        print(f"    genome  {', '.join(map(str, settings.genome or []))}: {described(genome)}")

    columns: Columns = {name: [] for name in column_names(head)}
    longest = bases = 0
    for path in settings.input:
        for asked in in_blocks(read_queries(path, genome, settings.sequence_column, settings.window)):
            try:
                values = predict_values(model, asked, compute)
            except torch.OutOfMemoryError:
                raise InputError(f"out of memory: give less than --micro_tokens {compute.micro_tokens}") from None
            add_rows(columns, asked, values, head)
            longest, bases = max(longest, int(asked.lengths.max())), bases + int(asked.lengths.sum())
            print(f"   progress {len(columns['name']):,} sequences, {si(bases)}bases", flush=True)
    if genome is not None and (told := genome.names.told()):
        print(f"   contigs  {told}")
    if not columns["name"]:
        raise InputError(f"{', '.join(map(str, settings.input))}: no sequences")
    trained = provenance.get("length")
    if isinstance(trained, int) and longest > 2 * trained:
        print(f"      note  sequences of up to {longest:,} bases, trained up to {trained:,}: see --window")
    write_columns(columns, settings.out)
    print(f"   results  {settings.out}: {len(columns['name']):,} rows")


def predict_values(model: MambaClassifier, asked: Asked, compute: Compute) -> np.ndarray:
    """(sequences, outputs) fp32: probabilities, or the values of a regression."""
    with torch.no_grad():
        return model.predictions(predict_logits(model, asked, compute)).cpu().numpy()


def column_names(head: HeadConfig) -> list[str]:
    """Of the table: where the sequence comes from, the class (multiclass) or labels above one half, the numbers."""
    predicted = [] if head.kind == "regression" else ["predicted"]
    prefix = "value" if head.kind == "regression" else "p"
    return ["name", "start", "end", "strand", "n_share", *predicted, *(f"{prefix}_{name}" for name in head.names)]


def add_rows(columns: Columns, asked: Asked, values: np.ndarray, head: HeadConfig) -> None:
    """Appends one row a sequence."""
    for sequence, row in zip(asked.sequences, values, strict=True):
        n_share = float((sequence.tokens() >= BASES).mean())
        cells: list[Any] = [sequence.contig, sequence.start, sequence.end, sequence.strand, n_share]
        if head.kind == "multiclass":
            cells.append(head.names[int(row.argmax())])
        elif head.kind == "multilabel":
            cells.append(";".join(name for name, p in zip(head.names, row, strict=True) if p > 0.5))
        cells += row.tolist()
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)


def write_columns(columns: Columns, path: Path) -> None:
    """By the suffix; text needs no polars. Probabilities with seven digits in text, in full in Parquet."""
    if table_format(path) == ".parquet":
        import polars

        write_table(polars.DataFrame(columns), path)
        return
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row)


def _compute(settings: PredictSettings) -> Compute:
    on_gpu = uses_gpu(settings.accelerator)
    if settings.micro_tokens is not None and settings.micro_tokens < 1:
        raise InputError(f"--micro_tokens: {settings.micro_tokens} is below 1")
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    micro = settings.micro_tokens or (MICRO_TOKENS_GPU if on_gpu else MICRO_TOKENS_CPU)
    return Compute(torch.device("cuda" if on_gpu else "cpu"), precision, micro)


def _genome(settings: PredictSettings) -> GenomeView | None:
    if settings.genome is None:
        return None
    with job_bar("reading the genome", "B") as progress:
        return open_for_sequences(settings.input or [], settings.genome, None, progress)
