"""mamba-ssm's interface: against its documented formulas, in its own tests' shapes, and inside Hugging Face's Mamba."""

import importlib.util
import inspect
import sys
from types import ModuleType, SimpleNamespace

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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [128, 1024])
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float32, 6e-4, 2e-3), (torch.float16, 3e-3, 5e-3), (torch.bfloat16, 3e-2, 5e-2)],
)
def test_mamba_ssms_own_cases_of_the_scan(groups, length, dtype, rtol, atol):
    """The shapes, dtypes and tolerances of its tests; the values by the formulas in fp32."""
    torch.manual_seed(0)
    B, C = (torch.randn(2, groups, 8, length).to(dtype) for _ in "BC")
    A, D, bias = -0.5 * torch.rand(4, 8), torch.randn(4), 0.5 * torch.rand(4)
    u, z = (torch.randn(2, 4, length).to(dtype) for _ in "uz")
    delta = (0.5 * torch.rand(2, 4, length)).to(dtype)
    if groups == 1:
        B, C = B[:, 0], C[:, 0]
    options = {"delta_softplus": True, "return_last_state": True}
    out, state = compat.selective_scan_fn(u, delta, A, B, C, D, z=z, delta_bias=bias, **options)
    expected = plain(u.float(), delta.float(), A, B.float(), C.float(), D, z.float(), bias, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(state, expected[1], rtol=rtol, atol=atol)


MAMBA_KEYS = [
    "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
    "out_proj.weight",
]  # fmt: skip
"""Of mamba-ssm's `Mamba`."""


def plain_mamba(weights, x):
    """The module from its state dict, position by position: x (batch, length, d_model)."""
    D, N = weights["A_log"].shape
    W, R = weights["conv1d.weight"].shape[2], weights["dt_proj.weight"].shape[1]
    window, h, outputs = x.new_zeros(x.shape[0], D, W), x.new_zeros(x.shape[0], D, N), []
    for t in range(x.shape[1]):
        u, z = (x[:, t] @ weights["in_proj.weight"].T + weights.get("in_proj.bias", 0)).split(D, dim=1)
        window = torch.cat([window[:, :, 1:], u[:, :, None]], 2)
        u = functional.silu((window * weights["conv1d.weight"][:, 0]).sum(2) + weights.get("conv1d.bias", 0))
        low, B, C = (u @ weights["x_proj.weight"].T).split((R, N, N), dim=1)
        delta = functional.softplus(low @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])[:, :, None]
        h = torch.exp(delta * -torch.exp(weights["A_log"])) * h + delta * B[:, None] * u[:, :, None]
        y = ((h * C[:, None]).sum(2) + weights["D"] * u) * functional.silu(z)
        outputs.append(y @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0))
    return torch.stack(outputs, 1), window, h


