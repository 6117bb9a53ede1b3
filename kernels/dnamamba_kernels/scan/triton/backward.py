"""Kernels of the scan's backward pass: adjoint summaries of all chunks, and the gradients of one.

Tiles, loads and names as in ``scan_forward``. g_t = dL/dy_t before skip and gate; the adjoint λ_t = dL/dh_t runs
against time:

    λ_t = C_t g_t + Ā_{t+1} λ_{t+1},   dC_t = Σ_d g_t h_t,   dB_t = Σ_d λ_t (B̄/B) x_t,   dx_t = Σ_n λ_t B̄_t + D g_t,
    dΔ_t = Σ_n λ_t (A Ā_t h_{t−1} + B_t x_t)  (zoh: … + Ā_t B_t x_t),
    dA = Σ_t λ_t Δ_t Ā_t h_{t−1}  (zoh: … + λ_t B_t x_t d(B̄/B)/dA)
"""

# ruff: noqa: RUF005 - Triton's language knows no unpacking, and distinguishes constant from run-time conditions
# mypy: disable-error-code="assignment, var-annotated"

import triton
import triton.language as tl

from dnamamba_kernels.scan.triton.forward import (
    SERIES_BELOW,
    added_input,
    input_weight,
    per_state,
    restarts,
    split_program,
    step_size,
    widen,
)
from dnamamba_kernels.triton_common import LN2, LOG2E, sigmoid


@triton.jit
def input_weight_slope(delta, a, A):
    """d/dA of expm1(ΔA)/A [R, N, C] = Δ² (u a − expm1(u))/u², u = ΔA, a = eᵘ; near 0 as Σ_k (k−1)/k! u^(k−2)."""
    step = delta[:, None, :]
    u = step * A
    small = tl.abs(u) < SERIES_BELOW
    near = tl.where(small, u, 0.0)
    series = 1.0 / 2 + near * (2.0 / 6 + near * (3.0 / 24 + near * (4.0 / 120 + near * (5.0 / 720 + near * (
        6.0 / 5040 + near * (7.0 / 40320 + near * (8.0 / 362880 + near * (9.0 / 3628800))))))))  # fmt: skip
    far = tl.where(small, 1.0, u)
    return step * step * tl.where(small, series, (far * a - (a - 1.0)) / (far * far))


