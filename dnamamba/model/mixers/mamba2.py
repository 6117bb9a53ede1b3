"""Mamba-2 (arXiv 2405.21060): a selective state space model whose decay is one number a head, computed by matrix
products (SSD, state space duality; `dnamamba_kernels.ssd_scan`).

Shapes (the legend of this file):
    batch, length   sequences and positions
    heads (H), head (P)    channels = heads · head: a head is P channels that share Δ and A
    state (N)       numbers a channel remembers; B and C are shared by all heads

For each head, with the scalars a_t = exp(Δ_t A) and w_t = Δ_t ("euler") or (a_t − 1)/A ("zoh"):
    h_t = a_t h_{t−1} + w_t x_t B_tᵀ  (P, N)      y_t = h_t C_t + D x_t
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.mixers.short_convolution import ShortConvolution
from dnamamba.model.precision import full_precision
from dnamamba_kernels import gated_rms_norm, ssd_scan

CHUNK = 64
"""Positions of a chunk of the kernels, within which every position meets every earlier one"""
ALIGNED = 16
"""Columns of in_proj's output come in multiples of so many: rows of any other length are read and written slowly."""


class Mamba2State(NamedTuple):
    """What a Mamba-2 mixer carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, channels + 2 · state), the data's dtype: the convolution's last inputs, oldest first"""
    ssm_state: Tensor
    """(batch, heads, head, state), fp32 always: the recurrent state h"""


class Mamba2Mixer(Mixer):
    """in_proj → [causal convolution, SiLU, SSD] ⊙ SiLU(gate) → RMSNorm → out_proj, with states in and out.

    Parameters have the names and shapes of mamba-ssm's with one group. Matrix products within chunks run in the data's
    dtype; Δ, decays and the states between chunks are fp32.
    """

    causal = True
    carries_state = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        channels, self.state = config.channels, config.d_state
        self.head = config.head_width(channels)
        heads = channels // self.head
        self.discretization, self.epsilon = config.discretization, config.norm_epsilon
        self.sections = [channels, channels + 2 * self.state, heads]
        self.in_proj = nn.Linear(config.d_model, sum(self.sections), bias=False)  # the gate z; x, B and C; Δ
        self.conv1d = ShortConvolution(channels + 2 * self.state, config)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.empty(heads).uniform_(low, high).exp().clamp(min=config.dt_init_floor)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(channels, eps=config.norm_epsilon)
        self.out_proj = nn.Linear(channels, config.d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        width = config.head_width(config.channels)
        return f"Mamba-2, {config.channels // width} heads of {width}, {config.d_state} states a channel"

    def init_state(self, batch: int) -> Mamba2State:
        A_log = full_precision(self.A_log)
        return Mamba2State(self.conv1d.init_state(batch), A_log.new_zeros(batch, len(A_log), self.head, self.state))

    def forward(
        self, x: Tensor, state: Mamba2State | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, Mamba2State]:
        conv_state, ssm_state = (None, None) if state is None else state
        z, xBC, dt = self._project(x)
        xBC, conv_state = self.conv1d(xBC, conv_state, sequence_ids)
        x, B, C = self._heads(xBC)
        y, ssm_state = ssd_scan(
            x,
            *self._steps(dt),
            B[..., None, :],
            C[..., None, :],
            D=self.D,
            initial_state=ssm_state,
            sequence_ids=sequence_ids,
        )
        return self._output(y, z), Mamba2State(conv_state, ssm_state)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xBC, dt = self._project(x)
        xBC, conv_state = self.conv1d.step(xBC, state.conv_state)
        x, B, C = self._heads(xBC)
        log_decay, weight = self._steps(dt)
        inputs = (weight[..., None] * x)[..., None] * B[:, None, None]
        ssm_state = log_decay.exp()[..., None, None] * state.ssm_state + inputs
        y = (ssm_state * C[:, None, None]).sum(-1) + self.D[:, None] * x
        return self._output(y.to(x.dtype), z), Mamba2State(conv_state, ssm_state)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight. SSD: C Bᵀ, its product with L and with the inputs, the chunk's state and what
        it gives to the outputs; handing states on is small."""
        heads, chunk = len(self.A_log), min(CHUNK, length)
        within = 2 * chunk * self.state + heads * chunk * (1 + 2 * self.head)
        return super().flops_per_token(length) + within + 4 * heads * self.head * self.state

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (…, channels), x with B and C (…, channels + 2 · state), and Δ before bias and softplus (…, heads)."""
        weight = self.in_proj.weight
        behind = -len(weight) % ALIGNED
        columns = F.linear(x, F.pad(weight, (0, 0, 0, behind)) if behind else weight)
        z, xBC, dt, _ = columns.split([*self.sections, behind], dim=-1)
        return z, xBC, dt

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, B, C = xBC.split([xBC.shape[-1] - 2 * self.state, self.state, self.state], dim=-1)
        return x.unflatten(-1, (-1, self.head)), B, C

    def _steps(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """log a = ΔA and w, each (…, heads) fp32."""
        delta = F.softplus(full_precision(dt) + self.dt_bias)
        A = -full_precision(self.A_log).exp()
        log_decay = delta * A
        return log_decay, delta if self.discretization == "euler" else torch.expm1(log_decay) / A

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        """y (…, heads, head) gated by z, normalised and projected. What is projected is as large as y: in training with
        half precision it is computed again in the backward pass rather than kept."""
        y = y.flatten(-2)
        if torch.is_grad_enabled() and y.dtype.itemsize == 2:
            return checkpoint(self._gated_projection, y, z, use_reentrant=False, preserve_rng_state=False)
        return self._gated_projection(y, z)

    def _gated_projection(self, y: Tensor, z: Tensor) -> Tensor:
        return self.out_proj(gated_rms_norm(y, z, self.norm.weight, eps=self.epsilon))
