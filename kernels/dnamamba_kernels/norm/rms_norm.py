"""Residual addition and RMSNorm in one pass, as one differentiable PyTorch operator.

new_residual = x + residual,   y = new_residual · rsqrt(mean(new_residual²) + eps) · weight
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, unit_stride
from dnamamba_kernels.eager import differentiable, direct, loop_over_batches, refuse_second_derivatives
from dnamamba_kernels.norm.protocol import NormBackend


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    residual_in_fp32: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise; differentiable in every tensor. Statistics are fp32.

    Args:
        x: (…, dim), bf16, fp16 or fp32 (fp64 on the reference), unit stride in dim.
        weight: (dim,).
        residual: x's shape, x's dtype or fp32; None at the first layer.
        eps: added to the mean square.
        residual_in_fp32: whether new_residual is fp32 also where x and residual are not.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        y in x's dtype and new_residual in residual's dtype (x's if None, or fp32 on request), both fresh tensors.

    Raises:
        ValueError: a shape, dtype, device or stride is wrong, or the backend cannot run this.
    """
    if x.dim() < 1 or x.numel() == 0:
        raise ValueError(f"x must be (…, dim), not empty, got {tuple(x.shape)}")
    shape = tuple(x.shape)
    check_rows("x", x, shape, "(…, dim)", x)
    check_rows("weight", weight, shape[-1:], "(dim,)", x)
    dtype = x.dtype
    if residual is not None:
        check_rows("residual", residual, shape, "x's shape", x)
        dtype = residual.dtype
        if dtype not in (x.dtype, torch.float32):
            raise ValueError(f"residual must be {x.dtype} like x or float32, got {dtype}")
    if residual_in_fp32 and dtype != torch.float64:
        dtype = torch.float32
    rows = x.reshape(-1, shape[-1])
    residual = None if residual is None else residual.reshape(-1, shape[-1])
    y, new_residual, _ = _norm(rows, weight, residual, eps, dtype, backends.requested("norm", backend))
    return y.view(shape), new_residual.view(shape)


def _forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, new_residual, rstd) of rows (rows, dim)."""
    chosen: NormBackend = backends.choose("norm", backend, x)
    residual = None if residual is None else unit_stride(residual)
    return chosen.forward(unit_stride(x), weight, residual, eps, residual_dtype)


norm_op = torch.library.custom_op("dnamamba_kernels::rms_norm", _forward, mutates_args=())


@norm_op.register_fake
def _(x, weight, residual, eps, residual_dtype, backend):
    rstd = torch.float64 if residual_dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=residual_dtype), x.new_empty(x.shape[0], dtype=rstd)


def _gradients(
    dy: Tensor,
    dnew_residual: Tensor | None,
    new_residual: Tensor,
    weight: Tensor,
    rstd: Tensor,
    dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(the gradient of x + residual in `dtype`, the same in `residual_dtype` or empty if that is None, dweight)."""
    chosen: NormBackend = backends.choose("norm", backend, new_residual)
    dnew_residual = None if dnew_residual is None else unit_stride(dnew_residual)
    rest = new_residual, weight, rstd, dtype, residual_dtype
    dx, dresidual, dweight = chosen.backward(unit_stride(dy), dnew_residual, *rest)
    return dx, weight.new_empty(0) if dresidual is None else dresidual, dweight.to(weight.dtype)


norm_backward_op = torch.library.custom_op("dnamamba_kernels::rms_norm_backward", _gradients, mutates_args=())


@norm_backward_op.register_fake
def _(dy, dnew_residual, new_residual, weight, rstd, dtype, residual_dtype, backend):
    dx = new_residual.new_empty(new_residual.shape, dtype=dtype)
    other = weight.new_empty(0) if residual_dtype is None else torch.empty_like(dx, dtype=residual_dtype)
    return dx, other, weight.new_empty(weight.shape)


_run_backward = direct(norm_backward_op, _gradients)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, residual, _, _, backend = inputs
    _, new_residual, rstd = output
    ctx.save_for_backward(new_residual, weight, rstd)
    # x and residual have the same gradient: one tensor, unless their dtypes differ.
    ctx.shared = residual is None or residual.dtype == x.dtype
    ctx.flags = x.dtype, None if ctx.shared else residual.dtype, backend
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dnew_residual, _):
    new_residual, weight, rstd = ctx.saved_tensors
    dy = new_residual.new_zeros(new_residual.shape) if dy is None else dy
    dx, dresidual, dweight = _run_backward(dy, dnew_residual, new_residual, weight, rstd, *ctx.flags)
    dresidual = dx if ctx.shared else dresidual
    return dx, dweight, dresidual if ctx.needs_input_grad[2] else None, None, None, None


norm_op.register_autograd(_backward, setup_context=_setup_context)
refuse_second_derivatives(norm_backward_op)
for _op in (norm_op, norm_backward_op):
    loop_over_batches(_op)


_norm = differentiable(direct(norm_op, _forward), _forward, _setup_context, _backward)
