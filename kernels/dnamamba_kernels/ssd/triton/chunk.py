"""What the kernels compute of a chunk's decays. Letters and names are those of `reference.py`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_steps(log_decay, weight, b, start, h, length, heads, CHUNK: tl.constexpr):
    """R [CHUNK] and R_last of a head's chunk, and its weights; positions behind the sequence have 0."""
    t = tl.arange(0, CHUNK)
    first = (b * length + start) * heads + h
    inside = start + t < length
    logs = tl.load(log_decay + first + t * heads, mask=inside, other=0.0)
    w = tl.load(weight + first + t * heads, mask=inside, other=0.0)
    return tl.cumsum(logs, axis=0), tl.sum(logs, axis=0), w


@triton.jit
def chunk_runs(ids, b, start, length, ids_batch, ids_row, HAS_IDS: tl.constexpr, CHUNK: tl.constexpr):
    """How many changes of id there were in the chunk so far [CHUNK], and in all; zeros without ids."""
    t = tl.arange(0, CHUNK)
    changes = tl.zeros([CHUNK], tl.int32)
    if HAS_IDS:
        position = start + t
        rows = ids + b * ids_batch + position * ids_row
        known = (position > 0) & (position < length)
        here = tl.load(rows, mask=known, other=0)
        changes = (here != tl.load(rows - ids_row, mask=known, other=0)).to(tl.int32)
    return tl.cumsum(changes, axis=0), tl.sum(changes, axis=0)


@triton.jit
def from_start(reach, run, HAS_IDS: tl.constexpr):
    """E: what is left at each position of the state that enters the chunk."""
    left = tl.exp(reach)
    if HAS_IDS:
        left = tl.where(run == 0, left, 0.0)
    return left


@triton.jit
def to_end(reach, last, run, runs, HAS_IDS: tl.constexpr):
    """F: what is left at the end of the chunk of each position's input."""
    left = tl.exp(last - reach)
    if HAS_IDS:
        left = tl.where(run == runs, left, 0.0)
    return left


@triton.jit
def lasting(last, runs, HAS_IDS: tl.constexpr):
    """What is left at the end of the chunk of the state that enters it."""
    left = tl.exp(last)
    if HAS_IDS:
        left = tl.where(runs == 0, left, 0.0)
    return left


@triton.jit
def decays(reach, run, HAS_IDS: tl.constexpr, TRANSPOSED: tl.constexpr, CHUNK: tl.constexpr):
    """L [CHUNK, CHUNK]; transposed, rows are the earlier positions. Masked before the exponential, which would
    overflow."""
    t = tl.arange(0, CHUNK)
    if TRANSPOSED:
        between = reach[None, :] - reach[:, None]
        seen = t[None, :] >= t[:, None]
    else:
        between = reach[:, None] - reach[None, :]
        seen = t[:, None] >= t[None, :]
    if HAS_IDS:
        seen = seen & (run[:, None] == run[None, :])
    return tl.exp(tl.where(seen, between, float("-inf")))


@triton.jit
def tile(base, row, column, row_stride, column_stride, rows, columns):
    """[row, column] of a matrix, zeros outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0.0)
