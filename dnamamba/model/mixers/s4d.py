"""Mamba's block around S4D, a time-invariant state space model, in place of the selective one."""

from collections.abc import Iterable
from typing import NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.diagonal import DiagonalSSM
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.mixers.short_convolution import ShortConvolution


class S4DState(NamedTuple):
    """What an S4D mixer carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, channels), the data's dtype: the convolution's last inputs, oldest first"""
    ssm_state: Tensor
    """(batch, channels, states, 1 or 2), fp32 always: the recurrent state of `DiagonalSSM`"""


class S4DMixer(Mixer):
    """in_proj → [causal convolution, SiLU, S4D] ⊙ SiLU(gate) → out_proj: "S4" in Mamba's block, as Mamba's paper
    compares it (arXiv 2312.00752, table 6), with states in and out."""

    causal = True
    carries_state = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.in_proj = nn.Linear(config.d_model, 2 * config.channels, bias=False)  # x first, then the gate z
        self.conv1d = ShortConvolution(config.channels, config)
        self.ssm = DiagonalSSM(config)
        self.out_proj = nn.Linear(config.channels, config.d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"S4D ({config.s4d_init}), {config.d_state} states a channel, {config.discretization} discretization"

    def init_state(self, batch: int) -> S4DState:
        return S4DState(self.conv1d.init_state(batch), self.ssm.init_state(batch))

    def forward(
        self, x: Tensor, state: S4DState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, S4DState]:
        conv_state, ssm_state = state or (None, None)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv1d(x, conv_state, sequence_ids)
        y, ssm_state = self.ssm(x, ssm_state, sequence_ids)
        return self.out_proj(y * F.silu(z)), S4DState(conv_state, ssm_state)

    def step(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv1d.step(x, state.conv_state)
        y, ssm_state = self.ssm.step(x, state.ssm_state)
        return self.out_proj(y * F.silu(z)), S4DState(conv_state, ssm_state)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return self.ssm.undecayed_parameters()

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight; S4D's own."""
        matrices = (self.in_proj, self.conv1d, self.out_proj)
        return 2 * sum(module.weight.numel() for module in matrices) + self.ssm.flops_per_token(length)
