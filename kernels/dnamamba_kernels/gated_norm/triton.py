"""Gate and RMSNorm in one pass over memory, forward and backward, in fp32.

r = x · silu(z),   y = r · rstd · weight,   rstd = rsqrt(mean(r²) + eps)
dr = rstd · (weight · dy − r̂ · mean(weight · dy · r̂)),   dx = dr · silu(z),   dz = dr · x · silu'(z),   r̂ = r · rstd
dweight = Σ_rows dy · r̂
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dnamamba_kernels.gated_norm.protocol import GatedNormBackend
from dnamamba_kernels.triton_common import dtype_refusal, on_device, sigmoid, sum_rows

PROGRAMS = 4224
"""At most so many programs in the backward pass, each over a run of rows: 32 a multiprocessor of an H100."""


@triton.jit
def _forward_kernel(
    x, z, weight, y, rstd_out, rows, width, x_row, z_row, eps, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """BLOCK_R rows of y and rstd."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_W)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    r = tl.load(x + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(z + row[:, None] * z_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
    r *= gate * sigmoid(gate)
    rstd = tl.rsqrt(tl.sum(r * r, axis=1) / width + eps)
    w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    scaled = r * rstd[:, None] * w[None, :]
    tl.store(y + row[:, None] * width + column[None, :], scaled.to(y.dtype.element_ty), mask=inside)
    tl.store(rstd_out + row, rstd, mask=row < rows)


@triton.jit
def _backward_kernel(
    dy, x, z, weight, rstd_in, dx, dz, partials, rows, width, dy_row, x_row, z_row, tiles,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dx and dz for `tiles` tiles of BLOCK_R rows, one after another, and this program's share of dweight."""
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
        value = tl.load(x + row[:, None] * x_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(z + row[:, None] * z_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_in + row, mask=in_rows, other=0.0)
        opened = sigmoid(gate)
        normal = value * gate * opened * rstd[:, None]
        dweight += g * normal
        g *= w[None, :]
        mean = tl.sum(g * normal, axis=1) / width
        dr = (g - normal * mean[:, None]) * rstd[:, None]
        slot = row[:, None] * width + column[None, :]
        tl.store(dx + slot, (dr * gate * opened).to(dx.dtype.element_ty), mask=inside)
        dgate = dr * value * opened * (1.0 + gate * (1.0 - opened))
        tl.store(dz + slot, dgate.to(dz.dtype.element_ty), mask=inside)
    tl.store(partials + tl.program_id(0) * width + column, tl.sum(dweight, axis=0), mask=in_width)


class TritonGatedNorm(GatedNormBackend):
    """bfloat16, float16 and float32 on a GPU."""

    def supports(self, x: torch.Tensor) -> str | None:
        return dtype_refusal(x)

    def forward(
        self, x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, width = x.shape
        y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
        rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
        with on_device(x):
            block = triton.next_power_of_2(width)
            block_r = max(1, 1024 // block)
            _forward_kernel[(-(-rows // block_r),)](
                x, z, weight.contiguous(), y, rstd, rows, width, x.stride(0), z.stride(0), eps,
                BLOCK_R=block_r, BLOCK_W=block, num_warps=max(1, min(16, block // 1024)), enable_fp_fusion=width >= 64,
            )  # fmt: skip
        return y, rstd

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, z: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """dweight is one sum a program, over a number of programs that depends on the shape alone, added in a fixed
        order."""
        rows, width = x.shape
        dx = torch.empty((rows, width), dtype=x.dtype, device=x.device)
        dz = torch.empty_like(dx)
        block = triton.next_power_of_2(width)
        block_r = max(1, 1024 // block)
        row_tiles = -(-rows // block_r)
        tiles = max(4, -(-row_tiles // PROGRAMS))
        programs = -(-row_tiles // tiles)
        partials = torch.empty((programs, 1, width), dtype=torch.float32, device=x.device)
        with on_device(x):
            # Narrow rows keep products unfused: see `fuses` of the plain norm.
            _backward_kernel[(programs,)](
                dy, x, z, weight.contiguous(), rstd, dx, dz, partials, rows, width, dy.stride(0), x.stride(0),
                z.stride(0), tiles,
                BLOCK_R=block_r, BLOCK_W=block, num_warps=max(2, min(16, block // 512)), enable_fp_fusion=width >= 64,
            )  # fmt: skip
        return dx, dz, sum_rows(partials)[1]


BACKEND = TritonGatedNorm()
