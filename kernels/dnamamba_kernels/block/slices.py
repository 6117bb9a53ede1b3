"""How a batch is cut for a backward pass that recomputes one slice at a time.

Sequences are independent, so they are cut apart first. A sequence that is too long for one slice is cut along its
length; its slices are then visited from the last to the first, and hand gradients of states on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = {"none": 1 << 28, "cheap": 1 << 27, "all": 1 << 26}
"""Positions times channels of a slice, by what is recomputed: 2²⁶ take some 1.5 GiB while a block's gradients of it are
computed in bf16. At 1M bases and d_model 256 a step of slices half as large takes 3 % longer (H200)."""


class Slice(NamedTuple):
    """Some whole sequences, or some positions of one sequence: either way contiguous in (batch, length, …)."""

    first: int
    last: int
    """Sequences [first, last)"""
    start: int
    stop: int
    """Positions [start, stop)"""

    def of(self, values: Tensor) -> Tensor:
        """Its part of (batch, length, …), a view."""
        return values[self.first : self.last, self.start : self.stop]

    def rows(self, values: Tensor) -> Tensor:
        """The same as (positions of all its sequences, …)."""
        return self.of(values).flatten(0, 1)

    def sequences(self, states: Tensor | None) -> Tensor | None:
        """Its sequences' part of (batch, …)."""
        return None if states is None else states[self.first : self.last]


def cut(batch: int, length: int, most: int, multiple: int) -> list[Slice]:
    """Slices in the order of sequences and time, of `most` positions at most, but of `multiple` positions at least.
    Borders within a sequence are multiples of `multiple`; slices are about equally large."""
    if length <= max(most, multiple):
        parts = -(-batch // max(most // length, 1))
        count = -(-batch // parts)
        return [Slice(first, min(first + count, batch), 0, length) for first in range(0, batch, count)]
    most = max(most // multiple, 1) * multiple
    parts = -(-length // most)
    step = -(-length // (parts * multiple)) * multiple
    return [
        Slice(sequence, sequence + 1, start, min(start + step, length))
        for sequence in range(batch)
        for start in range(0, length, step)
    ]


def borders(slices: list[Slice]) -> Iterator[tuple[int, Slice]]:
    """Those slices that begin within a sequence, with their numbers."""
    return ((number, each) for number, each in enumerate(slices) if each.start)


def joined(sequence_ids: Tensor | None, border: Slice, back: int) -> Tensor | None:
    """(1, back) bool: which of the positions before a slice belong to the segment of its first position, the farthest
    first; None where all do."""
    if sequence_ids is None:
        return None
    before = sequence_ids[border.first : border.last, border.start - back : border.start + 1]
    return (before[:, :-1] == before[:, 1:]).flip(1).cumprod(1).flip(1).bool()


def only(kept: Tensor | None, values: Tensor) -> Tensor:
    """`values` where `kept` holds, of whose shape theirs begins, else zero, also where they are NaN."""
    return values if kept is None else torch.where(kept[(..., *[None] * (values.ndim - kept.ndim))], values, 0)
