"""One position of the selective scan, for generation: one launch.

In plain PyTorch a step is some thirty small operations, whose launches and passes over the state take ten times as long
as the arithmetic. Everything is computed in fp32.
"""

# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dnamamba_kernels.scan.arguments import ScanArguments
from dnamamba_kernels.scan.triton.forward import SERIES_BELOW
from dnamamba_kernels.triton_common import LOG2E, on_device, optional, sigmoid, softplus

_TILE = 1024
"""Numbers of state in a program."""


@triton.jit
def _scan_step_kernel(
    x, dt, A, B, C, D, z, dt_bias, state, y, new_state,
    channels, states, x_batch, dt_batch, z_batch, A_channel, B_batch, B_group, B_channels, C_batch, C_group, C_channels,
    state_batch, state_channel,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, ZOH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y and the new state of BLOCK_C channels of a sequence. Channel c reads row c // B_channels of B."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    inside = c < channels
    tile = inside[:, None] & (n < states)[None, :]
    delta = tl.load(dt + b * dt_batch + c, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        delta += tl.load(dt_bias + c, mask=inside, other=0.0).to(tl.float32)
    if SOFTPLUS:
        delta = softplus(delta)
    u = tl.load(x + b * x_batch + c, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(A + (c * A_channel)[:, None] + n[None, :], mask=tile, other=0.0)
    B_rows = B + b * B_batch + (c // B_channels * B_group)[:, None] + n[None, :]
    C_rows = C + b * C_batch + (c // C_channels * C_group)[:, None] + n[None, :]
    B_tile = tl.load(B_rows, mask=tile, other=0.0).to(tl.float32)
    C_tile = tl.load(C_rows, mask=tile, other=0.0).to(tl.float32)
    h = tl.load(state + b * state_batch + (c * state_channel)[:, None] + n[None, :], mask=tile, other=0.0)
    product = delta[:, None] * a
    decay = tl.exp2(product * LOG2E)
    if ZOH:
        # Δ expm1(ΔA) / ΔA; of small products the series, as a difference would leave few digits.
        near = tl.where(tl.abs(product) < SERIES_BELOW, product, 0.0)
        series = 1.0 + near * (1.0 / 2 + near * (1.0 / 6 + near * (1.0 / 24 + near * (1.0 / 120 + near * (
            1.0 / 720 + near * (1.0 / 5040))))))  # fmt: skip
        far = (decay - 1.0) / tl.where(product == 0.0, 1.0, product)
        weight = delta[:, None] * tl.where(tl.abs(product) < SERIES_BELOW, series, far)
    else:
        weight = delta[:, None]
    h = decay * h + weight * B_tile * u[:, None]
    tl.store(new_state + (b * channels + c)[:, None] * states + n[None, :], h, mask=tile)
    total = tl.sum(tl.where(tile, h * C_tile, 0.0), axis=1)
    if HAS_D:
        total += tl.load(D + c, mask=inside, other=0.0).to(tl.float32) * u
    if HAS_Z:
        gate = tl.load(z + b * z_batch + c, mask=inside, other=0.0).to(tl.float32)
        total = total * gate * sigmoid(gate)
    tl.store(y + b * channels + c, total.to(y.dtype.element_ty), mask=inside)


def scan_step(a: ScanArguments) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ScanStep`."""
    x, dt, A, B, C, D, z, dt_bias, state, _, options = a
    assert state is not None
    (batch, channels), states = x.shape, A.shape[1]
    y, new_state = x.new_empty(batch, channels), state.new_empty(batch, channels, states)
    block_n = triton.next_power_of_2(states)
    block_c = max(_TILE // block_n, 1)

    def rows(m: torch.Tensor) -> tuple[int, int, int]:
        """Strides of the batch and of the rows, and the channels that share a row."""
        return (0, m.stride(0), 1) if m.dim() == 2 else (m.stride(0), m.stride(1), channels // m.shape[1])

    with on_device(x):
        _scan_step_kernel[(batch, triton.cdiv(channels, block_c))](
            x, dt, A, B, C, optional(D, A), optional(z, x), optional(dt_bias, A), state, y, new_state,
            channels, states, x.stride(0), dt.stride(0), 0 if z is None else z.stride(0), A.stride(0),
            *rows(B), *rows(C), state.stride(0), state.stride(1),
            HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=dt_bias is not None, SOFTPLUS=options.dt_softplus,
            ZOH=options.zoh, BLOCK_C=block_c, BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    return y, new_state
