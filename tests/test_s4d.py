"""S4D: the recurrence, the scan and the convolution are one thing; long convolutions against sums."""

import itertools
import math

import pytest
import torch

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.mixers import long_convolution, mixer_class
from dnamamba.model.mixers.diagonal import DiagonalSSM, decays
from dnamamba.model.mixers.long_convolution import causal_convolution

INITS = ["lin", "inv", "real"]


def make_ssm(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return DiagonalSSM(ModelConfig(**({"mixer": "s4d", "d_model": 3, "d_state": 6} | options))).to(dtype)


def recurrence(ssm, x, state):
    parts = []
    for t in range(x.shape[1]):
        y, state = ssm.step(x[:, t], state)
        parts.append(y)
    return torch.stack(parts, 1), state


@pytest.mark.parametrize("length", [1, 2, 64, 131])
@pytest.mark.parametrize("discretization", ["euler", "zoh"])
@pytest.mark.parametrize("init", INITS)
def test_recurrence_scan_and_convolution_agree(init, discretization, length):
    ssm = make_ssm(s4d_init=init, discretization=discretization)
    x = torch.randn(2, length, 6, dtype=torch.float64, requires_grad=True)
    state = torch.randn_like(ssm.init_state(2)).requires_grad_()
    weight = torch.randn_like(x)
    found = []
    for y, final in (recurrence(ssm, x, state), ssm.scan(x, state), ssm.convolve(x, state)):
        loss = (y * weight).sum() + final.square().sum()
        found.append((y, final, *torch.autograd.grad(loss, [x, state, *ssm.parameters()])))
    for others in found[1:]:
        for value, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(other, value, atol=1e-12 * float(value.detach().abs().max()), rtol=1e-11)


@pytest.mark.parametrize("init", INITS)
def test_fp32_keeps_six_digits_over_many_positions(init):
    """Slow states reach over thousands of positions, and powers of Ā are made for all of them."""
    ssm = make_ssm(s4d_init=init)
    x = torch.randn(1, 4096, 6, dtype=torch.float64)
    with torch.no_grad():
        y, state = recurrence(ssm, x, ssm.init_state(1))
        found, found_state = ssm.float().convolve(x.float())
    assert (found - y).norm() < 2e-6 * y.norm()
    assert (found_state - state).norm() < 2e-6 * state.norm()


def test_training_convolves_and_packed_real_states_are_scanned(monkeypatch):
    x, ids = torch.randn(1, 9, 6), torch.zeros(1, 9, dtype=torch.int32)
    for init, (method, given) in itertools.product(INITS, [("convolve", None), ("scan", ids)]):
        ssm, calls = make_ssm(torch.float32, s4d_init=init), []
        monkeypatch.setattr(ssm, "convolve", lambda *_, calls=calls: calls.append("convolve"))
        monkeypatch.setattr(ssm, "scan", lambda *_, calls=calls: calls.append("scan"))
        ssm(x, None, given)
        assert calls == ["convolve" if init != "real" else method]


@pytest.mark.gpu
@pytest.mark.parametrize("init", INITS)
def test_real_states_are_scanned_on_a_gpu_and_the_same(init, monkeypatch):
    ssm = make_ssm(torch.float32, s4d_init=init, d_model=32, d_state=16)
    x, state = torch.randn(2, 1301, 64), torch.randn(2, 64, *ssm.C.shape[1:])
    expected, expected_state = ssm(x, state)
    ssm.cuda()
    monkeypatch.setattr(ssm, "scan" if init != "real" else "convolve", None)
    y, final = ssm(x.cuda(), state.cuda())
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.cpu(), expected_state, rtol=1e-4, atol=1e-4)


def test_decays_are_the_papers():
    """S4D-Lin: −1/2 + iπn; S4D-Inv: −1/2 + i N/π (N/(2n + 1) − 1); S4D-Real: −(n + 1)."""
    lin, inv, real = (-decays(init, 8) for init in INITS)
    torch.testing.assert_close(lin, torch.tensor([[-0.5, math.pi * n] for n in range(4)]))
    expected = [[-0.5, 8 / math.pi * (8 / (2 * n + 1) - 1)] for n in range(4)]
    torch.testing.assert_close(inv, torch.tensor(expected))
    assert real.tolist() == [[-n] for n in range(1, 9)]
    ssm = make_ssm(s4d_init="lin", d_model=512)
    torch.testing.assert_close(ssm.A[7], torch.stack([ssm.A[7, :, 0], ssm.A_imag[7]], -1))
    dt = ssm.log_dt.exp()
    assert (dt.min() > 1e-3, dt.max() < 0.1) == (True, True)
    assert ssm.C.square().sum(-1).mean().item() == pytest.approx(1, rel=0.1)


