"""Operations of the models by the documented formulas, against PyTorch's counter of what really runs."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import dnamamba_kernels  # noqa: F401, its operators are counted
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.mixers import MIXERS, mixer_class
from dnamamba.model.parameters import training_flops_per_token
from dnamamba_kernels.ssd.protocol import SSDArguments
from dnamamba_kernels.ssd.reference import BACKEND as SSD

KERNELS = torch.ops.dnamamba_kernels
ATEN = torch.ops.aten
OPTIONS = {
    "mamba, constant maps": {"mixer": "mamba", "selective": "none"},
    "mamba, broadcast": {"mixer": "mamba", "dt_rank": "broadcast"},
    "s4d, real": {"mixer": "s4d", "s4d_init": "real"},
    "mamba2, wide state": {"mixer": "mamba2", "d_state": 64},
}
CASES = {name: {"mixer": name} for name in MIXERS} | OPTIONS


def scan(x, dt, A, *rest, **_):
    """ΔA, its exponential, Δx · B, the update's and the output's multiplication and addition: of x (batch, length,
    channels) and A (channels, state)."""
    return 7 * math.prod(x) * A[1]


def convolution(x, weight, *rest, **_):
    return 2 * math.prod(x) * weight[1]


def ssd(x, log_decay, weight, B, C, *rest, **_):
    """The matrix products of the plain PyTorch of these sizes."""
    shapes = x, log_decay, weight, B, C
    return count(SSD.forward, SSDArguments(*map(torch.empty, shapes), None, None, None))


def real_transform(length, dims, count):
    """5 · n log₂ n / 2 of n points."""
    return count // length * 5 * length * math.log2(length) / 2


def forward_transform(x, dims, *rest, **_):
    return real_transform(x[dims[0]], dims, math.prod(x))


def inverse_transform(x, dims, normalization, length, out_shape=None, **_):
    return real_transform(length, dims, math.prod(out_shape))


def causal_attention(query, key, value, *rest, **_):
    """Of (batch, heads, length, width): products of queries and keys, and of weights and values, up to each query."""
    *others, length, width = query
    return 2 * 2 * math.prod(others) * width * length * (length + 1) // 2


COUNTED = {
    KERNELS.selective_scan: scan,
    KERNELS.selective_scan_backward: lambda dy, dfinal, x, dt, A, *rest, **_: 2 * scan(x, dt, A),
    KERNELS.causal_conv1d: convolution,
    KERNELS.causal_conv1d_backward: lambda dy, dfinal, x, weight, *rest, **_: 2 * convolution(x, weight),
    KERNELS.ssd_scan: ssd,
    ATEN._fft_r2c: forward_transform,
    ATEN._fft_c2r: inverse_transform,
    ATEN._scaled_dot_product_flash_attention_for_cpu: causal_attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda dy, *qkv, **_: 2 * causal_attention(*qkv),
}
"""What PyTorch's counter does not know, or counts otherwise: attention that looks ahead, and again in its backward."""


def count(run, *arguments):
    counter = FlopCounterMode(display=False, custom_mapping=COUNTED)
    with counter:
        run(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [256, 4096])
@pytest.mark.parametrize("case", CASES)
def test_of_a_mixer_are_those_that_are_counted(case, length):
    """Of one sequence more in the batch, so that filters and taps, which the batch shares, do not count. No value is
    computed: sizes are real ones."""
    config = ModelConfig(d_model=128, filter_length=length, **CASES[case])
    with FakeTensorMode(), torch.no_grad():
        mixer = mixer_class(config.mixer)(config)
        counted = [count(mixer, torch.empty(batch, length, config.d_model)) for batch in (3, 4)]
        formula = mixer.flops_per_token(length)
    tolerance = 0.1 if config.mixer == "mamba2" else 0.02  # that of handing states on, which the formula leaves out
    assert formula == pytest.approx((counted[1] - counted[0]) / length, rel=tolerance)


@pytest.mark.parametrize("mixer", ["mamba", "transformer"])
def test_of_training_are_three_times_those_of_a_forward_pass(mixer):
    length = 1024
    with FakeTensorMode():
        model = LanguageModel(ModelConfig(d_model=128, n_layer=4, mixer=mixer))
        tokens = torch.zeros(2, length, dtype=torch.long)
        counted = count(lambda: model.loss(tokens, tokens).nll_sum.backward())
    assert training_flops_per_token(model, length) == pytest.approx(counted / tokens.numel(), rel=0.03)
