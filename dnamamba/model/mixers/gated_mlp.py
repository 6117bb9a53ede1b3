"""The gated MLP (SwiGLU, arXiv 2002.05202): it mixes no positions, and stands between mixers that do."""

from collections.abc import Iterable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.mixer import Mixer


class GatedMLP(Mixer):
    """in_proj → x ⊙ SiLU(gate) → out_proj, at each position by itself: Mamba's block without convolution and state
    space model. Its state is empty."""

    causal = True
    carries_state = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.in_proj = nn.Linear(config.d_model, 2 * config.mlp_width, bias=False)  # x first, then the gate z
        self.out_proj = nn.Linear(config.mlp_width, config.d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        return f"gated MLP, {config.mlp_width} wide"

    def init_state(self, batch: int) -> tuple[()]:
        return ()

    def forward(
        self, x: Tensor, state: tuple[()] | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, tuple[()]]:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(x * F.silu(z)), ()

    def step(self, x: Tensor, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self.forward(x)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]
