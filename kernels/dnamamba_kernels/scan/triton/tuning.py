"""Launch configurations of the Triton kernels: functions of the shapes, chosen by measurements on an H100."""

from __future__ import annotations

from typing import NamedTuple


def next_power_of_2(n: int) -> int:
    """The smallest power of two ≥ n (n ≥ 1)."""
    return 1 << (n - 1).bit_length()


class ConvTile(NamedTuple):
    """Positions and channels of one program, its warps, and the positions loaded at a time (backward)."""

    block_t: int
    block_c: int
    num_warps: int
    unroll: int = 1


def conv_forward(length: int, channels: int, element_size: int, masked: bool) -> ConvTile:
    """4 096 elements a tile in rows of 128 channels, four warps: 0.84 ms at 1 × 512 × 2²⁰, where rows of 64 take 1.14.

    16-bit data that need no masks (`masked`: sequence ids or an initial state): a warp for 2 048, 0.79 ms. It takes 167
    registers; with more than 168 a multiprocessor has 8 warps in place of 12: 1.07 ms at 2²⁰ − 1.
    """
    block_c = min(128, next_power_of_2(channels))
    if element_size == 2 and length % 16 == 0 and channels % 128 == 0 and not masked:
        return ConvTile(16, block_c, 1)
    return ConvTile(min(64, 4096 // block_c), block_c, 4)


def conv_backward(batch: int, length: int, channels: int, element_size: int) -> ConvTile:
    """One warp with 4 bytes a lane, and the longest strips that leave 2 048 programs; 8 bytes where those leave 8 192.

    A strip of block_t rows reads 2 · (width − 1) rows more and leaves width + 1 rows of sums. Few programs need more
    rows in flight. 0.158 ms at 1 × 512 × 2¹⁷, with 8 bytes a lane 0.163 and more; at 2²⁰ 1.21 and 1.16.
    """

    def programs(block_t: int, block_c: int) -> int:
        return batch * -(-length // block_t) * -(-channels // block_c)

    most = max(32, next_power_of_2(channels))
    narrow, wide = (min(32 * lane // element_size, most) for lane in (4, 8))
    if programs(256, wide) >= 8192:
        return ConvTile(256, wide, 1, 8)
    block_t = next((block_t for block_t in (256, 128) if programs(block_t, narrow) >= 2048), 64)
    return ConvTile(block_t, narrow, 1, 8 if programs(block_t, narrow) < 4096 else 4)


class NormTile(NamedTuple):
    """Rows of a tile, its width padded to a power of two, and the program's warps."""

    rows: int
    width: int
    num_warps: int


def norm_forward(width: int) -> NormTile:
    """32 elements a thread, one warp for rows up to 1 024 wide."""
    block = next_power_of_2(width)
    return NormTile(max(1, 1024 // block), block, max(1, min(16, block // 1024)))


def norm_backward(width: int) -> NormTile:
    """16 elements a thread and two warps, 32 and four for wide rows: at 2¹⁷ × 256 (bf16) 0.117 ms, with four 0.145."""
    block = next_power_of_2(width)
    if block < 1024:
        return NormTile(1024 // block, block, 2)
    return NormTile(max(1, 4096 // block), block, max(4, min(16, block // 1024)))


NORM_BACKWARD_PROGRAMS = 4224
"""At most so many programs in the norm's backward pass, each over a run of rows: 32 a multiprocessor of an H100."""
NORM_BACKWARD_TILES = 4
"""At least so many tiles of rows a program, if there are, as each leaves a row of sums."""


def norm_fuses(width: int) -> bool:
    """Whether products and sums may be fused: not in rows so narrow that a lane has one product or two of a row.

    There a product would be fused with the first exchange between lanes, and the lanes of a row would end with sums
    that differ in the last bit (Triton's issue 7264).
    """
    return width >= 64


class ScanTile(NamedTuple):
    """Tile of the scan kernels: block_r · block_c channels a program, all states; span: states recomputed at a time."""

    block_r: int
    block_n: int
    block_c: int
    span: int


def scan_forward(state: int, channels_of_group: int) -> ScanTile:
    """16 states a thread: a lane has a channel of its own up to 16 states; with more, lanes share a channel."""
    return _scan_tile(state, channels_of_group, 1, 32)


def scan_backward(state: int, channels_of_group: int) -> ScanTile:
    """16 states a thread; 4 lanes along states and 8 along channels keep sums over either short."""
    return _scan_tile(state, channels_of_group, 4, 8)


def _scan_tile(state: int, channels_of_group: int, block_r: int, block_c: int) -> ScanTile:
    """The given tile, less as many channels as the states of one need, or as the group has not."""
    block_n = next_power_of_2(state)
    most = max(2, min(512 // block_n, next_power_of_2(channels_of_group), block_r * block_c))
    block_c = min(block_c, most)
    return ScanTile(max(1, most // block_c), block_n, block_c, 2)


def scan_chunk_length(batch: int, length: int, channels: int, state: int) -> int:
    """128 positions if that leaves 8 192 programs of 512 states, else 64."""
    return 128 if batch * (length // 128) * channels * state >= 8192 * 512 else 64


SCAN_BACKWARD_PROGRAMS = 1056
"""Programs of the gradient kernel, each over many chunks: 8 for each of the 132 multiprocessors of an H100."""

SCAN_CHECKPOINT_BYTES = 1 << 28
"""At most this much scratch for states kept within chunks, however long the chunks."""

PROPAGATE_SEGMENT = 64
"""Chunks that one program of the pass over chunks takes one after another; longer sequences go in two levels."""
