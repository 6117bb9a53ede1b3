"""Causal convolution and RMSNorm on the CPU against plain formulas in fp64: values and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dnamamba_kernels import causal_conv1d, causal_conv1d_step, rms_norm
from dnamamba_kernels.conv.protocol import ConvArguments
from dnamamba_kernels.conv.reference import BACKEND as REFERENCE

BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3}


def formula(x, weight, bias, state, ids, activation):
    """The convolution's sum, position by position."""
    width, rows = weight.shape[1], []
    padded = torch.cat([state, x], 1)
    for t in range(x.shape[1]):
        total = torch.zeros_like(x[:, 0]) if bias is None else bias.expand_as(x[:, 0])
        for j in range(width):
            seen = torch.ones(x.shape[0], 1, dtype=torch.bool)
            if ids is not None:
                seen = (ids[:, max(t - j, 0) : t + 1] == ids[:, t : t + 1]).all(1, keepdim=True)
            total = total + torch.where(seen, padded[:, width - 1 + t - j] * weight[:, width - 1 - j], 0)
        rows.append(functional.silu(total) if activation else total)
    final = padded[:, x.shape[1] :]
    if ids is not None:
        last = x.shape[1] - 1
        kept = [(ids[:, max(last - j, 0) :] == ids[:, -1:]).all(1) for j in range(width - 2, -1, -1)]
        final = torch.where(torch.stack(kept, 1)[..., None], final, 0)
    return torch.stack(rows, 1), final


def gradients(function, tensors, dtype, upstream):
    leaves = [None if t is None else t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]
    outputs = function(*leaves)
    torch.autograd.backward(outputs, [u.to(o.dtype) for o, u in zip(outputs, upstream, strict=True)])
    return [o.detach() for o in outputs] + [t.grad for t in leaves if t is not None]


def check(found, exact, bound):
    for index, (a, b) in enumerate(zip(found, exact, strict=True)):
        assert a.shape == b.shape
        assert (a.double() - b.double()).norm() <= bound * b.double().norm() + 1e-12, index


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    length=st.sampled_from([1, 2, 3, 7, 20]),
    width=st.integers(2, 8),
    bias=st.booleans(),
    initial=st.booleans(),
    packed=st.booleans(),
    activation=st.sampled_from(["silu", None]),
    reverse=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_conv_equals_the_formula(batch, length, width, bias, initial, packed, activation, reverse, dtype):
    torch.manual_seed(length * width)
    rounded = [torch.randn(*s).to(dtype) for s in ((batch, length, 5), (5, width), (5,), (batch, width - 1, 5))]
    tensors = [rounded[0], rounded[1], rounded[2] if bias else None, rounded[3] if initial else None]
    ids = (torch.rand(batch, length) < 0.2).cumsum(1).remainder(2).int() if packed else None
    upstream = torch.randn(batch, length, 5).to(dtype), torch.randn(batch, width - 1, 5).to(dtype)

    def operator(x, weight, bias, state):
        options = {"activation": activation, "initial_state": state, "sequence_ids": ids, "reverse": reverse}
        return causal_conv1d(x, weight, bias, **options)

    def exact(x, weight, bias, state):
        state = torch.zeros(batch, width - 1, 5, dtype=x.dtype) if state is None else state
        if not reverse:
            return formula(x, weight, bias, state, ids, activation)
        y, final = formula(x.flip(1), weight, bias, state, None if ids is None else ids.flip(1), activation)
        return y.flip(1), final

    found = gradients(operator, tensors, dtype, upstream)
    check(found, gradients(exact, tensors, torch.float64, upstream), BOUNDS[dtype])


def test_conv_in_chunks_and_steps_equals_the_whole():
    x, weight, bias = torch.randn(2, 23, 6), torch.randn(6, 4), torch.randn(6)
    whole, final = causal_conv1d(x, weight, bias)
    state, rows = None, []
    for chunk in x.split([1, 2, 11, 9], 1):
        y, state = causal_conv1d(chunk, weight, bias, initial_state=state)
        rows.append(y)
    torch.testing.assert_close(torch.cat(rows, 1), whole)
    assert torch.equal(state, final)
    state = torch.zeros(2, 3, 6)
    for t in range(23):
        y, state = causal_conv1d_step(x[:, t], weight, bias, state)
        torch.testing.assert_close(y, whole[:, t])
    assert torch.equal(state, final)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given_residual", [None, "same", "fp32"])
@pytest.mark.parametrize("residual_in_fp32", [False, True])
def test_norm_equals_the_formula(dtype, given_residual, residual_in_fp32):
    torch.manual_seed(1)
    x, weight, residual = (torch.randn(*s).to(dtype) for s in ((3, 5, 33), (33,), (3, 5, 33)))
    if given_residual == "fp32" and dtype == torch.bfloat16:
        residual = residual.float()
    residual = None if given_residual is None else residual
    upstream = torch.randn(3, 5, 33).to(dtype), torch.randn(3, 5, 33)
    kept = {}

    def operator(x, weight, residual):
        given_dtype = (
            residual if residual is None or dtype != torch.bfloat16 or given_residual != "fp32" else residual.float()
        )
        y, new = rms_norm(x, weight, residual=given_dtype, eps=1e-3, residual_in_fp32=residual_in_fp32)
        kept["dtype"] = new.dtype
        return y, new

    def exact(x, weight, residual):
        total = x if residual is None else x + residual
        return total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-3) * weight, total

    found = gradients(operator, [x, weight, residual], dtype, upstream)
    wide = dtype == torch.bfloat16 and (residual_in_fp32 or given_residual == "fp32")
    assert kept["dtype"] == (torch.float32 if wide else dtype)
    check(found, gradients(exact, [x, weight, residual], torch.float64, upstream), BOUNDS[dtype])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: causal_conv1d(x, torch.zeros(4, 9)), r"weight must be \(channels=4, width 2…8\), got \(4, 9\)"),
        (lambda x: causal_conv1d(x, torch.zeros(4, 4), torch.zeros(3)), r"bias must be \(channels,\) = \(4,\)"),
        (lambda x: causal_conv1d(x, torch.zeros(4, 4), activation="relu"), "activation must be 'silu' or None"),
        (lambda x: causal_conv1d(x.transpose(1, 2), torch.zeros(6, 4)), "x must have unit stride"),
        (lambda x: causal_conv1d(x, torch.zeros(4, 4), initial_state=torch.zeros(2, 3, 4).half()), "x's dtype"),
        (lambda x: causal_conv1d(x, torch.zeros(4, 4), backend="cuda"), "no backend can run this conv"),
        (lambda x: rms_norm(x, torch.ones(3)), r"weight must be \(dim,\) = \(4,\)"),
        (lambda x: rms_norm(x, torch.ones(4), residual=x.half()), "residual must be torch.float32 like x or float32"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 6, 4))


def test_conv_reads_rows_of_a_wider_tensor():
    wide = torch.randn(2, 9, 12)
    found = causal_conv1d(wide[..., 5:], torch.ones(7, 3), activation=None)[0]
    expected, _ = REFERENCE.forward(
        ConvArguments(wide[..., 5:].contiguous(), torch.ones(7, 3), None, None, None, None, False)
    )
    assert torch.equal(found, expected)
