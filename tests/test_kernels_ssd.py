"""SSD against the recurrence written out and the gated norm against its formula: values and all gradients."""

import pytest
import torch
from torch import Tensor

from dnamamba_kernels import gated_rms_norm, ssd_scan
from dnamamba_kernels.ssd import reference


def recurrence(x, log_decay, weight, B, C, D, state, ids):
    """h_t = a_t h_{t−1} + w_t x_t B_tᵀ and y_t = h_t C_t + D x_t, position by position."""
    B, C = (each.repeat_interleave(x.shape[2] // each.shape[2], dim=2) for each in (B, C))
    outputs = []
    for t in range(x.shape[1]):
        if ids is not None and t:
            state = torch.where((ids[:, t] == ids[:, t - 1])[:, None, None, None], state, 0)
        inputs = torch.einsum("bhp,bhn->bhpn", weight[:, t, :, None] * x[:, t], B[:, t])
        state = log_decay[:, t].exp()[..., None, None] * state + inputs
        outputs.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(outputs, 1), state


def problem(batch: int, length: int, heads: int, head: int, groups: int, state: int, packed: bool):
    """Differentiable arguments in the order of `recurrence`, and ids; all random, in fp64."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = batch, length, heads
    maps = batch, length, groups, state
    tensors = [draw(*rows, head), -draw(*rows).exp(), draw(*rows), draw(*maps), draw(*maps), draw(heads)]
    tensors.append(draw(batch, heads, head, state))
    ids = (draw(batch, length) > 1).cumsum(1).int() if packed else None
    return [each.requires_grad_() for each in tensors], ids


def scan(x, log_decay, weight, B, C, D, state, ids, **options):
    return ssd_scan(x, log_decay, weight, B, C, D=D, initial_state=state, sequence_ids=ids, **options)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "chunk", "groups"), [(1, 64, 1), (50, 64, 2), (41, 4, 1), (48, 4, 4), (9, 1, 2), (130, 64, 4)]
)
def test_chunks_equal_the_recurrence_in_values_and_gradients(monkeypatch, length, chunk, groups, packed):
    monkeypatch.setattr(reference, "CHUNK", chunk)
    leaves, ids = problem(2, length, 4, 3, groups, 5, packed)
    results = [function(*leaves, ids) for function in (scan, recurrence)]
    outputs = [torch.randn_like(each) for each in results[0]]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    found, wanted = (torch.autograd.grad(result, leaves, outputs) for result in results)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-10, rtol=1e-10)


def test_strong_decays_overflow_nowhere():
    """Sums of logs far below what exp can hold, in both directions, and their gradients."""
    x, B, C = (torch.randn(1, 300, 1, size, requires_grad=True) for size in (2, 3, 3))
    log_decay = torch.full((1, 300, 1), -50.0, requires_grad=True)
    rest = torch.ones(1, 300, 1), B, C, torch.zeros(1), torch.ones(1, 1, 2, 3), None
    y, final = scan(x, log_decay, *rest)
    torch.testing.assert_close(y, recurrence(x, log_decay, *rest)[0])
    for gradient in torch.autograd.grad(y.sum() + final.sum(), [x, log_decay, B, C]):
        assert gradient.isfinite().all()


def test_slow_decays_keep_their_digits_after_fast_ones():
    """A head that forgets fast for a while and then keeps: differences of large sums."""
    x, B, C = torch.randn(1, 4096, 1, 2), torch.randn(1, 4096, 1, 3), torch.randn(1, 4096, 1, 3)
    log_decay = torch.full((1, 4096, 1), -20.0)
    log_decay[:, 2048:] = -1e-3
    inputs = x, log_decay, torch.ones(1, 4096, 1), B, C, torch.zeros(1), torch.zeros(1, 1, 2, 3)
    y, final = scan(*inputs, None)
    expected, expected_final = recurrence(*(each.double() for each in inputs), None)
    assert (y - expected).norm() < 1e-5 * expected.norm()
    assert (final - expected_final).norm() < 1e-5 * expected_final.norm()


GOOD = {
    "x": torch.zeros(2, 6, 4, 3),
    "log_decay": torch.zeros(2, 6, 4),
    "weight": torch.zeros(2, 6, 4),
    "B": torch.zeros(2, 6, 2, 5),
    "C": torch.zeros(2, 6, 2, 5),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6, 4)}, r"x must be \(batch, length, heads, head\)"),
        ({"x": torch.zeros(2, 0, 4, 3)}, "x must not be empty"),
        ({"weight": torch.zeros(2, 6, 3)}, r"weight must be \(batch, length, heads\) = \(2, 6, 4\), got \(2, 6, 3\)"),
        ({"log_decay": torch.zeros(2, 6, 4).half()}, r"log_decay must be torch.float32, got torch.float16: call \.to"),
        ({"B": torch.zeros(2, 6, 3, 5)}, r"groups that divide 4 heads, got \(2, 6, 3, 5\)"),
        ({"C": torch.zeros(2, 6, 2, 4)}, r"C must be .* = \(2, 6, 2, 5\), got \(2, 6, 2, 4\)"),
        ({"C": torch.zeros(2, 6, 2, 5).half()}, "C must have x's dtype torch.float32, got torch.float16"),
        ({"D": torch.zeros(3)}, r"D must be \(heads,\) = \(4,\)"),
        ({"initial_state": torch.zeros(2, 4, 5, 3)}, r"initial_state must be .* = \(2, 4, 3, 5\)"),
        ({"sequence_ids": torch.zeros(2, 6)}, r"sequence_ids must be \(batch, length\)"),
        ({"backend": "cuda"}, "no backend can run this ssd"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ssd_scan(**(GOOD | change))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gated_norm_equals_its_formula(dtype):
    torch.manual_seed(0)
    x, z = (torch.randn(3, 7, 10, dtype=dtype)[..., 2:].requires_grad_() for _ in "xz")
    weight = torch.randn(8, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    exact = [each.detach().double().requires_grad_() for each in (x, z, weight)]
    gated = exact[0] * exact[1] * torch.sigmoid(exact[1])
    expected = gated / (gated.square().mean(-1, keepdim=True) + 1e-3).sqrt() * exact[2]
    y = gated_rms_norm(x, z, weight, eps=1e-3)
    assert y.dtype == dtype and y.is_contiguous()
    dy = torch.randn_like(y)
    found = [y.detach(), *torch.autograd.grad(y, [x, z, weight], dy)]
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact, dy.double())]
    bound = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    for value, want in zip(found, wanted, strict=True):
        assert (value.double() - want).norm() <= bound * want.norm()


def test_gated_norm_names_wrong_arguments():
    x, weight = torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"z must be x's shape = \(2, 3\), got \(3, 3\)"):
        gated_rms_norm(x, torch.zeros(3, 3), weight)
    with pytest.raises(ValueError, match="z must have x's dtype"):
        gated_rms_norm(x, x.half(), weight)
