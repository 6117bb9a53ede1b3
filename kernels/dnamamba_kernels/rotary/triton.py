"""Rotary positions in one pass over memory, in fp32; forward and backward differ in the sign of the angle."""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dnamamba_kernels.rotary.protocol import RotaryBackend
from dnamamba_kernels.triton_common import dtype_refusal, on_device

ELEMENTS = 1024
"""Of a program, in each half of the heads"""


@triton.jit
def _rotate_kernel(
    query, key, value, cos, sin, query_out, key_out, value_out,
    rows, length, heads, half, query_batch, query_row, query_head, key_batch, key_row, key_head,
    value_batch, value_row, value_head, out_row, angle_batch, angle_row,
    BACK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """BLOCK heads of query (program 0 of the second axis), key (1) or value (2), which is copied."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, BLOCK_H)
    row = n // heads
    h = n % heads
    b = row // length
    t = row % length
    inside = (row < rows)[:, None] & (i < half)[None, :]
    out = row * out_row + h * (2 * half)
    if tl.program_id(1) == 0:
        source = query + b * query_batch + t * query_row + h * query_head
        target = query_out + out
    elif tl.program_id(1) == 1:
        source = key + b * key_batch + t * key_row + h * key_head
        target = key_out + out
    else:
        source = value + b * value_batch + t * value_row + h * value_head
        target = value_out + out
    source = source[:, None] + i[None, :]
    target = target[:, None] + i[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    rotates = inside & (tl.program_id(1) < 2)
    angle = (b * angle_batch + t * angle_row)[:, None] + i[None, :]
    c = tl.load(cos + angle, mask=rotates, other=1.0)
    s = tl.load(sin + angle, mask=rotates, other=0.0)
    if BACK:
        s = -s
    tl.store(target, (first * c - second * s).to(query_out.dtype.element_ty), mask=inside)
    tl.store(target + half, (first * s + second * c).to(query_out.dtype.element_ty), mask=inside)


class TritonRotary(RotaryBackend):
    """bfloat16, float16 and float32 on a GPU."""

    def supports(self, qkv: torch.Tensor) -> str | None:
        return dtype_refusal(qkv)

    def forward(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in qkv.unbind(2))
        _rotate(qkv.unbind(2), (query, key, value), cos, sin, back=False)
        return query, key, value

    def backward(
        self, dquery: torch.Tensor, dkey: torch.Tensor, dvalue: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        batch, length, heads, head = dquery.shape
        dqkv = torch.empty(batch, length, 3, heads, head, dtype=dquery.dtype, device=dquery.device)
        _rotate((dquery, dkey, dvalue), dqkv.unbind(2), cos, sin, back=True)
        return dqkv


BACKEND = TritonRotary()


def _rotate(
    sources: tuple[torch.Tensor, ...],
    targets: tuple[torch.Tensor, ...],
    cos: torch.Tensor,
    sin: torch.Tensor,
    back: bool,
) -> None:
    batch, length, heads, head = sources[0].shape
    half = head // 2
    block_h = triton.next_power_of_2(half)
    block = max(1, ELEMENTS // block_h)
    cos, sin = cos.contiguous(), sin.contiguous()
    strides = [stride for source in sources for stride in source.stride()[:3]]
    with on_device(cos):
        _rotate_kernel[(triton.cdiv(batch * length * heads, block), 3)](
            *sources, cos, sin, *targets,
            batch * length, length, heads, half, *strides, targets[0].stride(1),
            cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1),
            BACK=back, BLOCK=block, BLOCK_H=block_h, num_warps=4,
        )  # fmt: skip
