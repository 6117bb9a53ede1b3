"""Causal depthwise convolution along the length, with its last inputs as a state, as one differentiable PyTorch
operator.

y_t = activation(bias + Σ_{j < width} weight[:, width−1−j] · x_{t−j})
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, check_sequence_ids, unit_stride
from dnamamba_kernels.conv.protocol import ConvArguments, ConvBackend, ConvStep
from dnamamba_kernels.conv.reference import BACKEND as REFERENCE
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives

MAX_WIDTH = 8


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    initial_state: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve a batch of sequences; differentiable in every tensor, the initial and the final state included.

    Args:
        x: (batch, length, channels), bf16, fp16 or fp32 (fp64 on the reference); unit channel stride, any row stride.
        weight: (channels, width), width 2…8; the last tap meets the current position.
        bias: (channels,).
        activation: "silu" or None.
        initial_state: (batch, width − 1, channels) in x's dtype: the inputs before the first position in scan
            direction, the earliest in time first (so in reverse row 0 lies farthest to the right); zeros if None.
            Belongs to the first sequence id.
        sequence_ids: (batch, length) int32; taps do not reach over a change of id.
        reverse: from the last position to the first (anticausal).
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        y (batch, length, channels) and final_state (batch, width − 1, channels), the last inputs of the last sequence
        id, both in x's dtype and fresh tensors.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or the backend cannot run this.
    """
    if x.dim() != 3:
        raise ValueError(f"x must be (batch, length, channels), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")
    batch, _, channels = x.shape
    check_rows("x", x, tuple(x.shape), "(batch, length, channels)", x)
    width = _check_weights(x, weight, bias, activation)
    _check_state("initial_state", initial_state, (batch, width - 1, channels), x)
    check_sequence_ids(sequence_ids, x)
    backend = backends.requested("conv", backend)
    return _conv(x, weight, bias, initial_state, sequence_ids, activation or "none", reverse, backend)


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, activation: str | None = "silu"
) -> tuple[Tensor, Tensor]:
    """One position of `causal_conv1d`, for generation: x (batch, channels), state (batch, width − 1, channels) in x's
    dtype.

    Differentiable. One Triton kernel on CUDA tensors where no gradient is wanted, else plain PyTorch.

    Returns:
        y (batch, channels) in x's dtype and the new state; `state` is left as it was.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be (batch, channels), got {tuple(x.shape)}")
    check_rows("x", x, tuple(x.shape), "(batch, channels)", x)
    width = _check_weights(x, weight, bias, activation)
    _check_state("state", state, (x.shape[0], width - 1, x.shape[1]), x)
    backend: ConvStep = backends.choose_step("conv", REFERENCE, x, weight, bias, state)
    return backend.step(ConvArguments(x, weight, bias, state, None, activation, False))


def _check_weights(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> int:
    channels = x.shape[-1]
    shape = tuple(weight.shape)
    if len(shape) != 2 or shape[0] != channels or not 2 <= shape[1] <= MAX_WIDTH:
        raise ValueError(f"weight must be (channels={channels}, width 2…{MAX_WIDTH}), got {shape}")
    check_rows("weight", weight, shape, "(channels, width)", x)
    if bias is not None:
        check_rows("bias", bias, (channels,), "(channels,)", x)
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
    return shape[1]


def _check_state(name: str, state: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if state is not None:
        check_rows(name, state, shape, "(batch, width − 1, channels)", x)
        if state.dtype != x.dtype:
            raise ValueError(f"{name} must have x's dtype {x.dtype}, got {state.dtype}")


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    activation: str,
    reverse: bool,
) -> ConvArguments:
    """The operator's arguments as one value, with the strides that backends want."""
    initial_state = None if initial_state is None else unit_stride(initial_state)
    kind = "silu" if activation == "silu" else None
    return ConvArguments(unit_stride(x), weight, bias, initial_state, sequence_ids, kind, reverse)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    activation: str,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(y, final_state); activation is "silu" or "none"."""
    chosen: ConvBackend = backends.choose("conv", backend, x)
    y, final_state = chosen.forward(_arguments(x, weight, bias, initial_state, sequence_ids, activation, reverse))
    return y.contiguous(), final_state.contiguous()


conv_op = torch.library.custom_op("dnamamba_kernels::causal_conv1d", _forward, mutates_args=())


@conv_op.register_fake
def _(x, weight, bias, initial_state, sequence_ids, activation, reverse, backend):
    return x.new_empty(x.shape), x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2])


def _gradients(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_ids: Tensor | None,
    activation: str,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dinitial_state); dbias is empty where there is no bias."""
    chosen: ConvBackend = backends.choose("conv", backend, x)
    a = _arguments(x, weight, bias, initial_state, sequence_ids, activation, reverse)
    dfinal_state = None if dfinal_state is None else unit_stride(dfinal_state)
    dx, dweight, dbias, dinitial = chosen.backward(a, unit_stride(dy), dfinal_state)
    dbias = weight.new_empty(0) if bias is None or dbias is None else dbias.to(bias.dtype)
    return dx.contiguous(), dweight.to(weight.dtype), dbias, dinitial.contiguous()


conv_backward_op = torch.library.custom_op("dnamamba_kernels::causal_conv1d_backward", _gradients, mutates_args=())


@conv_backward_op.register_fake
def _(dy, dfinal_state, x, weight, bias, initial_state, sequence_ids, activation, reverse, backend):
    dbias = weight.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    dinitial = x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, dinitial


_run_backward = direct(conv_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, activation, reverse, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.flags = activation, reverse, backend
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dfinal_state):
    x, *saved = ctx.saved_tensors
    dy = x.new_zeros(x.shape) if dy is None else dy
    gradients = _run_backward(dy, dfinal_state, x, *saved, *ctx.flags)
    wanted = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
    return *wanted, None, None, None, None


conv_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(conv_backward_op)
for _op in (conv_op, conv_backward_op):
    loop_over_batches(_op)


_conv = differentiable(direct(conv_op, _forward), _forward, _setup_context, _backward)
