"""mamba-ssm's interface: against its documented formulas, and inside Hugging Face's Mamba."""

import importlib.util
import sys

import pytest
import torch
from torch.nn import functional

from dnamamba_kernels import compat


def plain(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """mamba-ssm's layout and options, written out: (batch, channels, length)."""
    batch, channels, length = u.shape
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = functional.softplus(delta) if delta_softplus else delta

    def expanded(M):
        if M.dim() == 2:
            return M[None, :, :, None].expand(batch, -1, -1, length)
        M = M[:, None] if M.dim() == 3 else M
        return torch.cat([M[:, g : g + 1].expand(-1, channels // M.shape[1], -1, -1) for g in range(M.shape[1])], 1)

    B, C = expanded(B), expanded(C)
    state, columns = torch.zeros(batch, channels, A.shape[1]), []
    for t in range(length):
        state = torch.exp(delta[:, :, t, None] * A) * state + delta[:, :, t, None] * B[..., t] * u[:, :, t, None]
        columns.append((state * C[..., t]).sum(-1))
    y = torch.stack(columns, -1)
    y = y if D is None else y + u * D[:, None]
    y = y if z is None else y * functional.silu(z)
    return (y, state) if return_last_state else y


@pytest.mark.parametrize("kind", ["variable", "grouped", "constant", "mixed"])
@pytest.mark.parametrize("options", [True, False])
def test_equals_the_formulas(kind, options):
    torch.manual_seed(0)
    shapes = {"variable": (2, 3, 37), "grouped": (2, 2, 3, 37), "constant": (6, 3)}
    B = torch.randn(shapes["constant" if kind == "mixed" else kind])
    C = torch.randn(shapes["variable" if kind == "mixed" else kind])
    tensors = [torch.randn(2, 6, 37), torch.rand(2, 6, 37), -torch.rand(6, 3), B, C]
    if options:
        tensors += [torch.randn(6), torch.randn(2, 6, 37), torch.rand(6)]
    weights = torch.randn(2, 6, 37), torch.randn(2, 6, 3)

    def outcome(function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        results = function(*leaves, delta_softplus=options, return_last_state=True)
        torch.autograd.backward(results, weights)
        return [*results, *(t.grad for t in leaves)]

    for found, expected in zip(outcome(compat.selective_scan_fn), outcome(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    without_state = compat.selective_scan_fn(*tensors, delta_softplus=options)
    torch.testing.assert_close(without_state, plain(*tensors, delta_softplus=options), rtol=1e-4, atol=1e-5)


def test_complex_A_is_refused():
    u = torch.randn(1, 2, 5)
    with pytest.raises(ValueError, match="A must be real"):
        compat.selective_scan_fn(u, u, -torch.ones(2, 3, dtype=torch.complex64), torch.zeros(2, 3), torch.zeros(2, 3))


def test_install_registers_once_and_shadows_nothing(monkeypatch):
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    compat.install()
    compat.install()
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    assert selective_scan_fn is compat.selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):  # as transformers asks
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.name == name
    for name in ("mamba_ssm.ops.selective_scan_interface", "mamba_ssm.ops"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(RuntimeError, match="mamba_ssm is installed"):
        compat.install()
    monkeypatch.delitem(sys.modules, "mamba_ssm")


@pytest.mark.filterwarnings("ignore")
def test_inside_hugging_face_mamba(monkeypatch):
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    if not hasattr(modeling, "mamba_selective_scan"):
        pytest.skip("this transformers version keeps its scan elsewhere")
    config = modeling.MambaConfig(vocab_size=16, hidden_size=24, state_size=5, num_hidden_layers=2, use_cache=False)
    torch.manual_seed(0)
    model = modeling.MambaForCausalLM(config)
    tokens = torch.randint(0, 16, (2, 41))

    def outcome():
        model.zero_grad()
        logits = model(tokens).logits
        logits.square().mean().backward()
        return [logits.detach()] + [p.grad.clone() for p in model.parameters()]

    slow, calls = outcome(), []

    def ours(u, delta, A, B, C, *args, use_mambapy=False, use_associative_scan=False, **options):
        calls.append(u.shape)
        return compat.selective_scan_fn(u, delta, A, B, C, *args, **options)

    monkeypatch.setattr(modeling, "mamba_selective_scan", ours)
    for found, expected in zip(outcome(), slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert len(calls) == 2
