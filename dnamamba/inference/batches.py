"""Which sequences go through a model together, and how they stand in one array. numpy only."""

from collections.abc import Iterator, Sequence

import numpy as np

from dnamamba.alphabet import PAD


def batches_by_length(lengths: np.ndarray, tokens: int, at_least: int = 1) -> Iterator[np.ndarray]:
    """Sequences of like length together, the longest first; those of one length keep their order.

    Args:
        lengths: (sequences,) integers, in bases.
        tokens: at most so many bases a batch, padding included, unless `at_least` sequences have more.
        at_least: sequences of a batch, as far as there are any left.

    Yields:
        (sequences of the batch,) int64 indices, each index once in all.
    """
    order = np.argsort(-lengths, kind="stable")
    while order.size:
        count = max(tokens // max(int(lengths[order[0]]), 1), at_least)
        yield order[:count]
        order = order[count:]


def padded(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """(sequences, longest of them, at least 1) uint8 from uint8 tokens, `PAD` behind each."""
    rows = np.full((len(sequences), max(map(len, sequences), default=1) or 1), PAD, np.uint8)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows
