"""Mamba's block is H3's and the gated MLP's in one (arXiv 2312.00752, section 3.4): with the right parts switched off
it equals each."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class

D_MODEL, CHANNELS = 6, 12


def make(name, **options):
    torch.manual_seed(0)
    config = ModelConfig(**({"mixer": name, "d_model": D_MODEL, "d_state": 4, "conv_bias": False} | options))
    return mixer_class(name)(config).double()


@pytest.fixture
def x():
    return torch.randn(2, 50, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def share(mixer, other, *names):
    for name in names:
        getattr(mixer, name).load_state_dict(getattr(other, name).state_dict())


def test_without_its_sequence_part_it_is_the_gated_mlp(x):
    """Off: the convolution (it passes its input on), its activation, the state space model (C = 0; D = 1 passes on)."""
    mamba, mlp = make("mamba", selective="dt,B"), make("gated_mlp", d_ff=CHANNELS)
    share(mlp, mamba, "in_proj", "out_proj")
    assert (mamba(x)[0] - mlp(x)[0]).abs().max() > 0.01
    with torch.no_grad():
        mamba.conv1d.weight.zero_()[..., -1] = 1
        mamba.C.zero_()
    mamba.conv1d.activation = None
    torch.testing.assert_close(mamba(x)[0], mlp(x)[0], atol=1e-12, rtol=1e-12)


class Gates(nn.Module):
    """H3's in_proj, whose query is Mamba's SiLU(z), and whose value is σ of the convolved key: the first gate then is
    the activation that Mamba has in its place, SiLU(k) = k · σ(k)."""

    def __init__(self, mamba):
        super().__init__()
        self.mamba = mamba

    def forward(self, x):
        key, z = self.mamba.in_proj(x).chunk(2, dim=-1)
        convolved = F.pad(key, (0, 0, 3, 0)).unfold(1, 4, 1).mul(self.mamba.conv1d.taps).sum(-1)
        return torch.cat((F.silu(z), key, convolved.sigmoid()), -1)


def test_without_selection_it_is_h3_with_an_activation_for_the_first_gate(x):
    mamba, h3 = make("mamba", selective="none"), make("h3", s4d_init="real")
    share(h3, mamba, "conv1d", "out_proj")
    with torch.no_grad():
        h3.ssm.A_log.copy_(mamba.A_log)
        h3.ssm.C.copy_(mamba.C[..., None])
        h3.ssm.log_dt.copy_(F.softplus(mamba.dt_proj.bias).log())
    h3.in_proj = Gates(mamba)
    (y, state), (expected, h3_state) = mamba(x), h3(x)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state.conv_state, h3_state.conv_state)
    torch.testing.assert_close(state.ssm_state, h3_state.ssm_state[..., 0], atol=1e-12, rtol=1e-12)


def test_h3_is_two_gates_around_a_shift_and_a_diagonal_model(x):
    """By sums over positions, from the paper's algorithm 1 with heads of one channel."""
    h3 = make("h3", d_conv=3, s4d_init="real")
    query, key, value = h3.in_proj(x).chunk(3, dim=-1)
    A, C, dt = h3.ssm.A[..., 0], h3.ssm.C[..., 0], h3.ssm.log_dt.exp()
    outputs, h = [], torch.zeros(2, CHANNELS, 4, dtype=torch.float64)
    for t in range(x.shape[1]):
        shifted = sum(h3.conv1d.weight[:, 0, 2 - j] * key[:, t - j] for j in range(3) if t >= j)
        inside = shifted * value[:, t]
        h = torch.exp(dt[:, None] * A) * h + dt[:, None] * inside[..., None]
        outputs.append(query[:, t] * ((C * h).sum(-1) + h3.ssm.D * inside))
    torch.testing.assert_close(h3(x)[0], h3.out_proj(torch.stack(outputs, 1)), atol=1e-12, rtol=1e-12)
