"""H3 (arXiv 2212.14052): two state space models and two multiplicative gates, in place of attention's key, query and
value."""

from collections.abc import Iterable
from typing import NamedTuple

import torch.nn as nn
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.diagonal import DiagonalSSM
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.mixers.short_convolution import ShortConvolution


class H3State(NamedTuple):
    """What an H3 mixer carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, channels), the data's dtype: the last keys, which is all that the shift SSM remembers"""
    ssm_state: Tensor
    """(batch, channels, states, 1 or 2), fp32 always: the recurrent state of `DiagonalSSM`"""


class H3Mixer(Mixer):
    """Q ⊙ SSM_diag(SSM_shift(K) ⊙ V), with states in and out: H3 with heads of one channel.

    The shift SSM, whose A moves each state by one place, is a convolution over as many positions as it has states:
    here d_conv. Mamba's block is this with an activation for the first gate, and SiLU at the second (arXiv 2312.00752,
    section 3.4).
    """

    causal = True
    carries_state = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.in_proj = nn.Linear(config.d_model, 3 * config.channels, bias=False)  # query, key, value
        self.conv1d = ShortConvolution(config.channels, config, activation=None)
        self.ssm = DiagonalSSM(config)
        self.out_proj = nn.Linear(config.channels, config.d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"H3 (S4D {config.s4d_init}), {config.d_state} states a channel, {config.discretization} discretization"

    def init_state(self, batch: int) -> H3State:
        return H3State(self.conv1d.init_state(batch), self.ssm.init_state(batch))

    def forward(
        self, x: Tensor, state: H3State | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, H3State]:
        conv_state, ssm_state = state or (None, None)
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        key, conv_state = self.conv1d(key, conv_state, sequence_ids)
        y, ssm_state = self.ssm(key * value, ssm_state, sequence_ids)
        return self.out_proj(query * y), H3State(conv_state, ssm_state)

    def step(self, x: Tensor, state: H3State) -> tuple[Tensor, H3State]:
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        key, conv_state = self.conv1d.step(key, state.conv_state)
        y, ssm_state = self.ssm.step(key * value, state.ssm_state)
        return self.out_proj(query * y), H3State(conv_state, ssm_state)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return self.ssm.undecayed_parameters()

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight; S4D's own."""
        matrices = (self.in_proj, self.conv1d, self.out_proj)
        return 2 * sum(module.weight.numel() for module in matrices) + self.ssm.flops_per_token(length)
