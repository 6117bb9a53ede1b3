"""The selective scan (S6) as one differentiable PyTorch operator.

    Δ = softplus(dt + dt_bias),   h_t = exp(ΔA) h_{t−1} + B̄ x_t,   y_t = (Σ_n C_t h_t + D x_t) · silu(z_t)

with B̄ = ΔB ("euler", Mamba's released code) or B̄ = (ΔA)⁻¹(exp(ΔA) − I)ΔB ("zoh", the paper's equation 4).
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, unit_stride
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives, wants_gradient
from dnamamba_kernels.scan.arguments import (
    ScanArguments,
    ScanOptions,
    canonical_map,
    canonical_vector,
    check_decay,
    check_state,
    scan_arguments,
    scan_options,
)
from dnamamba_kernels.scan.protocol import ScanBackend, ScanStep
from dnamamba_kernels.scan.reference import BACKEND as REFERENCE


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    discretization: str = "euler",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a batch of sequences; differentiable in every tensor, the initial and the final state included.

    Args:
        x: input (batch, length, channels), bf16, fp16 or fp32 (fp64 on the reference); unit channel stride, any row
            stride.
        dt: step before bias and softplus, x's shape.
        A: decay (channels, state), real, negative, fp32; state 1…256.
        B: input map (batch, length, state), (batch, length, groups, state) or constant (channels, state); channel d
            belongs to group d // (channels // groups).
        C: output map, shapes as B's.
        D: skip (channels,).
        z: gate, x's shape.
        dt_bias: (channels,), added to dt.
        dt_softplus: whether Δ = softplus(dt + dt_bias), else Δ = dt + dt_bias.
        initial_state: (batch, channels, state) fp32; zeros if None. Belongs to the first sequence id.
        sequence_ids: (batch, length) int32; the state restarts from zero where the id changes (packing).
        reverse: scan from the last position to the first.
        discretization: "euler" or "zoh".
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        y (batch, length, channels) in x's dtype and final_state (batch, channels, state) fp32, both fresh tensors.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, A is complex, or the backend cannot run this.
    """
    a = scan_arguments(x, dt, A, B, C, D, z, dt_bias, initial_state, sequence_ids, dt_softplus, reverse, discretization)
    y, final_state, _ = _scan(*a[:-1], *a.options, wants_gradient(*a[:-2]), backends.requested("scan", backend))
    return y, final_state


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    discretization: str = "euler",
) -> tuple[Tensor, Tensor]:
    """One position of `selective_scan`, for generation: x, dt, z (batch, channels), state (batch, channels, state)
    fp32.

    B and C are (batch, state), (batch, groups, state) or constant (channels, state); where (batch, state) and
    (channels, state) are the same shape the former is meant. Differentiable. One Triton kernel on CUDA tensors where no
    gradient is wanted, else plain PyTorch.

    Returns:
        y (batch, channels) in x's dtype and the new state (batch, channels, state) fp32; `state` is left as it was.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or A is complex.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be (batch, channels), got {tuple(x.shape)}")
    batch, channels = x.shape
    options = scan_options(dt_softplus, False, discretization)
    check_rows("x", x, (batch, channels), "(batch, channels)", x)
    check_rows("dt", dt, (batch, channels), "x's shape (batch, channels)", x)
    check_decay(A, channels, x)
    check_state("state", state, batch, A, x)
    if z is not None:
        check_rows("z", z, (batch, channels), "x's shape (batch, channels)", x)
    B = canonical_map("B", B, batch, None, channels, x, A.shape[1])
    C = canonical_map("C", C, batch, None, channels, x, A.shape[1])
    D, dt_bias = canonical_vector("D", D, channels, x), canonical_vector("dt_bias", dt_bias, channels, x)
    backend: ScanStep = backends.choose_step("scan", REFERENCE, x, dt, A, B, C, D, z, dt_bias, state)
    return backend.step(ScanArguments(x, dt, A, B, C, D, z, dt_bias, state, None, options))


def plan(x: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str) -> tuple[ScanBackend, int]:
    """The backend and its positions per chunk, at most the length.

    From shapes, dtypes and devices only: the same for forward and backward.
    """
    chosen: ScanBackend = backends.choose("scan", backend, x, A, B, C)
    batch, length, channels = x.shape
    groups = 0 if 2 in (B.dim(), C.dim()) else max(B.shape[2], C.shape[2])
    return chosen, min(length, chosen.chunk_length(batch, length, channels, A.shape[1], groups))


def _arguments(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    *options: bool,
) -> ScanArguments:
    """The operator's arguments as one value, with the strides that backends want."""
    x, dt, A, B, C = unit_stride(x), unit_stride(dt), A.contiguous(), unit_stride(B), unit_stride(C)
    z = None if z is None else unit_stride(z)
    return ScanArguments(x, dt, A, B, C, D, z, dt_bias, initial_state, sequence_ids, ScanOptions(*options))


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    zoh: bool,
    keep_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, final_state, chunk_states); the last, the states entering the chunks, is what the backward pass starts from,
    empty unless `keep_states`."""
    chosen, chunk = plan(x, A, B, C, backend)
    a = _arguments(x, dt, A, B, C, D, z, dt_bias, initial_state, sequence_ids, dt_softplus, reverse, zoh)
    y, final_state, chunk_states = chosen.forward(a, chunk, keep_states)
    if not keep_states or chunk_states is None:
        chunk_states = A.new_empty(0)
    return y.contiguous(), final_state.contiguous(), chunk_states


scan_op = torch.library.custom_op("dnamamba_kernels::selective_scan", _forward, mutates_args=())


@scan_op.register_fake
def _(x, dt, A, B, C, D, z, dt_bias, initial_state, sequence_ids, dt_softplus, reverse, zoh, keep_states, backend):
    batch, length, _ = x.shape
    _, chunk = plan(x, A, B, C, backend)
    states = A.new_empty(batch, -(-length // chunk), *A.shape) if keep_states else A.new_empty(0)
    return x.new_empty(x.shape), A.new_empty(batch, *A.shape), states


def _gradients(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    chunk_states: Tensor,
    dt_softplus: bool,
    reverse: bool,
    zoh: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_state); empty where the argument is absent."""
    chosen, chunk = plan(x, A, B, C, backend)
    a = _arguments(x, dt, A, B, C, D, z, dt_bias, None, sequence_ids, dt_softplus, reverse, zoh)
    dfinal_state = None if dfinal_state is None else dfinal_state.contiguous()
    gradients, dinitial_state = chosen.backward(a, unit_stride(dy), dfinal_state, chunk_states, chunk)
    dx, ddt, dA, dB, dC, dD, dz, ddt_bias = (A.new_empty(0) if g is None else g.contiguous() for g in gradients)
    return dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_state