def make_mamba(*arguments, **options):
    """Not at its initial values, so that no parameter is without effect."""
    torch.manual_seed(3)
    module = compat.Mamba(*arguments, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


class TestMamba:
    """mamba-ssm's module."""

    def test_the_parameters_are_mamba_ssms(self):
        module = compat.Mamba(32)
        assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
            "A_log": (64, 16), "D": (64,), "in_proj.weight": (128, 32), "conv1d.weight": (64, 1, 4),
            "conv1d.bias": (64,), "x_proj.weight": (34, 64), "dt_proj.weight": (64, 2), "dt_proj.bias": (64,),
            "out_proj.weight": (32, 64),
        }  # fmt: skip
        assert list(module.state_dict()) == sorted(MAMBA_KEYS, key=list(module.state_dict()).index)
        other = compat.Mamba(32, 8, 3, 3, 5, conv_bias=False, bias=True, dtype=torch.bfloat16)
        assert {*other.state_dict()} == {*MAMBA_KEYS, "in_proj.bias", "out_proj.bias"} - {"conv1d.bias"}
        assert other.x_proj.weight.shape == (5 + 16, 96)
        dtypes = {name: value.dtype for name, value in other.named_parameters()}
        assert {name for name, dtype in dtypes.items() if dtype != torch.bfloat16} == {"A_log", "D"}
        assert other.A_log._no_weight_decay and other.D._no_weight_decay and other.dt_proj.bias._no_reinit
        assert list(inspect.signature(compat.Mamba).parameters) == [
            "d_model", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max", "dt_init", "dt_scale",
            "dt_init_floor", "conv_bias", "bias", "use_fast_path", "layer_idx", "device", "dtype",
        ]  # fmt: skip

    def test_the_first_steps_are_as_asked(self):
        torch.manual_seed(0)
        module = compat.Mamba(64, dt_min=0.01, dt_max=0.02, dt_init="constant", dt_scale=3.0)
        steps = functional.softplus(module.dt_proj.bias)
        assert 0.0099 < steps.min() < 0.011 and 0.019 < steps.max() < 0.0201
        torch.testing.assert_close(module.dt_proj.weight, torch.full((128, 4), 1.5))
        assert functional.softplus(compat.Mamba(64, dt_init_floor=0.05).dt_proj.bias).min() > 0.0499
        torch.testing.assert_close(-module.A_log.exp(), -torch.arange(1.0, 17).expand(128, 16))
        with pytest.raises(NotImplementedError, match="dt_init must be 'constant' or 'random', got 'zero'"):
            compat.Mamba(64, dt_init="zero")

    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            ((2, 64, 16), {"d_state": 16, "d_conv": 4, "expand": 2}),  # its README's
            ((2, 128, 384), {"d_state": 8, "dt_rank": 48, "d_conv": 3}),  # its test_mamba_inner_fn's
            ((3, 20, 24), {"bias": True, "conv_bias": False, "expand": 3, "d_conv": 2}),
        ],
    )
    def test_equals_the_recurrence_in_values_and_gradients(self, shape, options):
        module = make_mamba(shape[-1], **options)
        x, direction = torch.randn(shape), torch.randn(shape)
        weights = {name: value.detach().double().requires_grad_() for name, value in module.named_parameters()}
        found, expected = module(x), plain_mamba(weights, x.double())[0]
        (found * direction).sum().backward()
        (expected * direction).sum().backward()
        pairs = {name: (value.grad, weights[name].grad) for name, value in module.named_parameters()}
        for name, (ours, plain_one) in {"y": (found, expected), **pairs}.items():
            scale = plain_one.abs().max().item()
            torch.testing.assert_close(ours.double(), plain_one, rtol=1e-4, atol=1e-5 * scale, msg=name)

    def test_half_precision_and_double(self):
        x = torch.randn(2, 33, 16, dtype=torch.float64)
        module = make_mamba(16, dtype=torch.float64)
        expected = plain_mamba({name: value.float() for name, value in module.state_dict().items()}, x.float())[0]
        torch.testing.assert_close(module(x).float(), expected, rtol=1e-4, atol=1e-5)
        module = make_mamba(16, dtype=torch.bfloat16)
        weights = {name: value.float() for name, value in module.state_dict().items()}
        expected = plain_mamba(weights, x.bfloat16().float())[0]
        assert module(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(module(x.bfloat16()).float(), expected, rtol=3e-2, atol=5e-2)

    @pytest.mark.parametrize("chunks", [[10] + [1] * 10, [1] * 20, [2, 3, 15], [20]])
    def test_a_cache_is_continued(self, chunks):
        """Its generation test's shape: batch 3, 20 positions."""
        module, x = make_mamba(16, layer_idx=4), torch.randn(3, 20, 16)
        with torch.no_grad():
            expected, window, state = plain_mamba(module.state_dict(), x)
            params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
            for repetition in range(2):  # the second begins anew, over the states of the first
                params.seqlen_offset, found = 0, []
                for chunk in x.split(chunks, dim=1):
                    found.append(module(chunk, inference_params=params))
                    params.seqlen_offset += chunk.shape[1]
                torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5, msg=str(repetition))
        assert list(params.key_value_memory_dict) == [4]
        torch.testing.assert_close(params.key_value_memory_dict[4], (window, state), rtol=1e-4, atol=1e-5)

    def test_step_changes_the_states_in_place(self):
        module, x = make_mamba(16, dtype=torch.bfloat16), torch.randn(3, 5, 16).bfloat16()
        states = module.allocate_inference_cache(3, max_seqlen=100)
        assert [(tuple(each.shape), each.dtype) for each in states] == [
            ((3, 32, 4), torch.bfloat16), ((3, 32, 16), torch.float32)
        ]  # fmt: skip
        with torch.no_grad():
            found = [module.step(each, *states) for each in x.split(1, dim=1)]
            torch.testing.assert_close(torch.cat([out for out, *_ in found], 1), module(x), rtol=3e-2, atol=3e-2)
        assert all(returned is kept for _, *after in found for returned, kept in zip(after, states, strict=True))
        with pytest.raises(ValueError, match="step takes one position"):
            module.step(x, *states)

    @pytest.mark.gpu
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)]
    )
    def test_on_a_gpu(self, dtype, tolerance):
        """Whole, and continued from a cache, against the recurrence in fp64; parameters are drawn on the CPU."""
        module = make_mamba(384, d_state=8, dt_rank=48, d_conv=3, layer_idx=0, dtype=dtype)
        x = torch.randn(2, 128, 384).to(dtype)
        weights = {name: value.detach().double() for name, value in module.named_parameters()}
        expected = plain_mamba(weights, x.double())[0]
        module, x, tolerance = module.cuda(), x.cuda(), tolerance * expected.abs().max().item()
        torch.testing.assert_close(module(x).cpu().double(), expected, rtol=0, atol=tolerance)
        module(x).float().square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
        params, found = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={}), []
        with torch.no_grad():
            for chunk in x.split([64, 1, 1, 30, 32], dim=1):
                found.append(module(chunk, inference_params=params))
                params.seqlen_offset += chunk.shape[1]
        torch.testing.assert_close(torch.cat(found, 1).cpu().double(), expected, rtol=0, atol=tolerance)

    def test_what_a_cache_cannot_be(self):
        params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
        with pytest.raises(ValueError, match="inference_params needs a layer_idx"):
            compat.Mamba(16)(torch.zeros(1, 3, 16), params)
        module = compat.Mamba(16, layer_idx=0)
        module(torch.zeros(1, 3, 16), params)
        with pytest.raises(ValueError, match="cached states are of 1 sequences, hidden_states of 2"):
            module(torch.zeros(2, 3, 16), params)


def test_install_registers_once_and_shadows_nothing(monkeypatch):
    for name in compat._MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    compat.install()
    compat.install()
    import mamba_ssm
    from mamba_ssm import Mamba
    from mamba_ssm.modules.mamba_simple import Mamba as again
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    assert selective_scan_fn is compat.selective_scan_fn
    assert Mamba is again is compat.Mamba is mamba_ssm.modules.mamba_simple.Mamba
    for name in compat._MODULES:  # as transformers asks
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.name == name
    for name in compat._MODULES:
        del sys.modules[name]  # not by monkeypatch, which would put it back
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    with pytest.raises(RuntimeError, match="mamba_ssm is installed"):
        compat.install()


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