def test_the_taps_are_the_impulse_response():
    ssm = make_ssm()
    impulse = torch.zeros(1, 30, 6, dtype=torch.float64)
    impulse[:, 0] = 1
    A, C, dt = torch.view_as_complex(ssm.A), torch.view_as_complex(ssm.C), ssm.log_dt.exp()
    powers = torch.exp(dt[:, None, None] * A[..., None] * torch.arange(30))
    taps = 2 * (C[..., None] * dt[:, None, None] * powers).sum(1).real  # section 3.2, B = 1, B̄ = Δ
    taps[:, 0] += ssm.D
    torch.testing.assert_close(ssm.convolve(impulse)[0][0].T, taps)


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match=r"model\.d_state: 5 is not possible, expected an even number"):
        make_ssm(d_state=5)
    make_ssm(d_state=5, s4d_init="real")
    with pytest.raises(InputError, match=r"model\.s4d_init: an option of s4d and h3, but the blocks are of mamba"):
        preset("1.4m", s4d_init="real")
    assert preset("1.4m", mixer="s4d", s4d_init="real").mixers == ("s4d",) * 12


def direct(x, taps, ids):
    """The sum, position by position."""
    rows = []
    for t in range(x.shape[1]):
        total = torch.zeros_like(x[:, 0])
        for s in range(t + 1):
            same = (ids[:, s : t + 1] == ids[:, t : t + 1]).all(1)
            total = total + torch.where(same[:, None], taps[:, t - s] * x[:, s], 0)
        rows.append(total)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("length", [1, 2, 9, 33])
@pytest.mark.parametrize("packed", [False, True])
def test_long_convolutions_are_sums(length, packed):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(3, length, 2, dtype=torch.float64, generator=generator).requires_grad_()
    taps = torch.randn(2, length + 3, dtype=torch.float64, generator=generator).requires_grad_()
    ids = torch.randint(0, 2, (3, length), dtype=torch.int32, generator=generator) * packed
    y, expected = causal_convolution(x, taps, ids if packed else None), direct(x, taps, ids)
    torch.testing.assert_close(y, expected)
    for found, wanted in zip(
        *(torch.autograd.grad(each.sin().sum(), [x, taps]) for each in (y, expected)), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert y.stride(-1) == 1


def test_transforms_have_lengths_of_small_primes():
    for least in range(1, 3000):
        size = long_convolution._transform_length(least)
        assert least <= size <= 1.25 * least + 2
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        assert size == 1


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_mamba_without_selection_is_s4d(discretization):
    """S6 with constant Δ, B and C: by the scan's kernel here, by a convolution there."""
    shared = {"d_model": 6, "d_state": 5, "discretization": discretization}
    torch.manual_seed(0)
    mamba = mixer_class("mamba")(ModelConfig(mixer="mamba", selective="none", **shared)).double()
    s4d = mixer_class("s4d")(ModelConfig(mixer="s4d", s4d_init="real", **shared)).double()
    assert mamba.x_proj is None
    with torch.no_grad():
        mamba.B.normal_()
        mamba.A_log.add_(torch.randn_like(mamba.A_log))
        for name in ("in_proj", "conv1d", "out_proj"):
            getattr(s4d, name).load_state_dict(getattr(mamba, name).state_dict())
        s4d.ssm.A_log.copy_(mamba.A_log)
        s4d.ssm.C.copy_((mamba.B * mamba.C)[..., None])  # only the product counts
        s4d.ssm.log_dt.copy_(torch.nn.functional.softplus(mamba.dt_proj.bias).log())
    x = torch.randn(2, 77, 6, dtype=torch.float64)
    (y, state), (expected, s4d_state) = mamba(x), s4d(x)
    torch.testing.assert_close(y, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(state.ssm_state, mamba.B * s4d_state.ssm_state[..., 0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("selective", ["", "dt,", "dt,dt", "A", "dt,none"])
def test_selective_names_dt_B_and_C(selective):
    with pytest.raises(InputError, match=r"model\.selective: .* expected some of dt, B and C"):
        ModelConfig(selective=selective)


@pytest.mark.parametrize(("selective", "columns"), [("dt,B,C", 2 + 8), ("C,dt", 2 + 4), ("B", 4), ("dt", 2)])
def test_what_is_not_selective_has_no_projection(selective, columns):
    mixer = mixer_class("mamba")(ModelConfig(d_model=4, d_state=4, dt_rank=2, selective=selective))
    assert mixer.x_proj.weight.shape == (columns, 8)
    assert (mixer.B is None, mixer.C is None) == ("B" in selective, "C" in selective)
    assert (mixer.dt_proj.weight is None) == ("dt" not in selective)
