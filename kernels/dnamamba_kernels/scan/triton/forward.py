"""Kernels of the scan's forward pass: chunk summaries, the pass over chunks, and the outputs of all chunks.

A program owns R · C channels of one group, with all N states of each, and scans one chunk; its state is
an [R, N, C] tile of fp32 registers. With 32 lanes along C the default layout keeps a channel's states in one thread, so
that sums over states need no other lane; R neighbouring channels a thread share each row of B and C. Channels of a
program: first + c · R + r.

Inputs of the next position are loaded before the present one is worked on; pointers step by one row and stay on the
last row at the chunk's end, so no load needs a bound on the position.
"""

# ruff: noqa: SIM108 - Triton distinguishes constant from run-time conditions, and compiles one branch of the former

import triton
import triton.language as tl

from dnamamba_kernels.triton_common import LOG2E, sigmoid, softplus

# |ΔA| under which expm1(u)/u and its slope are summed as series, as differences would cancel
SERIES_BELOW = tl.constexpr(0.5)


@triton.jit
def split_program(channels, groups, chunks, blocks, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, task):
    """(batch, chunk, group, block of the group, channels [R, C], which of them exist) of a task; blocks run fastest."""
    block = task % blocks
    group = task // blocks % groups
    chunk = task // blocks // groups % chunks
    b = (task // blocks // groups // chunks).to(tl.int64)
    within = block * BLOCK_R * BLOCK_C + tl.arange(0, BLOCK_C)[None, :] * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    of_group = channels // groups
    return b, chunk, group, block, group * of_group + within, within < of_group


@triton.jit
def per_state(matrix, d, row, zero, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):
    """Pointers [R, N, C] to the rows d of a (channels, state) matrix.

    Triton lays tiles out to suit their loads. The hint claims contiguous channels and makes it put lanes along C
    first, then along N, R in registers. As the alignment is unknown to the compiler (``zero`` is 0 at run time), no
    wider load follows from it, so that the claim need not be true. n is added last: it becomes an offset within the
    load instruction.
    """
    rows = matrix + (d * row + zero)
    return tl.max_contiguous(rows[:, None, :] + tl.arange(0, BLOCK_N)[None, :, None], [1, 2, BLOCK_C])


@triton.jit
def widen(row, CONSTANT: tl.constexpr):
    """B or C of a position, [N] → [1, N, 1]; a constant one is a [R, N, C] tile already."""
    if CONSTANT:
        tile = row
    else:
        tile = row[None, :, None]
    return tile


@triton.jit
def step_size(dt, bias, SOFTPLUS: tl.constexpr):
    """Δ [R, C] from the loaded dt and the bias."""
    v = dt.to(tl.float32) + bias
    if SOFTPLUS:
        v = softplus(v)
    return v


@triton.jit
def input_weight(delta, a, A, ZOH: tl.constexpr):
    """B̄ / B [R, N or 1, C]: Δ (euler) or expm1(ΔA)/A (zoh); a = exp(ΔA)."""
    step = delta[:, None, :]
    if ZOH:
        u = step * A
        near = tl.where(tl.abs(u) < SERIES_BELOW, u, 0.0)
        series = 1.0 + near * (1.0 / 2 + near * (1.0 / 6 + near * (1.0 / 24 + near * (1.0 / 120 + near * (
            1.0 / 720 + near * (1.0 / 5040 + near * (1.0 / 40320 + near * (1.0 / 362880))))))))  # fmt: skip
        weight = step * tl.where(tl.abs(u) < SERIES_BELOW, series, (a - 1.0) / tl.where(u == 0.0, 1.0, u))
    else:
        weight = step
    return weight


@triton.jit
def added_input(x, delta, a, A, B, ZOH: tl.constexpr):
    """B̄ x [R, N, C] of a position, B widened."""
    B = B.to(tl.float32)
    if ZOH:
        added = input_weight(delta, a, A, ZOH) * B * x[:, None, :]
    else:
        added = (delta * x)[:, None, :] * B
    return added


@triton.jit
def restarts(ids, position, length, REVERSE: tl.constexpr, stride):
    """Whether the state restarts at this position: its id differs from that of the position before it in scan order."""
    before = position + 1 if REVERSE else position - 1
    known = (before >= 0) & (before < length)
    here = tl.load(ids + position * stride)
    return known & (here != tl.load(ids + before * stride, mask=known, other=0))


@triton.jit(do_not_specialize=["zero"])
def chunk_summaries_kernel(
    x, dt, A, B, dt_bias, ids, dt_sums, end_states,
    length, channels, state, groups, chunk_size, chunks, blocks, zero,
    x_batch, x_row, dt_batch, dt_row, B_batch, B_row, B_group, ids_batch, ids_row,
    B_CONSTANT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_IDS: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, ZOH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ΣΔ and the end state from zero of one chunk."""
    b, chunk, group, _, d, d_in = split_program(channels, groups, chunks, blocks, BLOCK_R, BLOCK_C, tl.program_id(0))
    n = tl.arange(0, BLOCK_N)
    state_in = d_in[:, None, :] & (n[None, :, None] < state)
    start = chunk.to(tl.int64) * chunk_size
    count = tl.minimum(chunk_size, length - start).to(tl.int32)
    first = start + count - 1 if REVERSE else start
    sign = -1 if REVERSE else 1

    A_tile = tl.load(per_state(A, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    A_log2 = A_tile * LOG2E
    bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if HAS_BIAS:
        bias += tl.load(dt_bias + d, mask=d_in, other=0.0)
    x_at = x + b * x_batch + first * x_row
    dt_at = dt + b * dt_batch + first * dt_row
    B_at = B
    if not B_CONSTANT:
        B_at = B + b * B_batch + first * B_row + group.to(tl.int64) * B_group
    x_next = tl.load(x_at + d, mask=d_in, other=0.0)
    dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
    if B_CONSTANT:
        B_next = tl.load(per_state(B, d, B_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    else:
        B_next = tl.load(B_at + n, mask=n < state, other=0.0)

    h = tl.zeros([BLOCK_R, BLOCK_N, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in range(0, count):
        x_here = x_next.to(tl.float32)
        delta = step_size(dt_next, bias, SOFTPLUS)
        B_here = widen(B_next, B_CONSTANT)
        ahead = tl.where(i + 1 < count, sign, 0)
        x_at += ahead * x_row
        dt_at += ahead * dt_row
        x_next = tl.load(x_at + d, mask=d_in, other=0.0)
        dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
        if not B_CONSTANT:
            B_at += ahead * B_row
            B_next = tl.load(B_at + n, mask=n < state, other=0.0)
        a = tl.exp2(delta[:, None, :] * A_log2)
        added = added_input(x_here, delta, a, A_tile, B_here, ZOH)
        if HAS_IDS:
            restart = restarts(ids + b * ids_batch, first + sign * i, length, REVERSE, ids_row)
            h = tl.where(restart, 0.0, h)  # 0 · NaN would be NaN
            total = tl.where(restart, float("inf"), total)
        h = a * h + added
        total += delta
    summary = (b * chunks + chunk) * channels
    tl.store(dt_sums + summary + d, total, mask=d_in)
    tl.store(per_state(end_states + summary * state, d, state, zero, BLOCK_N, BLOCK_C), h, mask=state_in)


@triton.jit(do_not_specialize=["zero"])
def chunk_outputs_kernel(
    x, dt, A, B, C, D, z, dt_bias, ids, chunk_states, y,
    length, channels, state, groups, chunk_size, chunks, blocks, zero,
    x_batch, x_row, dt_batch, dt_row, B_batch, B_row, B_group, C_batch, C_row, C_group, z_batch, z_row,
    ids_batch, ids_row,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_IDS: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, ZOH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y of one chunk, from the state that enters it."""
    b, chunk, group, _, d, d_in = split_program(channels, groups, chunks, blocks, BLOCK_R, BLOCK_C, tl.program_id(0))
    n = tl.arange(0, BLOCK_N)
    state_in = d_in[:, None, :] & (n[None, :, None] < state)
    start = chunk.to(tl.int64) * chunk_size
    count = tl.minimum(chunk_size, length - start).to(tl.int32)
    first = start + count - 1 if REVERSE else start
    sign = -1 if REVERSE else 1

    A_tile = tl.load(per_state(A, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    A_log2 = A_tile * LOG2E
    bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    skip = bias
    if HAS_BIAS:
        bias += tl.load(dt_bias + d, mask=d_in, other=0.0)
    if HAS_D:
        skip += tl.load(D + d, mask=d_in, other=0.0)
    x_at = x + b * x_batch + first * x_row
    dt_at = dt + b * dt_batch + first * dt_row
    z_at = z + b * z_batch + first * z_row
    y_at = y + (b * length + first) * channels
    B_at = B
    C_at = C
    x_next = tl.load(x_at + d, mask=d_in, other=0.0)
    dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
    z_next = x_next
    if HAS_Z:
        z_next = tl.load(z_at + d, mask=d_in, other=0.0)
    if B_CONSTANT:
        B_next = tl.load(per_state(B, d, B_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    else:
        B_at = B + b * B_batch + first * B_row + group.to(tl.int64) * B_group
        B_next = tl.load(B_at + n, mask=n < state, other=0.0)
    if C_CONSTANT:
        C_next = tl.load(per_state(C, d, C_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    else:
        C_at = C + b * C_batch + first * C_row + group.to(tl.int64) * C_group
        C_next = tl.load(C_at + n, mask=n < state, other=0.0)

    entering = (b * chunks + chunk) * channels * state
    h = tl.load(per_state(chunk_states + entering, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    for i in range(0, count):
        x_here = x_next.to(tl.float32)
        z_here = z_next.to(tl.float32)
        delta = step_size(dt_next, bias, SOFTPLUS)
        B_here = widen(B_next, B_CONSTANT)
        C_here = widen(C_next, C_CONSTANT).to(tl.float32)
        ahead = tl.where(i + 1 < count, sign, 0)
        x_at += ahead * x_row
        dt_at += ahead * dt_row
        x_next = tl.load(x_at + d, mask=d_in, other=0.0)
        dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
        if HAS_Z:
            z_at += ahead * z_row
            z_next = tl.load(z_at + d, mask=d_in, other=0.0)
        if not B_CONSTANT:
            B_at += ahead * B_row
            B_next = tl.load(B_at + n, mask=n < state, other=0.0)
        if not C_CONSTANT:
            C_at += ahead * C_row
            C_next = tl.load(C_at + n, mask=n < state, other=0.0)
        a = tl.exp2(delta[:, None, :] * A_log2)
        added = added_input(x_here, delta, a, A_tile, B_here, ZOH)
        if HAS_IDS:
            h = tl.where(restarts(ids + b * ids_batch, first + sign * i, length, REVERSE, ids_row), 0.0, h)
        h = a * h + added
        out = tl.sum(h * C_here, axis=1)
        if HAS_D:
            out += skip * x_here
        if HAS_Z:
            out *= z_here * sigmoid(z_here)
        tl.store(y_at + d, out.to(y.dtype.element_ty), mask=d_in)
        y_at += sign * channels


@triton.jit
def propagate_kernel(
    dt_sums, end_states, A, entering, states, sums_out, final,
    channels, state, chunks, segment, segments, elements,
    HAS_ENTERING: tl.constexpr, SUMMARIZE: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A segment of chunks, in scan order: state ← exp(A ΣΔ) state + end state, for BLOCK (channel, state) pairs.

    SUMMARIZE: from zero, write ΣΔ over the segment and its end state (final; one a segment). Otherwise: from
    ``entering`` (one a segment), write the state before each chunk into ``states`` and, from the last segment, the
    one after it into ``final``.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(elements, BLOCK)
    e = program % blocks * BLOCK + tl.arange(0, BLOCK)
    e_in = e < elements
    order = program // blocks % segments
    b = (program // blocks // segments).to(tl.int64)
    d = e // state
    low = order * segment
    count = tl.minimum(segment, chunks - low)
    first = low + count - 1 if REVERSE else low
    sign = -1 if REVERSE else 1
    sums_at = dt_sums + (b * chunks + first) * channels
    chunk_at = (b * chunks + first) * elements
    A_log2 = tl.load(A + e, mask=e_in, other=0.0) * LOG2E
    h = tl.zeros([BLOCK], tl.float32)
    if HAS_ENTERING:
        h += tl.load(entering + (b * segments + order) * elements + e, mask=e_in, other=0.0)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, count):
        dt_sum = tl.load(sums_at + d, mask=e_in, other=0.0)
        end = tl.load(end_states + chunk_at + e, mask=e_in, other=0.0)
        if not SUMMARIZE:
            tl.store(states + chunk_at + e, h, mask=e_in)
        h = tl.where(dt_sum == float("inf"), 0.0, tl.exp2(dt_sum * A_log2) * h) + end
        total += dt_sum
        sums_at += sign * channels
        chunk_at += sign * tl.cast(elements, tl.int64)
    if SUMMARIZE:
        tl.store(final + (b * segments + order) * elements + e, h, mask=e_in)
        tl.store(sums_out + (b * segments + order) * channels + d, total, mask=e_in & (e % state == 0))
    else:
        tl.store(final + b * elements + e, h, mask=e_in & (order == (0 if REVERSE else segments - 1)))
