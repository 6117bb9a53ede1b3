"""The scan of Mamba-2 (state space duality, arXiv 2405.21060) as one differentiable PyTorch operator.

h_t = exp(log_decay_t) h_{t−1} + weight_t x_t B_tᵀ,   y_t = h_t C_t + D x_t        for each head
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, check_sequence_ids, compute_dtype, unit_stride
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives
from dnamamba_kernels.ssd.protocol import SSDArguments, SSDBackend


def ssd_scan(
    x: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_state: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a batch of sequences; differentiable in every tensor, the initial and the final state included.

    Matrix products take x's dtype and are summed in fp32; decays and states between chunks are fp32. A NaN or infinity
    may reach other sequences packed into the same window, as products with zeros keep it.

    Args:
        x: input (batch, length, heads, head), bf16, fp16 or fp32 (fp64 on the reference); unit stride in a head.
        log_decay: (batch, length, heads) fp32, any strides, at most 0 where the state is to stay
            bounded; Mamba-2's ΔA.
        weight: (batch, length, heads) fp32, any strides, of the input; Mamba-2's Δ.
        B: input map (batch, length, groups, state) in x's dtype; head h belongs to group h // (heads // groups).
        C: output map, as B.
        D: skip (heads,).
        initial_state: (batch, heads, head, state) fp32; zeros if None. Belongs to the first sequence id.
        sequence_ids: (batch, length) int32; the state restarts from zero where the id changes (packing).
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        y (batch, length, heads, head) in x's dtype and final_state (batch, heads, head, state) fp32, both fresh
        tensors.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or the backend cannot run this.
    """
    a = _checked(x, log_decay, weight, B, C, D, initial_state, sequence_ids)
    return _ssd(*a, backends.requested("ssd", backend))


def _checked(
    x: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
) -> SSDArguments:
    """Check everything; ValueError says which argument is wrong, what was expected and what to do."""
    if x.dim() != 4:
        raise ValueError(f"x must be (batch, length, heads, head), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")
    batch, length, heads, head = x.shape
    check_rows("x", x, tuple(x.shape), "(batch, length, heads, head)", x)
    for name, values in (("log_decay", log_decay), ("weight", weight)):
        _check_parameter(name, values, (batch, length, heads), "(batch, length, heads)", x)
    if B.dim() != 4 or B.shape[2] < 1 or heads % B.shape[2]:
        expected = f"(batch, length, groups, state) with groups that divide {heads} heads"
        raise ValueError(f"B must be {expected}, got {tuple(B.shape)}")
    shape = (batch, length, *B.shape[2:])
    for name, values in (("B", B), ("C", C)):
        check_rows(name, values, shape, "(batch, length, groups, state)", x)
        if values.dtype != x.dtype:
            raise ValueError(f"{name} must have x's dtype {x.dtype}, got {values.dtype}")
    if D is not None:
        check_rows("D", D, (heads,), "(heads,)", x)
        D = D.to(compute_dtype(x))
    if initial_state is not None:
        shape = batch, heads, head, B.shape[3]
        _check_parameter("initial_state", initial_state, shape, "(batch, heads, head, state)", x)
    check_sequence_ids(sequence_ids, x)
    return SSDArguments(x, log_decay, weight, B, C, D, initial_state, sequence_ids)


def _check_parameter(name: str, values: Tensor, shape: tuple[int, ...], meaning: str, x: Tensor) -> None:
    """Of any strides."""
    if tuple(values.shape) != shape:
        raise ValueError(f"{name} must be {meaning} = {shape}, got {tuple(values.shape)}")
    if values.dtype != compute_dtype(x):
        raise ValueError(f"{name} must be {compute_dtype(x)}, got {values.dtype}: call .to({compute_dtype(x)})")
    if values.device != x.device:
        raise ValueError(f"{name} is on {values.device}, x on {x.device}: move one of them")


def _arguments(
    x: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
) -> SSDArguments:
    """The operator's arguments as one value, with the strides that backends want."""
    x, B, C = unit_stride(x), unit_stride(B), unit_stride(C)
    initial_state = None if initial_state is None else initial_state.contiguous()
    return SSDArguments(x, log_decay.contiguous(), weight.contiguous(), B, C, D, initial_state, sequence_ids)


def _forward(
    x: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(y, final_state)"""
    chosen: SSDBackend = backends.choose("ssd", backend, x, B)
    y, final_state = chosen.forward(_arguments(x, log_decay, weight, B, C, D, initial_state, sequence_ids))
    return y.contiguous(), final_state.contiguous()


ssd_op = torch.library.custom_op("dnamamba_kernels::ssd_scan", _forward, mutates_args=())


@ssd_op.register_fake
def _(x, log_decay, weight, B, C, D, initial_state, sequence_ids, backend):
    batch, _, heads, head = x.shape
    return x.new_empty(x.shape), log_decay.new_empty(batch, heads, head, B.shape[3])


def _gradients(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    log_decay: Tensor,
    weight: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dlog_decay, dweight, dB, dC, dD, dinitial_state); dD is empty where there is no D."""
    chosen: SSDBackend = backends.choose("ssd", backend, x, B)
    a = _arguments(x, log_decay, weight, B, C, D, initial_state, sequence_ids)
    dfinal_state = None if dfinal_state is None else dfinal_state.contiguous()
    gradients = chosen.backward(a, unit_stride(dy), dfinal_state)
    dx, dlog, dweight, dB, dC, dD, dinitial = (
        log_decay.new_empty(0) if each is None else each.contiguous() for each in gradients
    )
    return dx, dlog, dweight, dB, dC, dD, dinitial


ssd_backward_op = torch.library.custom_op("dnamamba_kernels::ssd_scan_backward", _gradients, mutates_args=())


@ssd_backward_op.register_fake
def _(dy, dfinal_state, x, log_decay, weight, B, C, D, initial_state, sequence_ids, backend):
    batch, _, heads, head = x.shape
    dD = log_decay.new_empty(0) if D is None else D.new_empty(D.shape)
    gradients = (each.new_empty(each.shape) for each in (x, log_decay, weight, B, C))
    return *gradients, dD, log_decay.new_empty(batch, heads, head, B.shape[3])


_run_backward = direct(ssd_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.backend = backend
    ctx.given = [tensor is not None for tensor in tensors[:7]]
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal_state):
    x, *saved = ctx.saved_tensors
    dy = x.new_zeros(x.shape) if dy is None else dy
    gradients = _run_backward(dy, dfinal_state, x, *saved, ctx.backend)
    wanted = (
        gradient if given and need else None
        for gradient, given, need in zip(gradients, ctx.given, ctx.needs_input_grad, strict=False)
    )
    return *wanted, None, None


ssd_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(ssd_backward_op)
for _op in (ssd_op, ssd_backward_op):
    loop_over_batches(_op)


_ssd = differentiable(direct(ssd_op, _forward), _forward, _setup_context, _backward)
