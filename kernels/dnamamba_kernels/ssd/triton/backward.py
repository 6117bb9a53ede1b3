"""Kernels of the backward pass: gradients of what a head has of its own, and of B and C, which heads share.

Both work on transposed matrices of a chunk, rows being the earlier positions j and columns the later ones i, so that
every product but one takes its operands as they are.
"""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from dnamamba_kernels.ssd.triton.chunk import chunk_runs, decays, from_start, head_steps, lasting, tile, to_end


@triton.jit
def head_gradients_kernel(
    dy, x, log_decay, weight, B, C, D, ids, entering, leaving, dx, dlog, dweight, dD,
    length, chunks, heads, head, state, heads_of_group, dy_batch, dy_row, dy_head, x_batch, x_row, x_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, ids_batch, ids_row,
    HAS_D: tl.constexpr, HAS_IDS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, P_BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx, dlog and dweight of a head in a chunk, and its share of dD (b · chunks, heads).

    entering h and leaving g: (b, chunks, heads, head, state).
    """
    k = tl.program_id(0) % chunks
    b = (tl.program_id(0) // chunks).to(tl.int64)
    h = tl.program_id(1)
    start = k.to(tl.int64) * CHUNK
    t = tl.arange(0, CHUNK)
    rows = length - start
    B += b * B_batch + start * B_row + (h // heads_of_group) * B_group
    C += b * C_batch + start * C_row + (h // heads_of_group) * C_group
    x += b * x_batch + start * x_row + h * x_head
    dy += b * dy_batch + start * dy_row + h * dy_head
    slot = (b * chunks + k) * heads + h
    entering += slot * head * state
    leaving += slot * head * state
    dx += ((b * length + start) * heads + h) * head

    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    for n_block in tl.range(N_BLOCKS, num_stages=1):
        n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
        B_tile = tile(B, t, n, B_row, 1, rows, state).to(OPERAND)
        C_tile = tile(C, n, t, 1, C_row, state, rows).to(OPERAND)
        scores = tl.dot(B_tile, C_tile, scores, input_precision=PRECISION)
    reach, last, w = head_steps(log_decay, weight, b, start, h, length, heads, CHUNK)
    run, runs = chunk_runs(ids, b, start, length, ids_batch, ids_row, HAS_IDS, CHUNK)
    scores *= decays(reach, run, HAS_IDS, True, CHUNK)
    left_at_end = to_end(reach, last, run, runs, HAS_IDS)
    skip = 0.0
    if HAS_D:
        skip = tl.load(D + h)

    G = tl.zeros([CHUNK, CHUNK], tl.float32)
    dw = tl.zeros([CHUNK], tl.float32)
    from_before = tl.zeros([CHUNK], tl.float32)
    to_next = tl.zeros([CHUNK], tl.float32)
    through = 0.0
    dskip = 0.0
    for p_block in tl.range(P_BLOCKS, num_stages=1):
        p = p_block * BLOCK_P + tl.arange(0, BLOCK_P)
        given = tl.zeros([CHUNK, BLOCK_P], tl.float32)
        carried = tl.zeros([CHUNK, BLOCK_P], tl.float32)
        for n_block in tl.range(N_BLOCKS, num_stages=1):
            n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
            g_tile = tile(leaving, n, p, 1, state, state, head)
            h_tile = tile(entering, n, p, 1, state, state, head)
            through += tl.sum(tl.sum(g_tile.to(tl.float32) * h_tile.to(tl.float32), axis=1), axis=0)
            B_tile = tile(B, t, n, B_row, 1, rows, state).to(OPERAND)
            C_tile = tile(C, t, n, C_row, 1, rows, state).to(OPERAND)
            given = tl.dot(B_tile, g_tile.to(OPERAND), given, input_precision=PRECISION)
            carried = tl.dot(C_tile, h_tile.to(OPERAND), carried, input_precision=PRECISION)
        x_tile = tile(x, t, p, x_row, 1, rows, head)
        dy_tile = tile(dy, t, p, dy_row, 1, rows, head)
        from_before += tl.sum(carried * dy_tile.to(tl.float32), axis=1)
        given *= left_at_end[:, None]
        to_next += tl.sum(given * x_tile.to(tl.float32), axis=1)
        u = tl.dot(scores.to(OPERAND), dy_tile.to(OPERAND), given, input_precision=PRECISION)
        dw += tl.sum(u * x_tile.to(tl.float32), axis=1)
        u *= w[:, None]
        if HAS_D:
            u += skip * dy_tile.to(tl.float32)
            dskip += tl.sum(tl.sum(x_tile.to(tl.float32) * dy_tile.to(tl.float32), axis=1), axis=0)
        inside = (t < rows)[:, None] & (p < head)[None, :]
        tl.store(dx + t[:, None] * (heads * head) + p[None, :], u.to(dx.dtype.element_ty), mask=inside)
        # Last, as so many matrices at a time fit into registers.
        G = tl.dot(x_tile.to(OPERAND), tl.trans(dy_tile.to(OPERAND)), G, input_precision=PRECISION)

    within = scores * w[:, None] * G
    from_before = from_before * from_start(reach, run, HAS_IDS) + tl.sum(within, axis=0) - tl.sum(within, axis=1)
    to_next *= w
    total = tl.cumsum(from_before, axis=0, reverse=True) + tl.cumsum(to_next, axis=0) - to_next
    total += through * lasting(last, runs, HAS_IDS)
    steps = (b * length + start) * heads + h + t * heads
    tl.store(dlog + steps, total, mask=t < rows)
    tl.store(dweight + steps, dw, mask=t < rows)
    if HAS_D:
        tl.store(dD + slot, dskip)


@triton.jit
def map_gradients_kernel(
    dy, x, log_decay, weight, B, C, ids, entering, leaving, dB, dC,
    length, chunks, heads, head, state, heads_of_group, dy_batch, dy_row, dy_head, x_batch, x_row, x_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, ids_batch, ids_row,
    HAS_IDS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, P_BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dB and dC (b, length, groups, state) of BLOCK_N states in a chunk: sums over a group's heads, one after
    another."""
    groups = heads // heads_of_group
    group = tl.program_id(0) % groups
    k = tl.program_id(0) // groups % chunks
    b = (tl.program_id(0) // groups // chunks).to(tl.int64)
    start = k.to(tl.int64) * CHUNK
    t = tl.arange(0, CHUNK)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = length - start
    x += b * x_batch + start * x_row
    dy += b * dy_batch + start * dy_row
    first_slot = (b * chunks + k) * heads

    run, runs = chunk_runs(ids, b, start, length, ids_batch, ids_row, HAS_IDS, CHUNK)
    dscores = tl.zeros([CHUNK, CHUNK], tl.float32)
    dB_total = tl.zeros([CHUNK, BLOCK_N], tl.float32)
    dC_total = tl.zeros([CHUNK, BLOCK_N], tl.float32)
    for h in tl.range(group * heads_of_group, (group + 1) * heads_of_group, num_stages=STAGES):
        reach, last, w = head_steps(log_decay, weight, b, start, h, length, heads, CHUNK)
        left_of_state = from_start(reach, run, HAS_IDS)
        left_at_end = to_end(reach, last, run, runs, HAS_IDS) * w
        states = (first_slot + h) * head * state
        G = tl.zeros([CHUNK, CHUNK], tl.float32)
        for p_block in tl.range(P_BLOCKS, num_stages=1):
            p = p_block * BLOCK_P + tl.arange(0, BLOCK_P)
            x_tile = tile(x + h * x_head, t, p, x_row, 1, rows, head).to(OPERAND)
            dy_tile = tile(dy + h * dy_head, t, p, dy_row, 1, rows, head).to(OPERAND)
            g_tile = tile(leaving + states, p, n, state, 1, head, state).to(OPERAND)
            h_tile = tile(entering + states, p, n, state, 1, head, state).to(OPERAND)
            G = tl.dot(x_tile, tl.trans(dy_tile), G, input_precision=PRECISION)
            dB_total += left_at_end[:, None] * tl.dot(x_tile, g_tile, input_precision=PRECISION)
            dC_total += left_of_state[:, None] * tl.dot(dy_tile, h_tile, input_precision=PRECISION)
        dscores += decays(reach, run, HAS_IDS, True, CHUNK) * w[:, None] * G
    B_tile = tile(B + b * B_batch + start * B_row + group * B_group, t, n, B_row, 1, rows, state).to(OPERAND)
    C_tile = tile(C + b * C_batch + start * C_row + group * C_group, t, n, C_row, 1, rows, state).to(OPERAND)
    dB_total = tl.dot(dscores.to(OPERAND), C_tile, dB_total, input_precision=PRECISION)
    dC_total = tl.dot(tl.trans(dscores.to(OPERAND)), B_tile, dC_total, input_precision=PRECISION)
    inside = (t < rows)[:, None] & (n < state)[None, :]
    slot = ((b * length + start) * groups + group) * state + t[:, None] * (groups * state) + n[None, :]
    tl.store(dB + slot, dB_total.to(dB.dtype.element_ty), mask=inside)
    tl.store(dC + slot, dC_total.to(dC.dtype.element_ty), mask=inside)