scan_backward_op = torch.library.custom_op("dnamamba_kernels::selective_scan_backward", _gradients, mutates_args=())


@scan_backward_op.register_fake
def _(dy, dfinal_state, x, dt, A, B, C, D, z, dt_bias, sequence_ids, chunk_states, dt_softplus, reverse, zoh, backend):
    dD, dz, ddt_bias = (A.new_empty(0) if g is None else g.new_empty(g.shape) for g in (D, z, dt_bias))
    gradients = (g.new_empty(g.shape) for g in (x, dt, A, B, C))
    return *gradients, dD, dz, ddt_bias, A.new_empty(x.shape[0], *A.shape)


_run_backward = direct(scan_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, dt_softplus, reverse, zoh, keep_states, backend = inputs
    if not keep_states:
        raise ValueError("the scan's gradient needs the states of its chunks: pass keep_states=True to the operator")
    x, dt, A, B, C, D, z, dt_bias, _, sequence_ids = tensors
    ctx.save_for_backward(x, dt, A, B, C, D, z, dt_bias, sequence_ids, output[2])
    ctx.flags = dt_softplus, reverse, zoh, backend
    ctx.given = [tensor is not None for tensor in tensors[:9]]
    ctx.set_materialize_grads(False)  # zeros as large as the chunk states would be made for each call


def _backward(ctx, dy, dfinal_state, _):
    x, *saved = ctx.saved_tensors
    dy = x.new_zeros(x.shape) if dy is None else dy
    gradients = _run_backward(dy, dfinal_state, x, *saved, *ctx.flags)
    wanted = (
        gradient if given and need else None
        for gradient, given, need in zip(gradients, ctx.given, ctx.needs_input_grad, strict=False)
    )
    return *wanted, None, None, None, None, None, None


scan_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(scan_backward_op)
for _op in (scan_op, scan_backward_op):
    loop_over_batches(_op)


_scan = differentiable(direct(scan_op, _forward), _forward, _setup_context, _backward)