@triton.jit(do_not_specialize=["zero"])
def backward_summaries_kernel(
    dy, dt, A, C, z, dt_bias, ids, dt_sums, adjoint_ends,
    length, channels, state, groups, chunk_size, chunks, blocks, zero,
    dy_batch, dy_row, dt_batch, dt_row, C_batch, C_row, C_group, z_batch, z_row, ids_batch, ids_row,
    C_CONSTANT: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_IDS: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ΣΔ of one chunk and dL/d(state entering it) with nothing arriving from later chunks."""
    b, chunk, group, _, d, d_in = split_program(channels, groups, chunks, blocks, BLOCK_R, BLOCK_C, tl.program_id(0))
    n = tl.arange(0, BLOCK_N)
    state_in = d_in[:, None, :] & (n[None, :, None] < state)
    start = chunk.to(tl.int64) * chunk_size
    count = tl.minimum(chunk_size, length - start).to(tl.int32)
    last = start if REVERSE else start + count - 1  # the pass begins at the end of scan order
    sign = 1 if REVERSE else -1

    A_log2 = tl.load(per_state(A, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0) * LOG2E
    bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if HAS_BIAS:
        bias += tl.load(dt_bias + d, mask=d_in, other=0.0)
    dy_at = dy + b * dy_batch + last * dy_row
    dt_at = dt + b * dt_batch + last * dt_row
    z_at = z + b * z_batch + last * z_row
    C_at = C
    dy_next = tl.load(dy_at + d, mask=d_in, other=0.0)
    dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
    z_next = dy_next
    if HAS_Z:
        z_next = tl.load(z_at + d, mask=d_in, other=0.0)
    if C_CONSTANT:
        C_next = tl.load(per_state(C, d, C_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
    else:
        C_at = C + b * C_batch + last * C_row + group.to(tl.int64) * C_group
        C_next = tl.load(C_at + n, mask=n < state, other=0.0)

    adjoint = tl.zeros([BLOCK_R, BLOCK_N, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for i in range(0, count):
        g = dy_next.to(tl.float32)
        z_here = z_next.to(tl.float32)
        delta = step_size(dt_next, bias, SOFTPLUS)
        C_here = widen(C_next, C_CONSTANT).to(tl.float32)
        ahead = tl.where(i + 1 < count, sign, 0)
        dy_at += ahead * dy_row
        dt_at += ahead * dt_row
        dy_next = tl.load(dy_at + d, mask=d_in, other=0.0)
        dt_next = tl.load(dt_at + d, mask=d_in, other=0.0)
        if HAS_Z:
            z_at += ahead * z_row
            z_next = tl.load(z_at + d, mask=d_in, other=0.0)
            g *= z_here * sigmoid(z_here)
        if not C_CONSTANT:
            C_at += ahead * C_row
            C_next = tl.load(C_at + n, mask=n < state, other=0.0)
        a = tl.exp2(delta[:, None, :] * A_log2)
        adjoint = a * (adjoint + g[:, None, :] * C_here)
        total += delta
        if HAS_IDS:
            restart = restarts(ids + b * ids_batch, last + sign * i, length, REVERSE, ids_row)
            adjoint = tl.where(restart, 0.0, adjoint)
            total = tl.where(restart, float("inf"), total)
    summary = (b * chunks + chunk) * channels
    tl.store(dt_sums + summary + d, total, mask=d_in)
    tl.store(per_state(adjoint_ends + summary * state, d, state, zero, BLOCK_N, BLOCK_C), adjoint, mask=state_in)


@triton.jit(do_not_specialize=["zero"])
def chunk_gradients_kernel(
    dy, x, dt, A, B, C, D, z, dt_bias, ids, chunk_states, chunk_adjoints,
    dx, ddt, dz, dA_parts, dB_parts, dC_parts, dD_parts, dbias_parts, checkpoints,
    length, channels, state, groups, chunk_size, chunks, blocks, zero, tasks, batch,
    dy_batch, dy_row, x_batch, x_row, dt_batch, dt_row, B_batch, B_row, B_group, C_batch, C_row, C_group, z_batch,
    z_row, ids_batch, ids_row,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_IDS: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, ZOH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Gradients of the chunks task, task + programs, …, one after another.

    A first pass along the chunk keeps the state at every SPAN-th position in this program's part of ``checkpoints``;
    then, from the last span to the first, the states within the span are recomputed into registers and scanned against
    time. dA, dD and ddt_bias are this chunk's sums, dB and dC this channel block's; they are added up in a fixed order
    afterwards.
    """
    n = tl.arange(0, BLOCK_N)
    sign = -1 if REVERSE else 1
    spans_at_most = tl.cdiv(chunk_size, SPAN)
    kept = checkpoints + tl.program_id(0).to(tl.int64) * spans_at_most * (BLOCK_R * BLOCK_N * BLOCK_C)
    kept = (kept + (tl.arange(0, BLOCK_C) + zero))[None, None, :]  # as in per_state, with an exact hint
    in_tile = (tl.arange(0, BLOCK_R)[:, None, None] * BLOCK_N + n[None, :, None]) * BLOCK_C

    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        b, chunk, group, block, d, d_in = split_program(channels, groups, chunks, blocks, BLOCK_R, BLOCK_C, task)
        state_in = d_in[:, None, :] & (n[None, :, None] < state)
        start = chunk.to(tl.int64) * chunk_size
        count = tl.minimum(chunk_size, length - start).to(tl.int32)
        first = start + count - 1 if REVERSE else start
        spans = tl.cdiv(count, SPAN)

        A_tile = tl.load(per_state(A, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
        A_log2 = A_tile * LOG2E
        bias = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        skip = bias
        if HAS_BIAS:
            bias += tl.load(dt_bias + d, mask=d_in, other=0.0)
        if HAS_D:
            skip += tl.load(D + d, mask=d_in, other=0.0)
        x_0 = x + b * x_batch + first * x_row + d
        dt_0 = dt + b * dt_batch + first * dt_row + d
        dy_0 = dy + b * dy_batch + first * dy_row + d
        z_0 = z + b * z_batch + first * z_row + d
        out_0 = (b * length + first) * channels + d
        if B_CONSTANT:
            B_row_tile = tl.load(per_state(B, d, B_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
            B_0 = B + n
        else:
            B_0 = B + b * B_batch + first * B_row + group.to(tl.int64) * B_group + n
            B_row_tile = tl.zeros([BLOCK_N], B.dtype.element_ty)
        if C_CONSTANT:
            C_row_tile = tl.load(per_state(C, d, C_row, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0)
            C_0 = C + n
        else:
            C_0 = C + b * C_batch + first * C_row + group.to(tl.int64) * C_group + n
            C_row_tile = tl.zeros([BLOCK_N], C.dtype.element_ty)
        # dB and dC: one row a position, group and channel block
        part_0 = (((block * batch + b) * length + first) * groups + group) * state + n
        chunk_0 = (b * chunks + chunk) * channels

        h = tl.load(
            per_state(chunk_states + chunk_0 * state, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0
        )
        for span in range(0, spans - 1):
            x_rows = ()
            dt_rows = ()
            B_rows = ()
            for u in tl.static_range(SPAN):  # all loads first: the compiler moves none across a store
                i = tl.cast(span * SPAN + u, tl.int64)
                x_rows = x_rows + (tl.load(x_0 + i * sign * x_row, mask=d_in, other=0.0),)
                dt_rows = dt_rows + (tl.load(dt_0 + i * sign * dt_row, mask=d_in, other=0.0),)
                if not B_CONSTANT:
                    B_row_tile = tl.load(B_0 + i * sign * B_row, mask=n < state, other=0.0)
                B_rows = B_rows + (B_row_tile,)
            at = kept + tl.cast(span, tl.int64) * (BLOCK_R * BLOCK_N * BLOCK_C)
            tl.store(tl.max_contiguous(at + in_tile, [1, 2, BLOCK_C]), h)
            for u in tl.static_range(SPAN):
                i = tl.cast(span * SPAN + u, tl.int64)
                delta = step_size(dt_rows[u], bias, SOFTPLUS)
                a = tl.exp2(delta[:, None, :] * A_log2)
                added = added_input(x_rows[u].to(tl.float32), delta, a, A_tile, widen(B_rows[u], B_CONSTANT), ZOH)
                if HAS_IDS:
                    h = tl.where(restarts(ids + b * ids_batch, first + sign * i, length, REVERSE, ids_row), 0.0, h)
                h = a * h + added

        tl.debug_barrier()
        adjoint = tl.load(
            per_state(chunk_adjoints + chunk_0 * state, d, state, zero, BLOCK_N, BLOCK_C), mask=state_in, other=0.0
        )
        dA = tl.zeros([BLOCK_R, BLOCK_N, BLOCK_C], tl.float32)
        dB_sum = dA
        dC_sum = dA
        dD = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        dbias = dD
        for done in range(0, spans):
            span = spans - 1 - done
            if done > 0:
                at = kept + tl.cast(span, tl.int64) * (BLOCK_R * BLOCK_N * BLOCK_C)
                h = tl.load(tl.max_contiguous(at + in_tile, [1, 2, BLOCK_C]))
            x_rows = ()
            dt_rows = ()
            dy_rows = ()
            z_rows = ()
            B_rows = ()
            C_rows = ()
            for u in tl.static_range(SPAN):  # past the chunk's end: x = dy = 0, and below Δ = 0, which changes nothing
                here_in = d_in & (span * SPAN + u < count)
                i = tl.cast(tl.minimum(span * SPAN + u, count - 1), tl.int64)
                x_rows = x_rows + (tl.load(x_0 + i * sign * x_row, mask=here_in, other=0.0),)
                dt_rows = dt_rows + (tl.load(dt_0 + i * sign * dt_row, mask=here_in, other=0.0),)
                dy_rows = dy_rows + (tl.load(dy_0 + i * sign * dy_row, mask=here_in, other=0.0),)
                if HAS_Z:
                    z_rows = z_rows + (tl.load(z_0 + i * sign * z_row, mask=here_in, other=0.0),)
                if not B_CONSTANT:
                    B_row_tile = tl.load(B_0 + i * sign * B_row, mask=n < state, other=0.0)
                if not C_CONSTANT:
                    C_row_tile = tl.load(C_0 + i * sign * C_row, mask=n < state, other=0.0)
                B_rows = B_rows + (B_row_tile,)
                C_rows = C_rows + (C_row_tile,)
            before = (h,)  # the state before each position of the span
            for u in tl.static_range(SPAN - 1):
                i = tl.cast(tl.minimum(span * SPAN + u, count - 1), tl.int64)
                delta = step_size(dt_rows[u], bias, SOFTPLUS)
                a = tl.exp2(delta[:, None, :] * A_log2)
                added = added_input(x_rows[u].to(tl.float32), delta, a, A_tile, widen(B_rows[u], B_CONSTANT), ZOH)
                if HAS_IDS:
                    h = tl.where(restarts(ids + b * ids_batch, first + sign * i, length, REVERSE, ids_row), 0.0, h)
                h = a * h + added
                before = before + (h,)
            for u in tl.static_range(SPAN - 1, -1, -1):
                exists = span * SPAN + u < count
                i = tl.cast(tl.minimum(span * SPAN + u, count - 1), tl.int64)
                here_in = d_in & exists
                x_here = x_rows[u].to(tl.float32)
                dt_here = dt_rows[u].to(tl.float32) + bias
                delta = tl.where(exists, step_size(dt_here, 0.0, SOFTPLUS), 0.0)
                g = dy_rows[u].to(tl.float32)
                B_here = widen(B_rows[u], B_CONSTANT).to(tl.float32)
                C_here = widen(C_rows[u], C_CONSTANT).to(tl.float32)
                a = tl.exp2(delta[:, None, :] * A_log2)
                weight = input_weight(delta, a, A_tile, ZOH)
                decayed = a * before[u]
                if HAS_IDS:
                    restart = exists & restarts(ids + b * ids_batch, first + sign * i, length, REVERSE, ids_row)
                    decayed = tl.where(restart, 0.0, decayed)
                if ZOH:
                    weighted = weight * x_here[:, None, :]
                    h = decayed + weighted * B_here
                else:
                    weighted = (delta * x_here)[:, None, :]
                    h = decayed + weighted * B_here

                if HAS_Z:
                    z_here = z_rows[u].to(tl.float32)
                    out = tl.sum(h * C_here, axis=1) + skip * x_here
                    gate = sigmoid(z_here)
                    dz_here = g * out * gate * (1.0 + z_here * (1.0 - gate))
                    tl.store(dz + out_0 + i * sign * channels, dz_here.to(dz.dtype.element_ty), mask=here_in)
                    g *= z_here * gate
                dC_here = g[:, None, :] * h
                adjoint += g[:, None, :] * C_here
                dB_here = adjoint * weighted
                if C_CONSTANT:
                    dC_sum += dC_here
                else:
                    dC_row = tl.sum(tl.sum(dC_here, axis=0), axis=1)
                    tl.store(dC_parts + part_0 + i * sign * groups * state, dC_row, mask=(n < state) & exists)
                if B_CONSTANT:
                    dB_sum += dB_here
                else:
                    dB_row = tl.sum(tl.sum(dB_here, axis=0), axis=1)
                    tl.store(dB_parts + part_0 + i * sign * groups * state, dB_row, mask=(n < state) & exists)
                adjoint_B = adjoint * B_here
                through_decay = adjoint * decayed  # dL/d(ΔA) through the decay
                if ZOH:
                    dx_here = tl.sum(adjoint_B * weight, axis=1)
                    adjoint_Bx = adjoint_B * x_here[:, None, :]
                    ddelta = tl.sum(through_decay * A_tile + adjoint_Bx * a, axis=1)
                    dA += through_decay * delta[:, None, :] + adjoint_Bx * input_weight_slope(delta, a, A_tile)
                else:
                    along_B = tl.sum(adjoint_B, axis=1)
                    dx_here = along_B * delta
                    ddelta = tl.sum(through_decay * A_log2, axis=1) * LN2 + along_B * x_here
                    dA += through_decay * delta[:, None, :]
                if SOFTPLUS:
                    ddelta *= sigmoid(dt_here)
                if HAS_D:
                    dx_here += skip * g
                    dD += g * x_here
                if HAS_BIAS:
                    dbias += tl.where(exists, ddelta, 0.0)
                tl.store(dx + out_0 + i * sign * channels, dx_here.to(dx.dtype.element_ty), mask=here_in)
                tl.store(ddt + out_0 + i * sign * channels, ddelta.to(ddt.dtype.element_ty), mask=here_in)
                adjoint *= a
                if HAS_IDS:
                    adjoint = tl.where(restart, 0.0, adjoint)

        tl.store(per_state(dA_parts + chunk_0 * state, d, state, zero, BLOCK_N, BLOCK_C), dA, mask=state_in)
        if B_CONSTANT:
            tl.store(per_state(dB_parts + chunk_0 * state, d, state, zero, BLOCK_N, BLOCK_C), dB_sum, mask=state_in)
        if C_CONSTANT:
            tl.store(per_state(dC_parts + chunk_0 * state, d, state, zero, BLOCK_N, BLOCK_C), dC_sum, mask=state_in)
        if HAS_D:
            tl.store(dD_parts + chunk_0 + d, dD, mask=d_in)
        if HAS_BIAS:
            tl.store(dbias_parts + chunk_0 + d, dbias, mask=d_in)
        tl.debug_barrier()  # the next chunk's checkpoints overwrite this one's
