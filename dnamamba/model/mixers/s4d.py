"""Mamba's block around S4D, a time-invariant state space model, in place of the selective one."""

import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.diagonal import DiagonalMixer, DiagonalState


class S4DMixer(DiagonalMixer):
    """in_proj → [causal convolution, SiLU, S4D] ⊙ SiLU(gate) → out_proj: "S4" in Mamba's block, as Mamba's paper
    compares it (arXiv 2312.00752, table 6), with states in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, projections=2, activation="silu")  # x first, then the gate z

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"S4D ({config.s4d_init}), {config.d_state} states a channel, {config.discretization} discretization"

    def forward(
        self, x: Tensor, state: DiagonalState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, DiagonalState]:
        conv_state, ssm_state = state or (None, None)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv1d(x, conv_state, sequence_ids)
        y, ssm_state = self.ssm(x, ssm_state, sequence_ids)
        return self.out_proj(y * F.silu(z)), DiagonalState(conv_state, ssm_state)

    def step(self, x: Tensor, state: DiagonalState) -> tuple[Tensor, DiagonalState]:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv1d.step(x, state.conv_state)
        y, ssm_state = self.ssm.step(x, state.ssm_state)
        return self.out_proj(y * F.silu(z)), DiagonalState(conv_state, ssm_state)
