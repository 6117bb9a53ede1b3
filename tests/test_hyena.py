"""Hyena's implicit filters and its recurrence of gates, against the paper's formulas written out."""

import math

import pytest
import torch

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class
from dnamamba.model.settings import ModelSettings, model_config
from dnamamba.training.resolve import resolve
from dnamamba.training.settings import PretrainSettings


def make(**options):
    torch.manual_seed(0)
    config = ModelConfig(**({"mixer": "hyena", "d_model": 6, "filter_length": 40, "filter_width": 7} | options))
    return mixer_class("hyena")(config)


@torch.no_grad()
def test_taps_are_a_window_times_a_network_of_the_position():
    """Section 3.3; ω = 10, K = 8 waves, windows of 1 % at 0.3 to 1.5 lengths."""
    hyena = make().double()
    made = hyena.filter(50)
    for lag in (0, 1, 17, 49):
        t = lag / 40
        waves = [2 * math.pi * k * t for k in range(8)]
        x = torch.tensor([t, *map(math.cos, waves), *map(math.sin, waves)], dtype=torch.float64)
        for layer in hyena.filter.hidden:
            x = torch.sin(10 * (layer.weight @ x + layer.bias))
        decay = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, 6, dtype=torch.float64)
        taps = (hyena.filter.output.weight @ x) * torch.exp(-decay * t) * (12 * decay / 40).sqrt()
        torch.testing.assert_close(made[:, lag], taps + (1 if lag == 0 else 0))
    torch.testing.assert_close(hyena.filter(20), made[:, :20])  # of any length: the same


@torch.no_grad()
def test_it_is_two_gates_around_a_convolution():
    hyena = make(d_conv=3, conv_bias=False).double()
    x = torch.randn(1, 15, 6, dtype=torch.float64)
    projected = hyena.in_proj(x)
    taps = hyena.conv1d.weight[:, 0]
    short = torch.stack([sum(taps[:, 2 - j] * projected[0, t - j] for j in range(3) if t >= j) for t in range(15)])
    value, first, second = short.chunk(3, dim=-1)
    inside, h = first * value, hyena.filter(15)
    y = torch.stack([sum(h[:, t - s] * inside[s] for s in range(t + 1)) for t in range(15)])
    torch.testing.assert_close(hyena(x)[0][0], hyena.out_proj(second * y))


@torch.no_grad()
@pytest.mark.parametrize("length", [256, 8192])
def test_filters_keep_the_scale_of_their_input_at_any_length(length):
    hyena = make(d_model=64, filter_length=length, filter_width=64)
    energy = (hyena.filter(4 * length).square().sum(1) - 1).clamp(min=0)
    assert 0.3 < energy.mean() < 3


def test_filters_reach_over_a_window_in_training():
    settings = PretrainSettings(model=ModelSettings(preset="250k", pattern="hyena,gated_mlp"), length=4096)
    assert model_config(resolve(settings).model).filter_length == 4096
    settings.model.filter_length = 99
    assert model_config(resolve(settings).model).filter_length == 99
    assert resolve(PretrainSettings(model=ModelSettings(preset="250k"))).model.filter_length is None
