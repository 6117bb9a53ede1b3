"""Gate and RMSNorm in one pass, as one differentiable PyTorch operator.

r = x · silu(z),   y = r · rsqrt(mean(r²) + eps) · weight
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, unit_stride
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives
from dnamamba_kernels.gated_norm.protocol import GatedNormBackend


def gated_rms_norm(x: Tensor, z: Tensor, weight: Tensor, *, eps: float = 1e-5, backend: str = "auto") -> Tensor:
    """Gate x by z and normalise; differentiable in every tensor. Arithmetic is fp32.

    Args:
        x: (…, dim), bf16, fp16 or fp32 (fp64 on the reference), unit stride in dim.
        z: x's shape and dtype, unit stride in dim, any stride of rows that (…) can be merged to.
        weight: (dim,).
        eps: added to the mean square.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        y, a fresh tensor of x's shape and dtype.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or the backend cannot run this.
    """
    if x.dim() < 1 or x.numel() == 0:
        raise ValueError(f"x must be (…, dim), not empty, got {tuple(x.shape)}")
    shape = tuple(x.shape)
    check_rows("x", x, shape, "(…, dim)", x)
    check_rows("z", z, shape, "x's shape", x)
    if z.dtype != x.dtype:
        raise ValueError(f"z must have x's dtype {x.dtype}, got {z.dtype}")
    check_rows("weight", weight, shape[-1:], "(dim,)", x)
    rows = x.reshape(-1, shape[-1]), z.reshape(-1, shape[-1])
    y, _ = _gated_norm(*rows, weight, eps, backends.requested("gated_norm", backend))
    return y.view(shape)


def _forward(x: Tensor, z: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    """(y, rstd) of rows (rows, dim)."""
    chosen: GatedNormBackend = backends.choose("gated_norm", backend, x)
    return chosen.forward(unit_stride(x), unit_stride(z), weight, eps)


gated_norm_op = torch.library.custom_op("dnamamba_kernels::gated_rms_norm", _forward, mutates_args=())


@gated_norm_op.register_fake
def _(x, z, weight, eps, backend):
    rstd = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=rstd)


def _gradients(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dz, dweight)"""
    chosen: GatedNormBackend = backends.choose("gated_norm", backend, x)
    dx, dz, dweight = chosen.backward(unit_stride(dy), unit_stride(x), unit_stride(z), weight, rstd)
    return dx, dz, dweight.to(weight.dtype)


gated_norm_backward_op = torch.library.custom_op(
    "dnamamba_kernels::gated_rms_norm_backward", _gradients, mutates_args=()
)


@gated_norm_backward_op.register_fake
def _(dy, x, z, weight, rstd, backend):
    return x.new_empty(x.shape), z.new_empty(z.shape), weight.new_empty(weight.shape)


_run_backward = direct(gated_norm_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    x, z, weight, _, backend = inputs
    ctx.save_for_backward(x, z, weight, output[1])
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, _):
    if dy is None:
        return None, None, None, None, None
    gradients = _run_backward(dy, *ctx.saved_tensors, ctx.backend)
    wanted = (each if need else None for each, need in zip(gradients, ctx.needs_input_grad, strict=False))
    return *wanted, None, None


gated_norm_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(gated_norm_backward_op)
for _op in (gated_norm_op, gated_norm_backward_op):
    loop_over_batches(_op)


_gated_norm = differentiable(direct(gated_norm_op, _forward), _forward, _setup_context, _backward)
