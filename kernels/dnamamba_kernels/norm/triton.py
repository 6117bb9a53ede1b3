"""Residual addition and RMSNorm in one pass over memory, forward and backward, statistics in fp32.

r = x + residual,   y = r · rstd · weight,   rstd = rsqrt(mean(r²) + eps)
dr = rstd · (weight · dy − r̂ · mean(weight · dy · r̂)) + dnew_residual,   dweight = Σ_rows dy · r̂,   r̂ = r · rstd
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dnamamba_kernels.checks import unit_stride
from dnamamba_kernels.norm.protocol import NormBackend
from dnamamba_kernels.triton_common import dtype_refusal, on_device, optional, sum_rows


class NormTile(NamedTuple):
    """Rows of a tile, its width padded to a power of two, and the program's warps."""

    rows: int
    width: int
    num_warps: int


def forward_tile(width: int) -> NormTile:
    """32 elements a thread, one warp for rows up to 1 024 wide."""
    block = triton.next_power_of_2(width)
    return NormTile(max(1, 1024 // block), block, max(1, min(16, block // 1024)))


def backward_tile(width: int) -> NormTile:
    """16 elements a thread and two warps, 32 and four for wide rows: at 2¹⁷ × 256 (bf16) 0.117 ms, with four 0.145."""
    block = triton.next_power_of_2(width)
    if block < 1024:
        return NormTile(1024 // block, block, 2)
    return NormTile(max(1, 4096 // block), block, max(4, min(16, block // 1024)))


BACKWARD_PROGRAMS = 4224
"""At most so many programs in the norm's backward pass, each over a run of rows: 32 a multiprocessor of an H100."""
BACKWARD_TILES = 4
"""At least so many tiles of rows a program, if there are, as each leaves a row of sums."""


def fuses(width: int) -> bool:
    """Whether products and sums may be fused: not in rows so narrow that a lane has one product or two of a row.

    There a product would be fused with the first exchange between lanes, and the lanes of a row would end with sums
    that differ in the last bit (Triton's issue 7264).
    """
    return width >= 64


@triton.jit
def _forward_kernel(
    x, weight, residual, y, new_residual, rstd_out,
    rows, width, x_row, residual_row, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of y, new_residual and rstd."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_W)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    r = tl.load(x + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        r += tl.load(residual + row[:, None] * residual_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    stored = r.to(new_residual.dtype.element_ty)
    tl.store(new_residual + row[:, None] * width + column[None, :], stored, mask=inside)
    r = stored.to(tl.float32)  # the value that the next layer sees is the one normalised
    rstd = tl.rsqrt(tl.sum(r * r, axis=1) / width + eps)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    scaled = r * rstd[:, None] * w[None, :]
    tl.store(y + row[:, None] * width + column[None, :], scaled.to(y.dtype.element_ty), mask=inside)
    tl.store(rstd_out + row, rstd, mask=row < rows)


@triton.jit
def _normalised_kernel(
    new_residual, weight, rstd_in, y,
    rows, width, residual_row,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of y, with the forward pass's own products."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_W)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    r = tl.load(new_residual + row[:, None] * residual_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_in + row, mask=row < rows, other=0.0)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    scaled = r * rstd[:, None] * w[None, :]
    tl.store(y + row[:, None] * width + column[None, :], scaled.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dy, dnew_residual, new_residual, weight, rstd_in, dx, dresidual, partials,
    rows, width, dy_row, dnew_row, tiles,
    HAS_DNEW: tl.constexpr, TWICE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dx (TWICE: and dresidual, the same in another dtype) for `tiles` tiles of BLOCK_R rows each, one after another,
    and this program's share of dweight."""
    column = tl.arange(0, BLOCK_W)
    in_width = column < width
    w = tl.load(weight + column, mask=in_width, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_R, BLOCK_W], tl.float32)
    first = tl.program_id(0).to(tl.int64) * tiles * BLOCK_R
    for tile in range(0, tiles):
        row = first + tile * BLOCK_R + tl.arange(0, BLOCK_R)
        in_rows = row < rows
        inside = in_rows[:, None] & in_width[None, :]
        g = tl.load(dy + row[:, None] * dy_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        r = tl.load(new_residual + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_in + row, mask=in_rows, other=0.0)
        if HAS_DNEW:  # with the other loads, not after the sum over the row
            passed = tl.load(dnew_residual + row[:, None] * dnew_row + column[None, :], mask=inside, other=0.0)
        normal = r * rstd[:, None]
        dweight += g * normal
        g *= w[None, :]
        mean = tl.sum(g * normal, axis=1) / width
        total = (g - normal * mean[:, None]) * rstd[:, None]
        if HAS_DNEW:
            total += passed.to(tl.float32)
        slot = row[:, None] * width + column[None, :]
        tl.store(dx + slot, total.to(dx.dtype.element_ty), mask=inside)
        if TWICE:
            tl.store(dresidual + slot, total.to(dresidual.dtype.element_ty), mask=inside)
    tl.store(partials + tl.program_id(0) * width + column, tl.sum(dweight, axis=0), mask=in_width)


class TritonNorm(NormBackend):
    """bfloat16, float16 and float32 on a GPU."""

    def supports(self, x: torch.Tensor) -> str | None:
        return dtype_refusal(x)

    def forward(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        residual: torch.Tensor | None,
        eps: float,
        residual_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, width = x.shape
        x = unit_stride(x)
        residual = None if residual is None else unit_stride(residual)
        y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
        new_residual = torch.empty((rows, width), dtype=residual_dtype, device=x.device)
        rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
        block_r, block_w, warps = forward_tile(width)
        with on_device(x):
            _forward_kernel[(-(-rows // block_r),)](
                x, weight.contiguous(), optional(residual, x), y, new_residual, rstd,
                rows, width, x.stride(0), 0 if residual is None else residual.stride(0), eps,
                HAS_RESIDUAL=residual is not None, BLOCK_R=block_r, BLOCK_W=block_w, num_warps=warps,
                enable_fp_fusion=fuses(width),
            )  # fmt: skip
        return y, new_residual, rstd

    def normalised(
        self, new_residual: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        rows, width = new_residual.shape
        new_residual = unit_stride(new_residual)
        y = torch.empty((rows, width), dtype=dtype, device=new_residual.device)
        block_r, block_w, warps = forward_tile(width)
        with on_device(new_residual):
            _normalised_kernel[(-(-rows // block_r),)](
                new_residual, weight.contiguous(), rstd, y, rows, width, new_residual.stride(0),
                BLOCK_R=block_r, BLOCK_W=block_w, num_warps=warps, enable_fp_fusion=fuses(width),
            )  # fmt: skip
        return y

    def backward(
        self,
        dy: torch.Tensor,
        dnew_residual: torch.Tensor | None,
        new_residual: torch.Tensor,
        weight: torch.Tensor,
        rstd: torch.Tensor,
        dtype: torch.dtype,
        residual_dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """dweight is one sum a program, over a number of programs that depends on the shape alone, added in a fixed
        order."""
        rows, width = new_residual.shape
        dy, new_residual = unit_stride(dy), new_residual.contiguous()
        passed = dy if dnew_residual is None else unit_stride(dnew_residual)
        dx = torch.empty((rows, width), dtype=dtype, device=dy.device)
        dresidual = None if residual_dtype is None else torch.empty_like(dx, dtype=residual_dtype)
        block_r, block_w, warps = backward_tile(width)
        row_tiles = -(-rows // block_r)
        tiles = max(BACKWARD_TILES, -(-row_tiles // BACKWARD_PROGRAMS))
        programs = max(1, -(-row_tiles // tiles))
        partials = torch.empty((programs, 1, width), dtype=torch.float32, device=dy.device)
        with on_device(dy):
            _backward_kernel[(programs,)](
                dy, passed, new_residual, weight.contiguous(), rstd, dx, optional(dresidual, dx), partials,
                rows, width, dy.stride(0), passed.stride(0), tiles,
                HAS_DNEW=dnew_residual is not None, TWICE=dresidual is not None,
                BLOCK_R=block_r, BLOCK_W=block_w, num_warps=warps, enable_fp_fusion=fuses(width),
            )  # fmt: skip
        return dx, dresidual, sum_rows(partials)[1]


BACKEND = TritonNorm()
