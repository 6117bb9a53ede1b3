"""Hyena (arXiv 2302.10866): long convolutions whose taps a small network makes, between multiplicative gates."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.cache import Cache, cache_of
from dnamamba.model.mixers.long_convolution import causal_convolution, convolution_flops
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.mixers.short_convolution import ShortConvolution
from dnamamba.model.precision import data_dtype, full_dtype, without_autocast

FREQUENCIES = 8
"""K: of the positional encoding, whose waves are 2πk/filter_length, k < K"""
SINE_FREQUENCY = 10.0
"""ω at initialisation: the network's activations are sin(ω x)"""
LAYERS = 3
"""Hidden layers of the network"""
SMALLEST, FASTEST, SLOWEST = 0.01, 0.3, 1.5
"""The windows exp(−α t) have fallen to SMALLEST at between FASTEST and SLOWEST times filter_length."""


class HyenaState(NamedTuple):
    """What a Hyena mixer carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, 3 · d_model), the data's dtype: the short convolution's last inputs, oldest first"""
    past: Cache
    """one tensor (batch, positions, d_model), the data's dtype: the long convolution's inputs"""


class ImplicitFilter(nn.Module):
    """h_t = Window(t) · FFN(PositionalEncoding(t)) (section 3.3), in fp32, for each channel and any t."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.filter_length = config.filter_length
        widths = [2 * FREQUENCIES + 1, *[config.filter_width] * LAYERS]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.output = nn.Linear(config.filter_width, config.d_model, bias=False)
        self.frequency = nn.Parameter(torch.full((config.filter_width,), SINE_FREQUENCY))
        self.bias = nn.Parameter(torch.ones(config.d_model))
        """D: of the input at its own position"""

    def forward(self, length: int) -> Tensor:
        """(channels, length): the taps of lags 0 to length − 1."""
        weight = self.output.weight
        lag = torch.arange(length, device=weight.device, dtype=full_dtype(weight))[:, None]
        t = lag / self.filter_length
        wave = 2 * math.pi * t * torch.arange(FREQUENCIES, device=t.device)
        with without_autocast(t.device):
            x = torch.cat((t, wave.cos(), wave.sin()), dim=-1)
            for layer in self.hidden:
                x = torch.sin(self.frequency * layer(x))
            slow, fast = (-math.log(SMALLEST) / each for each in (SLOWEST, FASTEST))
            decay = torch.linspace(slow, fast, weight.shape[0], device=t.device, dtype=t.dtype)
            # Outputs of variance 1/6 at first; so scaled, a channel's taps have a sum of squares of about 1.
            scale = (12 * decay / self.filter_length).sqrt()
            taps = self.output(x) * torch.exp(-decay * t) * scale
        return torch.where(lag == 0, taps + self.bias, taps).T


class HyenaMixer(Mixer):
    """Order 2: y = x² ⊙ (h * (x¹ ⊙ v)), of projections v, x¹, x² that a short convolution has passed, which stands for
    the first filter of definition 3.1. Its state is a cache: a filter of any shape has no state of constant size."""

    causal = True
    carries_state = True
    state_grows = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_model = config.d_model
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)  # v, x¹, x²
        self.conv1d = ShortConvolution(3 * d_model, config, activation=None)
        self.filter = ImplicitFilter(config)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"Hyena of order 2, filters of {config.filter_length} bases by networks {config.filter_width} wide"

    @classmethod
    def packs_on_host(cls, config: ModelConfig) -> bool:
        return True

    def init_state(self, batch: int) -> HyenaState:
        weight = self.in_proj.weight
        past = weight.new_zeros((batch, 0, self.in_proj.in_features), dtype=data_dtype(weight))
        return HyenaState(self.conv1d.init_state(batch), cache_of((past,)))

    def forward(
        self, x: Tensor, state: HyenaState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, HyenaState]:
        conv_state, past = state or (None, None)
        projected, conv_state = self.conv1d(self.in_proj(x), conv_state, sequence_ids)
        value, first, second = projected.chunk(3, dim=-1)
        inside = first * value
        if (past is None or not past.positions) and sequence_ids is None:
            y = causal_convolution(inside, self.filter(x.shape[1]))
            return self.out_proj(second * y), HyenaState(conv_state, cache_of((inside,)))
        start = cache_of((inside[:, :0],)) if past is None else past
        cache = start.followed_by((inside,), sequence_ids)
        whole, ids = cache.values[0], sequence_ids
        if (counted := start.counted) is not None:
            whole = torch.cat((torch.where(counted[..., None], start.values[0], 0), inside), dim=1)
        if ids is not None:  # what came before belongs to the first
            ids = torch.cat((ids[:, :1].expand(-1, start.positions), ids), dim=1)
        y = causal_convolution(whole, self.filter(whole.shape[1]), ids)[:, start.positions :]
        return self.out_proj(second * y), HyenaState(conv_state, cache)

    def step(self, x: Tensor, state: HyenaState) -> tuple[Tensor, HyenaState]:
        """One position: O(positions) work, the sum over all of them."""
        projected, conv_state = self.conv1d.step(self.in_proj(x), state.conv_state)
        value, first, second = projected.chunk(3, dim=-1)
        cache = state.past.with_step((first * value,))
        lag = state.past.next_position - torch.arange(cache.positions, device=x.device)
        taps = self.filter(cache.positions).T[lag.clamp(min=0)]
        if (counted := cache.counted) is not None:
            taps = torch.where(counted[..., None], taps, 0)
        y = (taps * cache.values[0]).sum(1).to(x.dtype)
        return self.out_proj(second * y), HyenaState(conv_state, cache)

    def reserve(self, state: HyenaState, steps: int) -> HyenaState:
        return state._replace(past=state.past.reserve(steps))

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return self.filter.parameters()

    def castable_parameters(self) -> Iterable[Tensor]:
        return [self.in_proj.weight, self.out_proj.weight]

    def flops_per_token(self, length: int) -> int:
        """Matrices and short taps: 2 a weight; the long convolution. The filters are shared by the batch."""
        matrices = (self.in_proj, self.conv1d, self.out_proj)
        weights = sum(module.weight.numel() for module in matrices)
        return 2 * weights + self.in_proj.in_features * convolution_flops(length)
