"""The Mamba mixer: a selective state space model (S6) between a short convolution and a gate.

Shapes (the legend of this file):
    batch, length   sequences and positions
    d_model         width of the residual stream
    channels (D)    expand · d_model: each is a state space model of its own
    state    (N)    numbers a channel remembers
    rank     (R)    columns from which the step Δ is projected
    width    (W)    taps of the convolution

The recurrence, for each channel d and state n (arXiv 2312.00752, equations 2 and 4, algorithm 2):
    Δ_t = softplus(dt_bias_d + dt_td)
    h_t = exp(Δ_t A_dn) h_{t−1} + B̄_tn x_td         B̄ = Δ_t B_tn ("euler") or (exp(Δ_t A_dn) − 1)/A_dn B_tn ("zoh")
    y_td = Σ_n C_tn h_tn + D_d x_td
Δ, B and C are functions of the input: a small Δ ignores it and keeps the state, a large Δ forgets the state and takes
the input.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.mixers.mixer import Mixer
from dnamamba.model.mixers.short_convolution import ShortConvolution
from dnamamba.model.norm import RMSNorm
from dnamamba.model.precision import data_dtype, full_precision
from dnamamba_kernels import (
    BlockOptions,
    BlockWeights,
    mamba_block,
    mamba_block_both_ways,
    selective_scan,
    selective_scan_step,
)
from dnamamba_kernels.eager import traced


class MambaState(NamedTuple):
    """What a Mamba mixer carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, channels), the data's dtype: the convolution's last inputs, oldest first"""
    ssm_state: Tensor
    """(batch, channels, state), fp32 always: the recurrent state h"""


class StepProjection(nn.Module):
    """dt = weight · low rank; the bias is held here but added inside the scan, in fp32, where softplus follows.

    Without a weight (`broadcast`) every channel gets the same number: Broadcast_D(Linear_1(x)). Of no columns, where
    the step is not selective, dt is zero and the bias all there is.
    """

    weight: nn.Parameter | None
    """(channels, rank)"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, rank = config.channels, config.rank
        self.channels = channels
        weight = None
        if config.dt_rank != "broadcast" and "dt" in config.selective:
            # Variance of dt about that of the low-rank columns.
            weight = nn.Parameter(torch.empty(channels, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.register_parameter("weight", weight)
        # softplus(bias) is log-uniform in [dt_min, dt_max]; softplus⁻¹(Δ) = Δ + ln(1 − e^−Δ).
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        dt = torch.empty(channels).uniform_(low, high).exp().clamp(min=config.dt_init_floor)
        self.bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, low_rank: Tensor) -> Tensor:
        """(…, rank) → (…, channels), before bias and softplus."""
        if not low_rank.shape[-1]:
            return low_rank.new_zeros(self.channels).expand(*low_rank.shape[:-1], -1)
        if self.weight is None:
            return low_rank.expand(*low_rank.shape[:-1], self.channels).contiguous()
        return F.linear(low_rank, self.weight)


class MambaMixer(Mixer):
    """in_proj → [causal convolution, SiLU, selective scan] ⊙ SiLU(gate) → out_proj, with states in and out.

    Parameters have the names and shapes of mamba-ssm's, so that public checkpoints load. Under autocast the projections
    run in the lower precision; A, D, the step's bias and the recurrent state stay fp32.
    """

    causal = True
    carries_state = True

    B: nn.Parameter | None
    """(channels, state), where B is not selective"""
    C: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        d_model, channels, state = config.d_model, config.channels, config.d_state
        self.discretization = config.discretization
        columns = {"dt": config.rank, "B": state, "C": state}
        self.sections = [count if name in config.selective else 0 for name, count in columns.items()]
        self.in_proj = nn.Linear(d_model, 2 * channels, bias=False)  # x first, then the gate z
        self.conv1d = ShortConvolution(channels, config)
        self.x_proj = nn.Linear(channels, sum(self.sections), bias=False) if any(self.sections) else None
        """dt, then B, then C, as far as they are selective"""
        self.dt_proj = StepProjection(config)
        # S4D-real: A = −(1, 2, …, N) in every channel.
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, d_model, bias=False)
        # What is not selective is a parameter, drawn as S4D's: B = 1, C of variance 1.
        self.register_parameter("B", None if self.sections[1] else nn.Parameter(torch.ones(channels, state)))
        self.register_parameter("C", None if self.sections[2] else nn.Parameter(torch.randn(channels, state)))

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        which = "" if config.selective == "dt,B,C" else f", selective: {config.selective}"
        return f"Mamba, {config.d_state} states a channel, {config.discretization} discretization{which}"

    @property
    def A(self) -> Tensor:
        """(channels, state) fp32, negative."""
        return -torch.exp(full_precision(self.A_log))

    def init_state(self, batch: int) -> MambaState:
        """Zeros: the state before the first position."""
        conv_state, A_log = self.conv1d.init_state(batch), full_precision(self.A_log)
        return MambaState(conv_state, A_log.new_zeros(batch, *A_log.shape))

    def forward(
        self, x: Tensor, state: MambaState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        """x (batch, length, d_model) → y of the same shape, and the state after the last position.

        `state` None starts from zeros. `sequence_ids` (batch, length) int32: see `Mixer.forward`.
        """
        y, state = self.mix(self.in_proj(x), state, sequence_ids)
        return self.out_proj(y), state

    def reverse(self, x: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
        y, _ = self.mix(self.in_proj(x), None, sequence_ids, reverse=True)
        return self.out_proj(y)

    def mix(
        self, xz: Tensor, state: MambaState | None, sequence_ids: Tensor | None, reverse: bool = False
    ) -> tuple[Tensor, MambaState]:
        """Between the projections: in_proj's output (batch, length, 2 · channels) → out_proj's input (batch, length,
        channels), and the state after the position that is read last."""
        x, z = xz.chunk(2, dim=-1)
        x, conv_state = self.conv1d(x, None if state is None else state.conv_state, sequence_ids, reverse)
        dt, B, C = self._maps(x)
        y, ssm_state = selective_scan(
            x,
            dt,
            self.A,
            B,
            C,
            D=self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            initial_state=None if state is None else state.ssm_state,
            sequence_ids=sequence_ids,
            reverse=reverse,
            discretization=self.discretization,
        )
        return y, MambaState(conv_state, ssm_state)

    def recomputing(
        self,
        norm: RMSNorm,
        hidden: Tensor,
        residual: Tensor | None,
        state: MambaState | None,
        sequence_ids: Tensor | None,
        recompute: Recompute,
        both_strands: bool,
    ) -> tuple[Tensor, Tensor, MambaState | None] | None:
        if both_strands:
            found = both_ways([self], norm, hidden, residual, sequence_ids, recompute, both_strands)
            return None if found is None else (*found, None)
        if not self.is_block or not torch.is_grad_enabled():
            return None
        weights, options = self.block_weights(norm, self), self.block_options(norm, recompute)
        conv_state, ssm_state = (None, None) if state is None else (state.conv_state.to(options.dtype), state.ssm_state)
        if traced(hidden, residual, conv_state, ssm_state, *weights):
            return None
        states = {"conv_state": conv_state, "ssm_state": ssm_state, "sequence_ids": sequence_ids}
        hidden, residual, *after = mamba_block(hidden, residual, weights, options, **states)
        return hidden, residual, MambaState(*after)

    @property
    def is_block(self) -> bool:
        """Whether `dnamamba_kernels` has a whole block for it: the step is selective, of a rank of its own."""
        return self.dt_proj.weight is not None

    def block_weights(self, norm: RMSNorm, projections: "MambaMixer") -> BlockWeights:
        """Those of a whole block."""
        step, x_proj = self.dt_proj.weight, self.x_proj
        assert step is not None
        assert x_proj is not None
        return BlockWeights(
            norm.weight,
            projections.in_proj.weight,
            self.conv1d.taps,
            self.conv1d.bias,
            x_proj.weight,
            step,
            self.dt_proj.bias,
            self.A,
            self.B,
            self.C,
            self.D,
            projections.out_proj.weight,
        )

    def block_options(self, norm: RMSNorm, recompute: Recompute) -> BlockOptions:
        weight = self.conv1d.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else data_dtype(weight)
        return BlockOptions(recompute, dtype, norm.epsilon, norm.residual_in_fp32, self.discretization)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One position: x (batch, d_model) → y (batch, d_model) and the state after it."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv1d.step(x, state.conv_state)
        dt, B, C = self._maps(x)
        y, ssm_state = selective_scan_step(
            x,
            dt,
            self.A,
            B,
            C,
            state.ssm_state,
            D=self.D,
            z=z,
            dt_bias=self.dt_proj.bias,
            discretization=self.discretization,
        )
        return self.out_proj(y), MambaState(conv_state, ssm_state)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt (…, channels) before bias and softplus, B and C (…, state), or (channels, state) where they are constant,
        of the convolution's output x (…, channels)."""
        columns = x[..., :0] if self.x_proj is None else self.x_proj(x)
        dt, B, C = columns.split(self.sections, dim=-1)
        return self.dt_proj(dt), B if self.B is None else self.B, C if self.C is None else self.C

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return [self.A_log]

    def castable_parameters(self) -> Iterable[Tensor]:
        step = self.dt_proj.weight
        return [*super().castable_parameters(), *([] if step is None else [step])]

    def kept_bytes(self, recompute: Recompute, width: int) -> int:
        """See `dnamamba_kernels.block.mamba_block`; the scan's states are those at every 32nd position."""
        channels, state = self.A_log.shape
        d_model, columns = self.in_proj.in_features, sum(self.sections)
        stream = 4 * (d_model + 1)
        if recompute == "all":
            return stream
        cheap = stream + width * (columns + channels) + channels * state // 8
        return cheap if recompute == "cheap" else cheap + width * (d_model + 4 * channels)

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight. Scan: 7 a channel and state (Δ·A, exp, Δx·B, the update's and the output's
        multiply and add; D, the step's softplus and the gate are left out)."""
        of_the_scan = sum(each.numel() for each in (self.A_log, self.B, self.C) if each is not None)
        return super().flops_per_token(length) - 2 * of_the_scan + 7 * self.A_log.numel()


def both_ways(
    directions: Sequence[MambaMixer],
    norm: RMSNorm,
    hidden: Tensor,
    residual: Tensor | None,
    sequence_ids: Tensor | None,
    recompute: Recompute,
    both_strands: bool,
) -> tuple[Tensor, Tensor] | None:
    """A block of mixers that read in both directions, with the projections of the first, or of one: as
    `Mixer.recomputing`."""
    first = directions[0]
    if not first.is_block:
        return None
    weights = [mixer.block_weights(norm, first) for mixer in directions]
    if traced(hidden, residual, *weights[0], *weights[-1]):
        return None
    options = first.block_options(norm, recompute)
    return mamba_block_both_ways(
        hidden, residual, weights, options, sequence_ids=sequence_ids, both_strands=both_strands
    )
