"""Launch configurations of the scan's Triton kernels: functions of the shapes, chosen by measurements on an H100."""

from __future__ import annotations

from typing import NamedTuple

import triton


class ScanTile(NamedTuple):
    """Of the scan kernels: block_r · block_c channels a program, all states; span: states recomputed at a time."""

    block_r: int
    block_n: int
    block_c: int
    span: int


def forward_tile(state: int, channels_of_group: int) -> ScanTile:
    """16 states a thread: a lane has a channel of its own up to 16 states; with more, lanes share a channel."""
    return _scan_tile(state, channels_of_group, 1, 32)


def backward_tile(state: int, channels_of_group: int) -> ScanTile:
    """16 states a thread; 4 lanes along states and 8 along channels keep sums over either short."""
    return _scan_tile(state, channels_of_group, 4, 8)


def _scan_tile(state: int, channels_of_group: int, block_r: int, block_c: int) -> ScanTile:
    """The given tile, less as many channels as the states of one need, or as the group has not."""
    block_n = triton.next_power_of_2(state)
    most = max(2, min(512 // block_n, triton.next_power_of_2(channels_of_group), block_r * block_c))
    block_c = min(block_c, most)
    return ScanTile(max(1, most // block_c), block_n, block_c, 2)


def chunk_length(batch: int, length: int, channels: int, state: int) -> int:
    """128 positions if that leaves 8 192 programs of 512 states, else 64."""
    return 128 if batch * (length // 128) * channels * state >= 8192 * 512 else 64


BACKWARD_PROGRAMS = 1056
"""Programs of the gradient kernel, each over many chunks: 8 for each of the 132 multiprocessors of an H100."""

CHECKPOINT_BYTES = 1 << 28
"""At most this much scratch for states kept within chunks, however long the chunks."""

PROPAGATE_SEGMENT = 64
"""Chunks that one program of the pass over chunks takes one after another; longer sequences go in two levels."""
