"""Causal depthwise convolution in Triton, forward and backward.

With t the position in scan order (t = length − 1 − position when ``reverse``) and w[j] the weight of the input j
steps back (``weight[:, width − 1 − j]``):

    pre[t] = bias + Σ_j w[j] x[t − j],   y[t] = silu(pre[t])  or  pre[t]

x[−1], x[−2], … come from ``initial_state`` (oldest first), or are 0. With ``sequence_ids``, an input takes part only
if no id changes between it and t; the initial state belongs to the first id and the final state to the last.
"""

# ruff: noqa: RUF005, SIM102, SIM108 - Triton's language knows no unpacking, and distinguishes constant from run-time conditions
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dnamamba_kernels.checks import unit_stride
from dnamamba_kernels.conv.protocol import ConvArguments, ConvBackend, ConvStep
from dnamamba_kernels.triton_common import dtype_refusal, on_device, optional, sigmoid, sum_rows

STEP_CHANNELS = 128
"""Channels of a program of a step."""


class ConvTile(NamedTuple):
    """Positions and channels of one program, its warps, and the positions loaded at a time (backward)."""

    block_t: int
    block_c: int
    num_warps: int
    unroll: int = 1


def forward_tile(length: int, channels: int, element_size: int, masked: bool) -> ConvTile:
    """4 096 elements a tile in rows of 128 channels, four warps: 0.84 ms at 1 × 512 × 2²⁰, where rows of 64 take 1.14.

    16-bit data that need no masks (`masked`: sequence ids or an initial state): a warp for 2 048, 0.79 ms. It takes 167
    registers; with more than 168 a multiprocessor has 8 warps in place of 12: 1.07 ms at 2²⁰ − 1.
    """
    block_c = min(128, triton.next_power_of_2(channels))
    if element_size == 2 and length % 16 == 0 and channels % 128 == 0 and not masked:
        return ConvTile(16, block_c, 1)
    return ConvTile(min(64, 4096 // block_c), block_c, 4)


def backward_tile(batch: int, length: int, channels: int, element_size: int) -> ConvTile:
    """One warp with 4 bytes a lane, and the longest strips that leave 2 048 programs; 8 bytes where those leave 8 192.

    A strip of block_t rows reads 2 · (width − 1) rows more and leaves width + 1 rows of sums. Few programs need more
    rows in flight. 0.158 ms at 1 × 512 × 2¹⁷, with 8 bytes a lane 0.163 and more; at 2²⁰ 1.21 and 1.16.
    """

    def programs(block_t: int, block_c: int) -> int:
        return batch * -(-length // block_t) * -(-channels // block_c)

    most = max(32, triton.next_power_of_2(channels))
    narrow, wide = (min(32 * lane // element_size, most) for lane in (4, 8))
    if programs(256, wide) >= 8192:
        return ConvTile(256, wide, 1, 8)
    block_t = next((block_t for block_t in (256, 128) if programs(block_t, narrow) >= 2048), 64)
    return ConvTile(block_t, narrow, 1, 8 if programs(block_t, narrow) < 4096 else 4)


@triton.jit
def _forward_kernel(
    x, weight, bias, initial, ids, y, final,
    length, channels, x_batch, x_row, ids_batch, ids_row, time_blocks, channel_blocks,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_IDS: tl.constexpr, SILU: tl.constexpr,
    REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_T, BLOCK_C] tile of y, from WIDTH shifted loads of x (the first from memory, the others from L1).

    The program of the last time block also writes the final state.
    """
    program = tl.program_id(0)
    time_block = program // channel_blocks % time_blocks
    b = (program // channel_blocks // time_blocks).to(tl.int64)
    start = time_block.to(tl.int64) * BLOCK_T
    step = -1 if REVERSE else 1
    first = length - 1 - start if REVERSE else start  # the memory position of the tile's first row
    row = tl.arange(0, BLOCK_T)
    c = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    x_tile = x + b * x_batch + first * x_row
    ids_tile = ids + b * ids_batch + first * ids_row
    written = start + row < length

    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=c_in, other=0.0).to(tl.float32)[None, :]
    joined = row >= 0
    for j in tl.static_range(WIDTH):
        tap = row - j
        inside = written & (start + tap >= 0)
        if HAS_IDS and j > 0:
            here = tl.load(ids_tile + tap * step * ids_row, mask=inside, other=0)
            after = tl.load(ids_tile + (tap + 1) * step * ids_row, mask=inside, other=0)
            joined = joined & (here == after)
            inside = inside & joined
        value = tl.load(
            x_tile + (tap * step * x_row)[:, None] + c[None, :], mask=inside[:, None] & c_in[None, :], other=0.0
        )
        value = value.to(tl.float32)
        if HAS_INITIAL and j > 0:
            if time_block == 0:
                before = (tap < 0) & joined & written
                old = initial + (b * (WIDTH - 1) + WIDTH - 1 + tap)[:, None] * channels + c[None, :]
                value += tl.load(old, mask=before[:, None] & c_in[None, :], other=0.0).to(tl.float32)
        w = tl.load(weight + c * WIDTH + (WIDTH - 1 - j), mask=c_in, other=0.0).to(tl.float32)
        total += w[None, :] * value
    if SILU:
        total = total * sigmoid(total)
    y_tile = y + (b * length + first) * channels
    tl.store(
        y_tile + (row * step * channels)[:, None] + c[None, :],
        total.to(y.dtype.element_ty),
        mask=written[:, None] & c_in[None, :],
    )

    if time_block == time_blocks - 1:
        last = 0 if REVERSE else length - 1
        x_last = x + b * x_batch + tl.cast(last, tl.int64) * x_row
        ids_last = ids + b * ids_batch + tl.cast(last, tl.int64) * ids_row
        kept = length > 0
        for back in tl.static_range(WIDTH - 1):  # the input `back` steps before the last
            is_known = length - 1 - back >= 0
            if HAS_IDS and back > 0:
                id_here = tl.load(ids_last - back * step * ids_row, mask=is_known, other=0)
                id_after = tl.load(ids_last - (back - 1) * step * ids_row, mask=is_known, other=0)
                kept = kept & (id_here == id_after)
            input_row = tl.load(x_last - back * step * x_row + c, mask=c_in & is_known & kept, other=0.0)
            if HAS_INITIAL:
                old_row = initial + (b * (WIDTH - 1) + WIDTH - 1 + length - 1 - back) * channels + c
                input_row += tl.load(old_row, mask=c_in & (length - 1 - back < 0) & kept, other=0.0)
            tl.store(final + (b * (WIDTH - 1) + WIDTH - 2 - back) * channels + c, input_row, mask=c_in)


@triton.jit
def _row(first, i, stride, low, high, c, c_in):
    """Row i of the rows that begin at pointer ``first``; zeros unless low ≤ i < high. [BLOCK_C]."""
    return tl.load(first + tl.cast(i, tl.int64) * stride + c, mask=c_in & (i >= low) & (i < high), other=0.0)


@triton.jit
def _rows(first, i, stride, low, high, c, c_in, COUNT: tl.constexpr):
    """Rows i … i + COUNT − 1."""
    rows = ()
    for u in tl.static_range(COUNT):
        rows = rows + (_row(first, i + u, stride, low, high, c, c_in),)
    return rows


@triton.jit
def _same_id(ids, i, stride, low, high):
    """Whether rows i and i + 1 have the same id; true where either lies outside [low, high)."""
    known = (i >= low) & (i + 1 < high)
    here = tl.load(ids + tl.cast(i, tl.int64) * stride, mask=known, other=0)
    return here == tl.load(ids + tl.cast(i + 1, tl.int64) * stride, mask=known, other=0)


@triton.jit
def _backward_kernel(
    dy, dfinal, x, weight, bias, initial, ids, dx, dinitial, partials,
    length, channels, dy_batch, dy_row, x_batch, x_row, ids_batch, ids_row, strips, channel_blocks,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_DFINAL: tl.constexpr,
    HAS_IDS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """A strip of BLOCK_T rows of dx, in scan order with the last WIDTH inputs and gradients in registers.

    With g = dL/dpre = dy · silu'(pre):   dx[s] = Σ_j w[j] g[s + j],   dw[j] = Σ_t g[t] x[t − j],   dbias = Σ_t g[t].
    dx[s] is complete once g[s + WIDTH − 1] is known, so a strip reads WIDTH − 1 rows more on either side. Each row is
    read and each silu' evaluated once. ``partials`` (batch · strips, WIDTH + 1, channels): this strip's dw[WIDTH − 1
    … 0] and dbias. Rows are numbered i = t − start here, within 32 bits; [low, high) are the rows that exist.
    """
    program = tl.program_id(0)
    strip = program // channel_blocks % strips
    b = (program // channel_blocks // strips).to(tl.int64)
    start = strip.to(tl.int64) * BLOCK_T
    low = -tl.minimum(start, WIDTH).to(tl.int32)
    high = tl.minimum(length - start, BLOCK_T + 2 * WIDTH + UNROLL).to(tl.int32)
    end = tl.minimum(high, BLOCK_T)
    c = program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    c_in = c < channels
    sign = -1 if REVERSE else 1
    position = length - 1 - start if REVERSE else start  # in memory, of row 0
    x_0 = x + b * x_batch + position * x_row
    dy_0 = dy + b * dy_batch + position * dy_row
    dx_0 = dx + (b * length + position) * channels
    ids_0 = ids + b * ids_batch + position * ids_row
    state_0 = (b * (WIDTH - 1) + WIDTH - 1) * channels  # the state's row of t = 0; t = −1 is the newest row

    zeros = tl.zeros([BLOCK_C], tl.float32)
    offset = zeros
    if HAS_BIAS:
        offset = tl.load(bias + c, mask=c_in, other=0.0).to(tl.float32)
    w = ()  # w[j], j steps back
    dw = ()
    inputs = ()  # inputs[j] = x[t − 1 − j]
    grads = ()  # grads[j] = g[t − 1 − j]
    for j in tl.static_range(WIDTH):
        w = w + (tl.load(weight + c * WIDTH + (WIDTH - 1 - j), mask=c_in, other=0.0).to(tl.float32),)
        dw = dw + (zeros,)
    for j in tl.static_range(WIDTH - 1):
        value = _row(x_0, -1 - j, sign * x_row, low, high, c, c_in).to(tl.float32)
        if HAS_INITIAL:
            t = start - 1 - j
            old = tl.load(initial + state_0 + t * channels + c, mask=c_in & (t < 0), other=0.0)
            value += old.to(tl.float32)
        inputs = inputs + (value,)
        grads = grads + (zeros,)
    dbias = zeros

    read = tl.minimum(high, BLOCK_T + WIDTH - 1)  # rows that matter here
    x_rows = _rows(x_0, 0, sign * x_row, low, read, c, c_in, UNROLL)
    dy_rows = _rows(dy_0, 0, sign * dy_row, low, read, c, c_in, UNROLL)
    for group in range(0, tl.cdiv(BLOCK_T + WIDTH - 1, UNROLL)):
        i0 = group * UNROLL
        # the next group's, to be in flight while this one is computed
        next_x = _rows(x_0, i0 + UNROLL, sign * x_row, low, read, c, c_in, UNROLL)
        next_dy = _rows(dy_0, i0 + UNROLL, sign * dy_row, low, read, c, c_in, UNROLL)
        for u in tl.static_range(UNROLL):
            i = i0 + u
            newest = x_rows[u].to(tl.float32)
            taps = (newest,)
            joined = i >= 0
            for j in tl.static_range(WIDTH - 1):
                value = inputs[j]
                if HAS_IDS:
                    joined = joined & _same_id(ids_0, i - 1 - j, sign * ids_row, low, high)
                    value = tl.where(joined, value, 0.0)
                taps = taps + (value,)
            g = dy_rows[u].to(tl.float32)  # 0 after the last row
            if SILU:
                pre = offset
                for j in tl.static_range(WIDTH):
                    pre += w[j] * taps[j]
                gate = sigmoid(pre)
                g = g * gate * (1.0 + pre * (1.0 - gate))
            own = tl.where(i < end, g, 0.0)  # rows after the strip's end belong to the next strip's sums
            dbias += own
            new_dw = ()
            for j in tl.static_range(WIDTH):
                new_dw = new_dw + (dw[j] + own * taps[j],)
            dw = new_dw

            s = i - (WIDTH - 1)
            total = zeros
            joined = i >= 0
            for j in tl.static_range(WIDTH):  # g[s + j] is grads[WIDTH − 2 − j], the newest one g itself
                if j < WIDTH - 1:
                    term = grads[WIDTH - 2 - j]
                else:
                    term = g
                if HAS_IDS and j > 0:
                    joined = joined & _same_id(ids_0, s + j - 1, sign * ids_row, low, high)
                    term = tl.where(joined, term, 0.0)
                total += w[j] * term
            if HAS_DFINAL:
                in_state = start + s - (length - (WIDTH - 1))  # the final state's row that holds x[s]
                kept = (in_state >= 0) & (s < high)
                if HAS_IDS:
                    for j in tl.static_range(WIDTH - 2):
                        kept = kept & _same_id(ids_0, s + j, sign * ids_row, low, high)
                row = dfinal + (b * (WIDTH - 1) + in_state) * channels + c
                total += tl.load(row, mask=c_in & kept, other=0.0).to(tl.float32)
            rounded = total.to(dx.dtype.element_ty)
            tl.store(dx_0 + sign * tl.cast(s, tl.int64) * channels + c, rounded, mask=c_in & (s >= 0) & (s < end))
            if strip == 0:
                tl.store(dinitial + state_0 + tl.cast(s, tl.int64) * channels + c, rounded, mask=c_in & (s < 0))

            kept_inputs = (newest,)
            kept_grads = (g,)
            for j in tl.static_range(WIDTH - 2):
                kept_inputs = kept_inputs + (inputs[j],)
                kept_grads = kept_grads + (grads[j],)
            inputs = kept_inputs
            grads = kept_grads
        x_rows = next_x
        dy_rows = next_dy

    sums = partials + (b * strips + strip) * (WIDTH + 1) * channels + c
    for j in tl.static_range(WIDTH):
        tl.store(sums + (WIDTH - 1 - j) * channels, dw[j], mask=c_in)
    tl.store(sums + WIDTH * channels, dbias, mask=c_in)


@triton.jit
def _conv_step_kernel(
    x, weight, bias, state, y, new_state,
    channels, x_batch, weight_channel, weight_tap, state_batch, state_row,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y and the shifted state of BLOCK_C channels of a sequence."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    newest = tl.load(x + b * x_batch + c, mask=inside, other=0.0)
    taps = weight + c * weight_channel
    total = tl.load(taps + (WIDTH - 1) * weight_tap, mask=inside, other=0.0).to(tl.float32) * newest.to(tl.float32)
    shifted = new_state + b * (WIDTH - 1) * channels + c
    for j in tl.static_range(WIDTH - 1):
        row = tl.load(state + b * state_batch + j * state_row + c, mask=inside, other=0.0)
        total += tl.load(taps + j * weight_tap, mask=inside, other=0.0).to(tl.float32) * row.to(tl.float32)
        if j > 0:
            tl.store(shifted + (j - 1) * channels, row, mask=inside)
    tl.store(shifted + (WIDTH - 2) * channels, newest, mask=inside)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        total = total * sigmoid(total)
    tl.store(y + b * channels + c, total.to(y.dtype.element_ty), mask=inside)


class TritonConv(ConvBackend, ConvStep):
    """bfloat16, float16 and float32 on a GPU."""

    def supports(self, x: torch.Tensor) -> str | None:
        return dtype_refusal(x)

    def forward(self, a: ConvArguments) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, bias, initial_state, sequence_ids, activation, reverse = a
        batch, length, channels = x.shape
        width = weight.shape[1]
        x = unit_stride(x)
        weight = weight.contiguous()
        y = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
        final_state = torch.empty((batch, width - 1, channels), dtype=x.dtype, device=x.device)
        masked = initial_state is not None or sequence_ids is not None
        config = forward_tile(length, channels, x.element_size(), masked)
        time_blocks = -(-length // config.block_t)
        channel_blocks = -(-channels // config.block_c)
        with on_device(x):
            _forward_kernel[(batch * time_blocks * channel_blocks,)](
                x, weight, optional(bias, x), optional(_contiguous(initial_state), x), optional(sequence_ids, x), y,
                final_state, length, channels, x.stride(0), x.stride(1), *_ids_strides(sequence_ids), time_blocks,
                channel_blocks,
                WIDTH=width, HAS_BIAS=bias is not None, HAS_INITIAL=initial_state is not None,
                HAS_IDS=sequence_ids is not None, SILU=activation == "silu", REVERSE=reverse,
                BLOCK_T=config.block_t, BLOCK_C=config.block_c, num_warps=config.num_warps,
            )  # fmt: skip
        return y, final_state

    def backward(
        self, a: ConvArguments, dy: torch.Tensor, dfinal_state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """dweight and dbias are sums within a strip, then over strips in a fixed order: the same bits every run."""
        x, weight, bias, initial_state, sequence_ids, activation, reverse = a
        batch, length, channels = x.shape
        width = weight.shape[1]
        x, dy = unit_stride(x), unit_stride(dy)
        weight = weight.contiguous()
        dx = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
        dinitial = torch.empty((batch, width - 1, channels), dtype=x.dtype, device=x.device)
        config = backward_tile(batch, length, channels, x.element_size())
        strips = -(-length // config.block_t)
        channel_blocks = -(-channels // config.block_c)
        partials = torch.empty((batch * strips, width + 1, channels), dtype=torch.float32, device=x.device)
        with on_device(x):
            _backward_kernel[(batch * strips * channel_blocks,)](
                dy, optional(_contiguous(dfinal_state), dy), x, weight, optional(bias, x),
                optional(_contiguous(initial_state), x), optional(sequence_ids, x), dx, dinitial, partials,
                length, channels, dy.stride(0), dy.stride(1), x.stride(0), x.stride(1), *_ids_strides(sequence_ids),
                strips, channel_blocks,
                WIDTH=width, HAS_BIAS=bias is not None, HAS_INITIAL=initial_state is not None,
                HAS_DFINAL=dfinal_state is not None, HAS_IDS=sequence_ids is not None, SILU=activation == "silu",
                REVERSE=reverse, BLOCK_T=config.block_t, BLOCK_C=config.block_c, UNROLL=config.unroll,
                num_warps=config.num_warps,
            )  # fmt: skip
        dweight, dbias = sum_rows(partials)
        return dx, dweight, None if bias is None else dbias, dinitial

    def step(self, a: ConvArguments) -> tuple[torch.Tensor, torch.Tensor]:
        """One launch, where plain PyTorch takes several small operations."""
        x, weight, bias, state, _, activation, _ = a
        assert state is not None
        (batch, channels), width = x.shape, weight.shape[1]
        y, new_state = x.new_empty(batch, channels), x.new_empty(batch, width - 1, channels)
        with on_device(x):
            _conv_step_kernel[(batch, triton.cdiv(channels, STEP_CHANNELS))](
                x, weight, optional(bias, weight), state, y, new_state,
                channels, x.stride(0), weight.stride(0), weight.stride(1), state.stride(0), state.stride(1),
                WIDTH=width, HAS_BIAS=bias is not None, SILU=activation == "silu", BLOCK_C=STEP_CHANNELS, num_warps=4,
            )  # fmt: skip
        return y, new_state


BACKEND = TritonConv()


def _ids_strides(sequence_ids: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if sequence_ids is None else (sequence_ids.stride(0), sequence_ids.stride(1))


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
