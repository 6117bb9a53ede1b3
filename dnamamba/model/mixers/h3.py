"""H3 (arXiv 2212.14052): two state space models and two multiplicative gates, in place of attention's key, query and
value."""

from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.diagonal import DiagonalMixer, DiagonalState


class H3Mixer(DiagonalMixer):
    """Q ⊙ SSM_diag(SSM_shift(K) ⊙ V), with states in and out: H3 with heads of one channel.

    The shift SSM, whose A moves each state by one place, is a convolution over as many positions as it has states:
    here d_conv. Mamba's block is this with an activation for the first gate, and SiLU at the second (arXiv 2312.00752,
    section 3.4).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, projections=3, activation=None)  # query, key, value

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"H3 (S4D {config.s4d_init}), {config.d_state} states a channel, {config.discretization} discretization"

    def forward(
        self, x: Tensor, state: DiagonalState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, DiagonalState]:
        conv_state, ssm_state = state or (None, None)
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        key, conv_state = self.conv1d(key, conv_state, sequence_ids)
        y, ssm_state = self.ssm(key * value, ssm_state, sequence_ids)
        return self.out_proj(query * y), DiagonalState(conv_state, ssm_state)

    def step(self, x: Tensor, state: DiagonalState) -> tuple[Tensor, DiagonalState]:
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        key, conv_state = self.conv1d.step(key, state.conv_state)
        y, ssm_state = self.ssm.step(key * value, state.ssm_state)
        return self.out_proj(query * y), DiagonalState(conv_state, ssm_state)
