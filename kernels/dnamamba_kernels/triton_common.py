"""What the Triton kernels share: elementwise functions, the sum of partial results, and launch helpers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def sigmoid(v):
    """1 / (1 + exp(−v)) in fp32; exp2 overflows to inf for very negative v, which gives the right limit 0.

    rsqrt(v)² is one special-function instruction and a product, where a division takes five instructions.
    """
    root = tl.rsqrt(1.0 + tl.exp2(-v * LOG2E))
    return root * root


@triton.jit
def softplus(v):
    """log(1 + exp(v)) to a few units in the last place over the whole range, tiny results included.

    With e = exp(−|v|) and s = e / (2 + e) ≤ 1/3: log(1 + e) = 2 artanh(s) = 2 (s + s³/3 + s⁵/5 + …). A logarithm of
    1 + e would lose all digits of results near 1e-6. Above 20, where torch's softplus returns v, so does this in fp32.
    """
    e = tl.exp2(-tl.abs(v) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (
        1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15))))))
    )
    return tl.maximum(v, 0.0) + 2.0 * s * series


@triton.jit
def _sum_partials_kernel(partials, out, count, elements, BLOCK: tl.constexpr):
    """out[e] = Σ_p partials[p, e], p in ascending order, fp32."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = e < elements
    total = tl.zeros([BLOCK], tl.float32)
    rows = partials + e
    for _ in range(0, count):
        total += tl.load(rows, mask=inside, other=0.0)
        rows += elements
    tl.store(out + e, total.to(out.dtype.element_ty), mask=inside)


def sum_partials(partials: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sum a contiguous fp32 tensor over its first dimension, in ascending order, and round once to ``dtype``.

    Meant for few partials of many elements; many partials of few elements are for `sum_rows` or ``torch.sum``.
    """
    count, elements = partials.shape[0], partials[0].numel()
    out = torch.empty(partials.shape[1:], dtype=dtype, device=partials.device)
    if elements:
        with on_device(partials):
            _sum_partials_kernel[(triton.cdiv(elements, 1024),)](
                partials, out, count, elements, BLOCK=1024, num_warps=4
            )
    return out


@triton.jit
def _sum_rows_kernel(
    partials, out, last, rows, columns, TAPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """out[c, j] = Σ_r partials[r, j, c] for j < TAPS, last[c] = Σ_r partials[r, TAPS, c]; in a fixed order, fp32."""
    j = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < columns
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for first in range(0, rows, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        slot = (row.to(tl.int64) * (TAPS + 1) + j)[:, None] * columns + c[None, :]
        total += tl.load(partials + slot, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
    to = last + c
    if j < TAPS:
        to = out + c * TAPS + j
    tl.store(to, tl.sum(total, axis=0), mask=inside)


def sum_rows(partials: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over the first dimension of (rows, taps + 1, columns), fp32: (columns, taps) and the last tap's (columns,).

    One launch, where torch.sum and a transposed copy are two: that is what counts for small tensors.
    """
    rows, taps, columns = partials.shape[0], partials.shape[1] - 1, partials.shape[2]
    out = torch.empty((columns, taps), dtype=torch.float32, device=partials.device)
    last = torch.empty(columns, dtype=torch.float32, device=partials.device)
    block_r = min(512, triton.next_power_of_2(rows))
    with on_device(partials):
        _sum_rows_kernel[(triton.cdiv(columns, 8), taps + 1)](
            partials, out, last, rows, columns, TAPS=taps, BLOCK_R=block_r, BLOCK_C=8, num_warps=max(1, block_r // 64)
        )
    return out, last


def on_device(tensor: torch.Tensor) -> torch.cuda.device_of:
    """Make the tensor's GPU the current one for a launch; does nothing for CPU tensors (the interpreter)."""
    return torch.cuda.device_of(tensor)


def dtype_refusal(x: torch.Tensor) -> str | None:
    """None if the kernels take data of this dtype, else why not; they compute in fp32."""
    if x.dtype in (torch.bfloat16, torch.float16, torch.float32):
        return None
    return f"the Triton kernels take bfloat16, float16 and float32, not {x.dtype}"


def optional(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    """A pointer argument for a tensor that may be absent; the kernel's flag keeps it from being read."""
    return stand_in if tensor is None else tensor
