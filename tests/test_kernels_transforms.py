"""Derivatives other than autograd's own: forward mode, torch.func and its nestings; fp64 and the meta device."""

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba_kernels import causal_conv1d, gated_rms_norm, rms_norm, rotary, selective_scan, ssd_scan
from dnamamba_kernels.compat import selective_scan_fn

LENGTH, CHANNELS, STATE = 5, 4, 3


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


DECAY = -random(CHANNELS, STATE).abs()


def scan(x: Tensor, dt: Tensor, B: Tensor) -> Tensor:
    A = DECAY.to(x.dtype)
    y, state = selective_scan(x, dt, A, B, B, D=A[:, 0].contiguous(), z=dt, dt_bias=A[:, 1].contiguous())
    return (y**2).sum() + (state**2).sum()


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y, state = causal_conv1d(x, weight, bias)
    return (y**2).sum() + (state**2).sum()


def norm(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    y, new = rms_norm(x, weight, residual=residual)
    return (y**3).sum() + (new**2).sum()


def gated_norm(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    return (gated_rms_norm(x, z, weight, eps=0.5) ** 3).sum()


def ssd(x: Tensor, weight: Tensor, B: Tensor) -> Tensor:
    x, B = x.unflatten(-1, (2, -1)), B.unsqueeze(-2)
    decay = -(weight**2).expand(x.shape[:3])
    y, state = ssd_scan(x, decay, 1 + decay, B, B, D=weight)
    return (y**2).sum() + (state**2).sum()


def rotated(qkv: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    angles = torch.arange(2.0, dtype=qkv.dtype).expand(LENGTH, 2)
    query, key, value = rotary(qkv.unflatten(-1, (3, 1, 4)), angles.cos(), angles.sin())
    return (query**2 * key + value**3).mul(weight).sum() + (other**2).sum()


SHAPES = {
    scan: ((1, LENGTH, CHANNELS), (1, LENGTH, CHANNELS), (1, LENGTH, STATE)),
    conv: ((1, LENGTH, CHANNELS), (CHANNELS, 3), (CHANNELS,)),
    norm: ((1, LENGTH, CHANNELS), (CHANNELS,), (1, LENGTH, CHANNELS)),
    gated_norm: ((1, LENGTH, CHANNELS), (CHANNELS,), (1, LENGTH, CHANNELS)),
    rotated: ((1, LENGTH, 12), (CHANNELS,), (1, LENGTH, 2)),
    ssd: ((1, LENGTH, CHANNELS), (2,), (1, LENGTH, STATE)),
}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's, for its own rules
cases = pytest.mark.parametrize("f", SHAPES)


def inputs(f, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return tuple(random(*shape, dtype=dtype) + 0.1 * number for number, shape in enumerate(SHAPES[f]))


def autograd(f, *at: Tensor) -> tuple[Tensor, ...]:
    """The operators' own gradient, which other tests compare with finite differences."""
    at = tuple(each.clone().requires_grad_() for each in at)
    return torch.autograd.grad(f(*at), at)


def slope(f, at: tuple[Tensor, ...], along: tuple[Tensor, ...], h: float = 1e-6) -> float:
    """By differences, in fp64."""
    ahead, behind = (tuple(a + sign * h * v for a, v in zip(at, along, strict=True)) for sign in (1, -1))
    return float((f(*ahead) - f(*behind)) / (2 * h))


@cases
def test_forward_mode_gives_the_true_tangent(f):
    at, along = inputs(f), tuple(random(*shape) for shape in SHAPES[f])
    exact = inputs(f, torch.float64)
    wanted = slope(f, exact, tuple(each.double() for each in along))
    assert float(jvp(f, at, along)[1]) == pytest.approx(wanted, rel=1e-4)
    with forward_ad.dual_level():
        dual = f(*(forward_ad.make_dual(a, v) for a, v in zip(at, along, strict=True)))
        assert float(forward_ad.unpack_dual(dual).tangent) == pytest.approx(wanted, rel=1e-4)
        assert forward_ad.unpack_dual(f(*at)).tangent is None
    x = at[0].clone().requires_grad_()  # forward over what autograd sees
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, along[0]), *at[1:])).tangent
    still = tuple(torch.zeros_like(each) for each in exact[1:])
    assert float(tangent.detach()) == pytest.approx(slope(f, exact, (along[0].double(), *still)), rel=1e-4)


@cases
def test_transforms_give_the_gradient_of_autograd(f):
    at = inputs(f)
    every = tuple(range(len(at)))
    wanted = autograd(f, *at)
    found = {
        "grad": grad(f, every)(*at),
        "vjp": vjp(f, *at)[1](torch.tensor(1.0)),
        "jacrev": jacrev(f, every)(*at),
        "jacfwd": jacfwd(f, every)(*at),
        "of a batch": tuple(each[1] for each in vmap(grad(f, every))(*(torch.stack([a + 1, a]) for a in at))),
    }
    for name, gradients in found.items():
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(
                gradient, want, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    values = vmap(f)(*(torch.stack([a + 1, a]) for a in at))
    torch.testing.assert_close(values, torch.stack([f(*(a + 1 for a in at)), f(*at)]))
    only_weights = vmap(lambda weight: f(at[0], weight, at[2]))(torch.stack([at[1], at[1] + 1]))
    torch.testing.assert_close(only_weights, torch.stack([f(*at), f(at[0], at[1] + 1, at[2])]))


@cases
def test_second_derivatives_of_torch_func_are_true(f):
    at = inputs(f, torch.float64)
    whole = hessian(lambda x: f(x, *at[1:]))(at[0]).flatten(3).flatten(0, 2)
    twice = grad(lambda x: grad(f)(x, *at[1:]).square().sum())(at[0])
    first = grad(f)(*at)
    h = 1e-6
    for index in range(0, at[0].numel(), 3):
        step = torch.zeros_like(at[0]).flatten()
        step[index] = h
        step = step.view_as(at[0])
        column = (grad(f)(at[0] + step, *at[1:]) - grad(f)(at[0] - step, *at[1:])) / (2 * h)
        torch.testing.assert_close(whole[:, index], column.flatten(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(twice.flatten(), 2 * whole @ first.flatten(), rtol=1e-8, atol=1e-8)


@cases
def test_second_derivatives_of_autograd_say_so(f):
    at = tuple(each.requires_grad_() for each in inputs(f))
    gradients = torch.autograd.grad(f(*at), at, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(sum(each.square().sum() for each in gradients), at)


def test_a_model_under_torch_func():
    model = tiny_model()
    tokens = torch.randint(0, 4, (2, 20), generator=torch.Generator().manual_seed(0))
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return functional_call(model, values, (tokens,)).logits.square().mean()

    model(tokens).logits.square().mean().backward()
    gradients = grad(loss)(parameters)
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-5, atol=1e-7)
    along = {name: random(*value.shape) if value.dim() else value for name, value in parameters.items()}
    tangent = jvp(loss, (parameters,), (along,))[1]
    torch.testing.assert_close(
        tangent, sum((gradients[name] * along[name]).sum() for name in along), rtol=1e-3, atol=1e-4
    )


def test_a_model_in_fp64_is_fp64_throughout():
    tokens = torch.randint(0, 4, (2, 40), generator=torch.Generator().manual_seed(0))
    single, double = tiny_model(), tiny_model().double()
    whole = double(tokens).logits
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole.float(), single(tokens).logits, rtol=1e-4, atol=1e-5)
    state = double(tokens[:, :20]).state
    for position in range(20, 40):
        logits, state = double.step(tokens[:, position], state)
        torch.testing.assert_close(logits, whole[:, position], rtol=1e-12, atol=1e-12)
    whole.sum().backward()
    assert {value.grad.dtype for value in double.parameters() if value.grad is not None} == {torch.float64}


def test_compat_in_fp64_is_exact():
    u, dt, A, B = (random(2, 6, 8, dtype=torch.float64) for _ in range(4))
    A, B = -A[0, :, :4].abs(), B[:, :4]
    y, last = selective_scan_fn(u, dt, A, B, B, return_last_state=True)
    state, wanted = torch.zeros(2, 6, 4, dtype=torch.float64), []
    for at in range(8):
        step = dt[:, :, at, None]
        state = torch.exp(step * A) * state + step * B[:, None, :, at] * u[:, :, at, None]
        wanted.append((state * B[:, None, :, at]).sum(-1))
    torch.testing.assert_close(y, torch.stack(wanted, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_the_meta_device_gives_shapes(residual_in_fp32):
    config = preset("demo", n_layer=2, d_model=16, d_state=4, residual_in_fp32=residual_in_fp32)
    with torch.device("meta"):
        model = LanguageModel(config)
        tokens = torch.zeros(3, 50, dtype=torch.long)
    output = model(tokens)
    assert output.logits.shape == (3, 50, 4) and output.logits.is_meta
    logits, _ = model.step(tokens[:, 0], output.state)
    assert logits.shape == (3, 4) and logits.is_meta
    output.logits.sum().backward()
    assert model.backbone.layers[0].mixer.A_log.grad.is_meta
    assert model.double()(tokens).logits.dtype == torch.float64
