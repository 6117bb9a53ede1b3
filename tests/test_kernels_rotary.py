"""Rotary positions on the CPU against complex numbers in fp64: values and gradients."""

import pytest
import torch

from dnamamba_kernels import rotary

BOUNDS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3}


def turned(values, angles):
    """Numbers i and i + head / 2 as one complex number."""
    pairs = torch.complex(*values.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    return torch.cat((pairs.real, pairs.imag), dim=-1)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("sequences", [None, 2])
def test_queries_and_keys_turn_and_values_stay(dtype, sequences):
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 40, dtype=dtype)[..., 4:].unflatten(-1, (3, 2, 6)).requires_grad_()
    angles = 10 * torch.randn(*([] if sequences is None else [sequences]), 7, 3, dtype=torch.float64)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    found = rotary(qkv, angles.cos().to(parameter), angles.sin().to(parameter))
    exact = qkv.detach().double().requires_grad_()
    query, key, value = exact.unbind(2)
    angles = angles if sequences else angles[None]
    expected = turned(query, angles), turned(key, angles), value
    upstream = [torch.randn_like(each) for each in found]
    for each, want in zip(found, expected, strict=True):
        assert each.dtype == dtype and each.is_contiguous()
        assert (each.double() - want).norm() <= BOUNDS[dtype] * want.norm()
    (gradient,) = torch.autograd.grad(found, [qkv], upstream)
    (wanted,) = torch.autograd.grad(expected, [exact], [each.double() for each in upstream])
    assert (gradient.double() - wanted).norm() <= BOUNDS[dtype] * wanted.norm()


@pytest.mark.parametrize(
    ("qkv", "cos", "message"),
    [
        (torch.zeros(2, 7, 3, 6), torch.zeros(7, 3), "qkv must be"),
        (torch.zeros(2, 7, 3, 2, 5), torch.zeros(7, 3), "even head"),
        (torch.zeros(2, 7, 3, 2, 6), torch.zeros(8, 3), r"cos must be .* = \(1, 7, 3\), got \(1, 8, 3\)"),
        (torch.zeros(2, 7, 3, 2, 6), torch.zeros(3, 7, 3), "cos must be torch.float32 of 1 or 2 sequences"),
        (torch.zeros(2, 7, 3, 2, 6), torch.zeros(7, 3).half(), "cos must be torch.float32 .*, got torch.float16"),
    ],
)
def test_wrong_arguments_are_named(qkv, cos, message):
    with pytest.raises(ValueError, match=message):
        rotary(qkv, cos, cos)
