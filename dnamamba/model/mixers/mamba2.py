"""Mamba-2 (arXiv 2405.21060): a selective state space model whose decay is one number a head, computed by matrix
products (SSD, state space duality).

Shapes (the legend of this file):
    batch, length   sequences and positions
    heads (H), head (P)    channels = heads · head: a head is P channels that share Δ and A
    state (N)       numbers a channel remembers; B and C are shared by all heads
    chunks, chunk   the length in parts of `CHUNK` positions

For each head, with the scalars a_t = exp(Δ_t A) and w_t = Δ_t ("euler") or (a_t − 1)/A ("zoh"):
    h_t = a_t h_{t−1} + w_t x_t B_tᵀ  (P, N)      y_t = h_t C_t + D x_t
Within a chunk y = (L ∘ C Bᵀ) (w x) with L_ij = a_i ⋯ a_{j+1}: three matrix products (section 6); between chunks the
states are handed on, again by a matrix product, in which the chunks are the positions.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.mixer import Mixer, segment_numbers
from dnamamba.model.mixers.short_convolution import ShortConvolution
from dnamamba.model.precision import full_precision, without_autocast

CHUNK = 64
"""Positions of a chunk: heads · CHUNK numbers a position are kept for the backward pass."""
CHUNKS_AT_ONCE = 256
"""Chunks between which states are handed on by one product; beyond them, one after another."""


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
        conv_state, ssm_state = self.init_state(len(x)) if state is None else state
        z, xBC, dt = self.in_proj(x).split(self.sections, dim=-1)
        xBC, conv_state = self.conv1d(xBC, conv_state, sequence_ids)
        x, B, C = self._heads(xBC)
        log_decay, weight = self._steps(dt)
        y, ssm_state = ssd(x, log_decay, weight, B, C, ssm_state, sequence_ids)
        return self._output(y, x, z), Mamba2State(conv_state, ssm_state)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        z, xBC, dt = self.in_proj(x).split(self.sections, dim=-1)
        xBC, conv_state = self.conv1d.step(xBC, state.conv_state)
        x, B, C = self._heads(xBC)
        log_decay, weight = self._steps(dt)
        inputs = (weight[..., None] * x)[..., None] * B[:, None, None]
        ssm_state = log_decay.exp()[..., None, None] * state.ssm_state + inputs
        y = (ssm_state * C[:, None, None]).sum(-1).to(x.dtype)
        return self._output(y, x, z), Mamba2State(conv_state, ssm_state)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight. SSD: C Bᵀ, its product with L and with the inputs, the chunk's state and what
        it gives to the outputs; handing states on is small."""
        heads, chunk = len(self.A_log), min(CHUNK, length)
        within = 2 * chunk * self.state + heads * chunk * (1 + 2 * self.head)
        return super().flops_per_token(length) + within + 4 * heads * self.head * self.state

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, B, C = xBC.split([xBC.shape[-1] - 2 * self.state, self.state, self.state], dim=-1)
        return x.unflatten(-1, (-1, self.head)), B, C

    def _steps(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """log a = ΔA and w, each (…, heads) fp32."""
        delta = F.softplus(full_precision(dt) + self.dt_bias)
        A = -full_precision(self.A_log).exp()
        log_decay = delta * A
        return log_decay, delta if self.discretization == "euler" else torch.expm1(log_decay) / A

    def _output(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        y = (y + self.D[:, None] * x).flatten(-2) * F.silu(full_precision(z))
        return self.out_proj(self.norm(full_precision(y)).to(z.dtype))


def ssd(
    x: Tensor, log_decay: Tensor, weight: Tensor, B: Tensor, C: Tensor, state: Tensor, sequence_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y and the state after the last position.

    Args:
        x: (batch, length, heads, head), the data's dtype.
        log_decay, weight: (batch, length, heads) fp32: log a_t, at most 0, and w_t.
        B, C: (batch, length, state).
        state: (batch, heads, head, state) fp32, before the first position.
        sequence_ids: as of `Mixer.forward`.
    """
    length = x.shape[1]
    chunk = min(CHUNK, length)
    x, B, C = (_in_chunks(values, chunk) for values in (x, B, C))
    log_decay, weight = (_in_chunks(values, chunk).transpose(2, 3) for values in (log_decay, weight))
    x = x.transpose(2, 3)  # (batch, chunks, heads, chunk, head)
    reach = log_decay.cumsum(-1)  # (batch, chunks, heads, chunk): of the state before the chunk
    lasting = reach[..., -1]
    between = reach[..., :, None] - reach[..., None, :]
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    from_start = to_end = None
    if sequence_ids is not None:
        run = segment_numbers(sequence_ids)
        run = torch.cat((run, run[:, -1:].expand(-1, -length % chunk)), dim=1).unflatten(1, (-1, chunk))
        last = run[:, :, -1:]
        before = F.pad(last[:, :-1], (0, 0, 1, 0))
        seen = (seen & (run[..., :, None] == run[..., None, :]))[:, :, None]
        from_start, to_end = (run == before)[:, :, None], (run == last)[:, :, None]
        lasting = lasting.masked_fill(last != before, -torch.inf)
    # Masked before the exponential: what lies ahead would overflow.
    L = between.masked_fill(~seen, -torch.inf).exp()
    scores = C @ B.transpose(-1, -2)
    inputs = weight[..., None] * x
    y = (L * scores[:, :, None]).to(x.dtype) @ inputs.to(x.dtype)
    fade = (reach[..., -1:] - reach).exp()
    if to_end is not None:
        fade = torch.where(to_end, fade, 0)
    with without_autocast(x.device):  # states stay fp32
        made = (fade[..., None] * inputs).transpose(-1, -2) @ full_precision(B)[:, :, None]
        entering, final = _hand_on(made, lasting, state)
    carried = reach.exp()
    if from_start is not None:
        carried = torch.where(from_start, carried, 0)
    y = y + carried[..., None] * (C[:, :, None] @ entering.to(C.dtype).transpose(-1, -2))
    return y.transpose(2, 3).flatten(1, 2)[:, :length].to(x.dtype), final


def _in_chunks(values: Tensor, chunk: int) -> Tensor:
    """(batch, length, …) → (batch, chunks, chunk, …); zeros at the end neither decay a state nor add to it."""
    behind = -values.shape[1] % chunk
    if behind:
        values = F.pad(values, (0, 0) * (values.ndim - 2) + (0, behind))
    return values.unflatten(1, (-1, chunk))


def _hand_on(made: Tensor, lasting: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states that enter each chunk (batch, chunks, heads, head, state) and the one that leaves the last, from those
    that each makes of its own inputs and the logs of what it leaves of an earlier one (batch, chunks, heads).

    Sums of logs are fp64: of many chunks they are large, and their differences count.
    """
    entering = []
    for part, logs in zip(made.split(CHUNKS_AT_ONCE, dim=1), lasting.split(CHUNKS_AT_ONCE, dim=1), strict=True):
        count = part.shape[1]
        # From the end of chunk j − 1 (0 is the state before) to that of chunk i − 1.
        lost = F.pad(torch.isinf(logs).cumsum(1), (0, 0, 1, 0)).transpose(1, 2)
        sums = F.pad(logs.masked_fill(torch.isinf(logs), 0).double().cumsum(1), (0, 0, 1, 0)).transpose(1, 2)
        between = (sums[..., :, None] - sums[..., None, :]).to(part.dtype)
        kept = torch.ones(count + 1, count + 1, dtype=torch.bool, device=part.device).tril()
        decay = between.masked_fill(~(kept & (lost[..., :, None] == lost[..., None, :])), -torch.inf).exp()
        states = torch.cat((state[:, None], part), dim=1)
        found = torch.einsum("bhij,bjhpn->bihpn", decay, states)
        entering.append(found[:, :-1])
        state = found[:, -1]
    return torch.cat(entering, dim=1), state
