"""The labelled lines that a job prints: what it reads before it starts, what it has found at its end."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from dnamamba.errors import printable
from dnamamba.genome.indexed import described
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.inference.provenance import genome_warning
from dnamamba.runs.progress import si

Line = tuple[str, str]
"""Label and text; without a text it is left out."""


def print_lines(lines: Iterable[Line], file: TextIO | None = None) -> None:
    """On stdout, or in `file`; seen at once, however long the job. What files hold is made `printable`."""
    for label, text in lines:
        if text:
            print(printable(f"{label:>10}  {text}"), file=file, flush=True)


def genome_line(files: Sequence[Path], genome: GenomeView) -> Line:
    """Which genome a job reads, and how."""
    shown = ", ".join(map(str, files))
    return "genome", f"{shown}: {len(genome.contigs)} contigs, {si(genome.bases)}b, {described(genome)}"


def caution_lines(inference: Inference, genome: GenomeView, context: int | None) -> list[Line]:
    """Where a model is used on another genome than its training's, or with more context (None: unlimited)."""
    trained = inference.trained_length
    is_longer = trained is not None and (context is None or context > trained)
    note = f"--context is longer than the {trained:,} bases that the model was trained at" if is_longer else ""
    return [("warning", genome_warning(inference.provenance, genome)), ("note", note)]
