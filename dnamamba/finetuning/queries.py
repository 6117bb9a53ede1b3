"""What a classifier predicts for: sequences of files, whole or in windows, some at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dnamamba.finetuning.tasks.examples import pad
from dnamamba.genome.sequences import NamedSequence, read_sequences
from dnamamba.genome.view import GenomeView

BLOCK_BASES = 1 << 26
"""Sequence held at a time."""


class Queries:
    """Some sequences, as `predict_logits` wants them: padded only within a batch."""

    def __init__(self, sequences: list[NamedSequence]) -> None:
        self.sequences = sequences
        self.lengths = np.array([len(sequence) for sequence in sequences], np.int64)

    def __len__(self) -> int:
        return len(self.sequences)

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(sequences, longest of them) uint8 and lengths."""
        return pad([self.sequences[row].tokens() for row in rows.tolist()])


def read_queries(
    path: Path, genome: GenomeView | None, sequence_column: str | None, window: int | None
) -> Iterator[NamedSequence]:
    """The sequences of one file, in its order. Raises `InputError` with file and line or record."""
    for sequence in read_sequences(path, genome, sequence_column):
        if window is None:
            yield sequence
        else:
            for first in range(0, len(sequence), window):
                yield sequence.window(first, window)


def in_blocks(sequences: Iterator[NamedSequence]) -> Iterator[Queries]:
    """Not all of a genome's windows at once."""
    held: list[NamedSequence] = []
    bases = 0
    for sequence in sequences:
        held.append(sequence)
        bases += len(sequence)
        if bases >= BLOCK_BASES:
            yield Queries(held)
            held, bases = [], 0
    if held:
        yield Queries(held)
