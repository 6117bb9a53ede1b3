"""Mamba-2: products over chunks against the recurrence written out."""

import pytest
import torch
import torch.nn.functional as F

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mamba2, mixer_class


def recurrence(x, log_decay, weight, B, C, state, ids):
    outputs = []
    for t in range(x.shape[1]):
        if ids is not None and t:
            state = torch.where((ids[:, t] == ids[:, t - 1])[:, None, None, None], state, 0)
        inputs = torch.einsum("bhp,bn->bhpn", weight[:, t, :, None] * x[:, t], B[:, t])
        state = log_decay[:, t].exp()[..., None, None] * state + inputs
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]))
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk", "at_once"), [(1, 64, 256), (50, 64, 256), (41, 4, 3), (48, 4, 100), (9, 1, 2)]
)
def test_chunks_equal_the_recurrence_in_values_and_gradients(monkeypatch, length, chunk, at_once, packed):
    monkeypatch.setattr(mamba2, "CHUNK", chunk)
    monkeypatch.setattr(mamba2, "CHUNKS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, B, C, state = draw(2, length, 3, 2), draw(2, length, 4), draw(2, length, 4), draw(2, 3, 2, 4)
    log_decay, weight = -draw(2, length, 3).exp(), draw(2, length, 3)
    ids = (draw(2, length) > 1).cumsum(1).int() if packed else None
    leaves = [each.requires_grad_() for each in (x, log_decay, weight, B, C, state)]
    results = [function(*leaves, ids) for function in (mamba2.ssd, recurrence)]
    outputs = [torch.randn_like(x), torch.randn_like(state)]
    for (y, final), (expected, expected_final) in [results]:
        torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(final, expected_final, atol=1e-12, rtol=1e-10)
    found, wanted = (torch.autograd.grad(result, leaves, outputs) for result in results)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-10, rtol=1e-10)


def test_strong_decays_overflow_nowhere():
    """Sums of logs far below what exp can hold, in both directions, and their gradients."""
    x, B, C = (torch.randn(1, 300, *shape, requires_grad=True) for shape in ((1, 2), (3,), (3,)))
    log_decay = torch.full((1, 300, 1), -50.0, requires_grad=True)
    weight = torch.ones(1, 300, 1)
    y, final = mamba2.ssd(x, log_decay, weight, B, C, torch.ones(1, 1, 2, 3), None)
    expected, _ = recurrence(x, log_decay, weight, B, C, torch.ones(1, 1, 2, 3), None)
    torch.testing.assert_close(y, expected)
    for gradient in torch.autograd.grad(y.sum() + final.sum(), [x, log_decay, B, C]):
        assert gradient.isfinite().all()


def test_many_chunks_keep_the_digits_of_slow_decays():
    """A head that forgets fast for a while and then keeps: differences of large sums."""
    x, B, C = torch.randn(1, 4096, 1, 2), torch.randn(1, 4096, 3), torch.randn(1, 4096, 3)
    log_decay = torch.full((1, 4096, 1), -20.0)
    log_decay[:, 2048:] = -1e-3
    inputs = x, log_decay, torch.ones(1, 4096, 1), B, C, torch.zeros(1, 1, 2, 3)
    y, final = mamba2.ssd(*inputs, None)
    expected, expected_final = recurrence(*(each.double() for each in inputs), None)
    assert (y - expected).norm() < 1e-5 * expected.norm()
    assert (final - expected_final).norm() < 1e-5 * expected_final.norm()


@torch.no_grad()
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_the_block_is_the_papers(discretization):
    torch.manual_seed(0)
    config = ModelConfig(
        mixer="mamba2", d_model=6, d_state=5, head_dim=4, discretization=discretization, conv_bias=False
    )
    mixer = mixer_class("mamba2")(config).double()
    mixer.norm.weight.normal_()
    mixer.D.normal_()
    x = torch.randn(2, 23, 6, dtype=torch.float64)
    z, inside, dt = mixer.in_proj(x).split([12, 12 + 10, 3], -1)
    taps = mixer.conv1d.weight[:, 0]
    inside = F.silu(F.pad(inside, (0, 0, 3, 0)).unfold(1, 4, 1).mul(taps).sum(-1))
    values, B, C = inside[..., :12].unflatten(-1, (3, 4)), inside[..., 12:17], inside[..., 17:]
    delta, A = F.softplus(dt + mixer.dt_bias), -mixer.A_log.exp()
    weight = delta if discretization == "euler" else ((delta * A).exp() - 1) / A
    y, _ = recurrence(values, delta * A, weight, B, C, torch.zeros(2, 3, 4, 5, dtype=torch.float64), None)
    y = (y + mixer.D[:, None] * values).flatten(2) * F.silu(z)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x)[0], mixer.out_proj(y), atol=1e-10, rtol=1e-10)
