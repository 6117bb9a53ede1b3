"""The causal depthwise convolution over a few positions that stands before most mixers' main part."""

import torch.nn as nn
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.precision import data_dtype
from dnamamba_kernels import causal_conv1d, causal_conv1d_step


class ShortConvolution(nn.Conv1d):
    """Weight (channels, 1, width) and bias with torch's initialisation; the fused kernel does the work. Its state,
    (batch, width − 1, channels) in the data's dtype, is its last inputs, oldest first."""

    def __init__(self, channels: int, config: ModelConfig, activation: str | None = "silu") -> None:
        super().__init__(channels, channels, config.d_conv, groups=channels, bias=config.conv_bias)
        self.activation = activation

    @property
    def taps(self) -> Tensor:
        """(channels, width), the newest input's last."""
        return self.weight.squeeze(1)

    def init_state(self, batch: int) -> Tensor:
        """Zeros: before the first position."""
        shape = batch, self.kernel_size[0] - 1, self.out_channels
        return self.weight.new_zeros(shape, dtype=data_dtype(self.weight))

    def forward(  # type: ignore[override]
        self, x: Tensor, state: Tensor | None = None, sequence_ids: Tensor | None = None, reverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x (batch, length, channels) → y of the same shape, and the state after it; see `Mixer.forward`. `reverse`
        reads from the last position to the first."""
        return causal_conv1d(
            x,
            self.taps,
            self.bias,
            activation=self.activation,
            initial_state=None if state is None else state.to(x.dtype),
            sequence_ids=sequence_ids,
            reverse=reverse,
        )

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One position: x (batch, channels)."""
        return causal_conv1d_step(x, self.taps, self.bias, state.to(x.dtype), activation=self.activation)
