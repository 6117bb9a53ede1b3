"""Kernels of the forward pass: what each chunk makes, what is handed on between chunks, outputs. The first two serve
the backward pass, too."""

# ruff: noqa: RUF005, SIM108 - Triton's language knows no unpacking, and distinguishes constant
# from run-time conditions
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from dnamamba_kernels.ssd.triton.chunk import chunk_runs, decays, from_start, head_steps, lasting, tile, to_end


@triton.jit
def chunk_states_kernel(
    values, log_decay, weight, maps, ids, made, left,
    length, chunks, heads, head, state, heads_of_group, values_batch, values_row, values_head,
    maps_batch, maps_row, maps_group, ids_batch, ids_row,
    ADJOINT: tl.constexpr, HAS_IDS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """made (b, k, heads, head, state) = Σ_j F_j w_j x_j B_jᵀ, and left (b, k, heads), what lasts of a state.

    ADJOINT: Σ_i E_i dy_i C_iᵀ, of dy and C.
    """
    k = tl.program_id(0) % chunks
    b = (tl.program_id(0) // chunks).to(tl.int64)
    blocks = tl.cdiv(head, BLOCK_P)
    h = tl.program_id(1) // blocks
    start = k.to(tl.int64) * CHUNK
    t = tl.arange(0, CHUNK)
    p = tl.program_id(1) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = length - start

    reach, last, w = head_steps(log_decay, weight, b, start, h, length, heads, CHUNK)
    run, runs = chunk_runs(ids, b, start, length, ids_batch, ids_row, HAS_IDS, CHUNK)
    if ADJOINT:
        scale = from_start(reach, run, HAS_IDS)
    else:
        scale = to_end(reach, last, run, runs, HAS_IDS) * w
    value = tile(
        values + b * values_batch + start * values_row + h * values_head, p, t, 1, values_row, head, rows
    )  # transposed
    group = maps + b * maps_batch + start * maps_row + (h // heads_of_group) * maps_group
    scaled = tile(group, t, n, maps_row, 1, rows, state).to(tl.float32) * scale[:, None]
    total = tl.dot(value.to(OPERAND), scaled.to(OPERAND), input_precision=PRECISION)
    slot = (b * chunks + k) * heads + h
    inside = (p < head)[:, None] & (n < state)[None, :]
    tl.store(made + slot * head * state + p[:, None] * state + n[None, :], total, mask=inside)
    if tl.program_id(1) % blocks + tl.program_id(2) == 0:
        tl.store(left + slot, lasting(last, runs, HAS_IDS))


@triton.jit
def propagate_kernel(
    made, left, initial, entering, final, final_left,
    chunks, segment, heads, elements,
    HAS_INITIAL: tl.constexpr, ENTERING: tl.constexpr, REVERSE: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK numbers of a head's state, handed on over a segment of chunks, from the last where REVERSE.

    made (b, chunks, heads, elements), left (b, chunks, heads); initial, final (b, segments, heads, elements) and
    final_left (b, segments, heads) are of whole segments. ENTERING: the states that enter the chunks are wanted, too.
    """
    segments = tl.cdiv(chunks, segment)
    h = tl.program_id(0) % heads
    s = tl.program_id(0) // heads % segments
    b = (tl.program_id(0) // heads // segments).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    slot = (b * segments + s) * heads + h
    now = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        now += tl.load(initial + slot * elements + e, mask=inside, other=0.0)
    kept = 1.0
    first = s * segment
    count = tl.minimum(segment, chunks - first)
    for done in range(0, count, UNROLL):
        fresh = ()  # all loads before the first use
        decay = ()
        for u in tl.static_range(UNROLL):
            i = done + u
            k = first + (count - 1 - i if REVERSE else i)
            row = (b * chunks + k) * heads + h
            fresh = fresh + (tl.load(made + row * elements + e, mask=inside & (i < count), other=0.0),)
            decay = decay + (tl.load(left + row, mask=i < count, other=1.0),)
        for u in tl.static_range(UNROLL):
            i = done + u
            if ENTERING:
                k = first + (count - 1 - i if REVERSE else i)
                row = (b * chunks + k) * heads + h
                tl.store(entering + row * elements + e, now.to(entering.dtype.element_ty), mask=inside & (i < count))
            now = tl.where(decay[u] == 0.0, 0.0, decay[u] * now) + fresh[u]  # 0 · NaN would be NaN
            kept *= decay[u]
    tl.store(final + slot * elements + e, now, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(final_left + slot, kept)


@triton.jit
def outputs_kernel(
    x, log_decay, weight, B, C, D, ids, entering, y,
    length, chunks, heads, head, state, heads_of_group, x_batch, x_row, x_head,
    B_batch, B_row, B_group, C_batch, C_row, C_group, ids_batch, ids_row,
    HAS_D: tl.constexpr, HAS_IDS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
    N_BLOCKS: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (b, length, heads, head) = (L ∘ C Bᵀ) (w x) + E h C + D x, of BLOCK_P numbers of a head in a chunk."""
    k = tl.program_id(0) % chunks
    b = (tl.program_id(0) // chunks).to(tl.int64)
    blocks = tl.cdiv(head, BLOCK_P)
    h = tl.program_id(1) // blocks
    start = k.to(tl.int64) * CHUNK
    t = tl.arange(0, CHUNK)
    p = tl.program_id(1) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    rows = length - start
    B += b * B_batch + start * B_row + (h // heads_of_group) * B_group
    C += b * C_batch + start * C_row + (h // heads_of_group) * C_group
    entering += ((b * chunks + k) * heads + h) * head * state

    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    carried = tl.zeros([CHUNK, BLOCK_P], tl.float32)
    for block in tl.range(N_BLOCKS, num_stages=1):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        C_tile = tile(C, t, n, C_row, 1, rows, state).to(OPERAND)
        B_tile = tile(B, n, t, 1, B_row, state, rows).to(OPERAND)
        h_tile = tile(entering, n, p, 1, state, state, head).to(OPERAND)
        scores = tl.dot(C_tile, B_tile, scores, input_precision=PRECISION)
        carried = tl.dot(C_tile, h_tile, carried, input_precision=PRECISION)
    reach, _, w = head_steps(log_decay, weight, b, start, h, length, heads, CHUNK)
    run, _ = chunk_runs(ids, b, start, length, ids_batch, ids_row, HAS_IDS, CHUNK)
    scores *= decays(reach, run, HAS_IDS, False, CHUNK) * w[None, :]
    value = tile(x + b * x_batch + start * x_row + h * x_head, t, p, x_row, 1, rows, head)
    total = carried * from_start(reach, run, HAS_IDS)[:, None]
    total = tl.dot(scores.to(OPERAND), value.to(OPERAND), total, input_precision=PRECISION)
    if HAS_D:
        total += tl.load(D + h) * value.to(tl.float32)
    first = y + ((b * length + start) * heads + h) * head
    inside = (t < rows)[:, None] & (p < head)[None, :]
    tl.store(first + t[:, None] * (heads * head) + p[None, :], total.to(y.dtype.element_ty), mask=inside)
