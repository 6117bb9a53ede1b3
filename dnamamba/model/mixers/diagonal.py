"""The diagonal state space model S4D (arXiv 2206.11893): time-invariant, with real or complex A.

For each channel d and state n, with B = 1, since only the product of B and C counts (section 3.2):

    h_t = Ā h_{t−1} + B̄ x_t,   y_t = Σ_n C_n h_tn + D x_t          Ā = exp(ΔA), B̄ = Δ or (exp(ΔA) − 1)/A

A complex state stands for itself and its conjugate: y_t = 2 Re Σ_n C_n h_tn, so that N/2 of them are N real numbers.
All of time is one convolution with the taps K̄_l = Σ_n C_n Ā_n^l B̄_n (Mamba, arXiv 2312.00752, equation 3).

Three ways to the same numbers: `step` is the recurrence, `scan` runs over chunks, `convolve` makes the taps and
transforms. The taps are a Vandermonde product, and with l = i·c + j and c ≈ √length it is a small matrix product for
each channel, (length/c, N) · (N, c). Memory: the taps, channels · length numbers, and channels · N · 2√length.

Shapes (the legend of this file):
    batch, length   sequences and positions
    channels        each is a state space model of its own
    numbers   (N)   real numbers of state a channel; states (S): N real ones, or N/2 complex ones
Complex numbers are pairs of real ones in the last dimension, (…, 2), in parameters and states; real ones are (…, 1).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.long_convolution import causal_convolution, convolution_flops
from dnamamba.model.mixers.mixer import Mixer, segment_numbers
from dnamamba.model.mixers.short_convolution import ShortConvolution
from dnamamba.model.precision import full_precision, without_autocast
from dnamamba_kernels import current_ranks, enter, selective_scan

CHUNK = 64
"""Positions of a chunk of the complex scan."""


def decays(init: str, numbers: int) -> Tensor:
    """(states, 1 or 2) fp32: −A at initialisation, real and imaginary parts (section 4.2; "real" is S4D-Real)."""
    if init == "real":
        return torch.arange(1.0, numbers + 1)[:, None]
    if numbers % 2:
        raise InputError(f"model.d_state: {numbers} is not possible, expected an even number: complex states are pairs")
    n = torch.arange(numbers // 2, dtype=torch.float32)
    inverse = numbers / math.pi * (numbers / (2 * n + 1) - 1)
    frequency = math.pi * n if init == "lin" else inverse
    return torch.stack((torch.full_like(n, 0.5), -frequency), dim=-1)


class DiagonalSSM(nn.Module):
    """y and the state after it, of x (batch, length, channels): y in x's dtype, states (batch, channels, states, 1 or
    2) in fp32. Arithmetic is fp32, or fp64 where the parameters and x are."""

    A_imag: nn.Parameter | None
    """(channels, states)"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.channels
        self.discretization = config.discretization
        decay = decays(config.s4d_init, config.d_state).repeat(channels, 1, 1)
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(low, high))
        self.A_log = nn.Parameter(decay[..., 0].log())
        is_complex = decay.shape[-1] == 2
        self.register_parameter("A_imag", nn.Parameter(-decay[..., 1]) if is_complex else None)
        self.C = nn.Parameter(torch.randn(decay.shape) / math.sqrt(decay.shape[-1]))
        self.D = nn.Parameter(torch.ones(channels))

    @property
    def A(self) -> Tensor:
        """(channels, states, 1 or 2); the real part is negative."""
        real = -full_precision(self.A_log).exp()
        return real[..., None] if self.A_imag is None else torch.stack((real, full_precision(self.A_imag)), -1)

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return [self.A_log] if self.A_imag is None else [self.A_log, self.A_imag]

    def init_state(self, batch: int) -> Tensor:
        """Zeros."""
        return full_precision(self.C).new_zeros(batch, *self.C.shape)

    def forward(
        self, x: Tensor, state: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """By convolution, or of real states on a GPU by the kernel of the selective scan. `state` None starts from
        zeros; `sequence_ids`: see `Mixer.forward`. Real states of packed windows are scanned anywhere: the kernel knows
        the ids, whereas transforms must wait for them on the host."""
        if self.A_imag is None and (sequence_ids is not None or (x.is_cuda and x.dtype != torch.float64)):
            return self.scan(x, state, sequence_ids)
        return self.convolve(x, state, sequence_ids)

    def convolve(
        self, x: Tensor, state: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The whole length at once: O(length · log length), and no state but the last is ever made."""
        length = x.shape[1]
        with without_autocast(x.device):
            log_decay, B = self._discrete()
            C = full_precision(self.C)
            taps = _vandermonde(_times(C, B)[:, None], log_decay, length)[:, 0]
            y = causal_convolution(x, taps + F.pad(self.D[:, None], (0, length - 1)), sequence_ids)
            is_last = is_first = None
            if sequence_ids is not None:
                segment = segment_numbers(sequence_ids)
                is_first, is_last = segment == 0, segment == segment[:, -1:]
            final = _times(B, _final_state(full_precision(x), log_decay, is_last))
            left = None
            if current_ranks() is not None:
                assert sequence_ids is None, "packed windows with complex states are on one rank"
                state, left = _entered(_power(log_decay, length), final, state)
            if state is not None:
                reach = _times(_times(C, _power(log_decay, 1)), state)
                seen = _vandermonde(reach.transpose(0, 1), log_decay, length).permute(1, 2, 0)
                kept = _times(_power(log_decay, length), state)
                if is_first is not None:
                    seen = torch.where(is_first[..., None], seen, 0)
                    kept = torch.where(is_first[:, -1, None, None, None], kept, 0)
                y, final = y + seen, final + kept if left is None else left
        return y.to(x.dtype), final

    def scan(self, x: Tensor, state: Tensor | None = None, sequence_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Real states by the kernel of the selective scan, whose maps may be constant. Complex ones, without
        `sequence_ids`, chunk by chunk, the state handed on: O(length) work and memory."""
        with without_autocast(x.device):
            if self.A_imag is not None:
                assert sequence_ids is None, "packed windows with complex states are convolved"
                return self._scan_chunks(x, self.init_state(len(x)) if state is None else state)
            A = self.A[..., 0].contiguous()
            y, final = selective_scan(
                x,
                x.new_zeros(x.shape[-1]).expand(x.shape),
                A,
                torch.ones_like(A),
                full_precision(self.C)[..., 0].contiguous(),
                D=self.D,
                dt_bias=full_precision(self.log_dt).exp(),
                dt_softplus=False,
                initial_state=None if state is None else state[..., 0].contiguous(),
                sequence_ids=sequence_ids,
                discretization=self.discretization,
            )
        return y, final[..., None]

    def _scan_chunks(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for part in x.split(CHUNK, dim=1):
            y, state = self.convolve(part, state)
            parts.append(y)
        return torch.cat(parts, dim=1), state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One position: x (batch, channels)."""
        with without_autocast(x.device):
            log_decay, B = self._discrete()
            state = _times(_power(log_decay, 1), state) + B * full_precision(x)[..., None, None]
            y = _real_sum(_times(full_precision(self.C), state)) + self.D * x
        return y.to(x.dtype), state

    def flops_per_token(self, length: int) -> int:
        """The convolution, D, and the last state's sum over the inputs; the taps are shared by the batch."""
        return self.D.numel() * (convolution_flops(length) + 2) + 2 * self.C.numel()

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log Ā = ΔA and B̄, both (channels, states, 1 or 2)."""
        A = self.A
        dt = full_precision(self.log_dt).exp()[:, None, None]
        if self.discretization == "euler":
            B = dt.expand(*A.shape[:2], 1)
            return dt * A, B if A.shape[-1] == 1 else F.pad(B, (0, 1))
        return dt * A, _divided(_expm1(dt * A), A)


# --- Numbers of one or two parts ------------------------------------------------------------------------------------


def _times(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[-1] == 1:
        return a * b
    (ar, ai), (br, bi) = a.unbind(-1), b.unbind(-1)
    return torch.stack((ar * br - ai * bi, ar * bi + ai * br), -1)


def _entered(lasting: Tensor, made: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that enters this rank's part, and the one after the last rank's."""
    if made.shape[-1] == 1:
        return enter(lasting, made, initial)
    initial = None if initial is None else torch.view_as_complex(initial.contiguous())
    entering, final = enter(torch.view_as_complex(lasting), torch.view_as_complex(made), initial)
    return torch.view_as_real(entering), torch.view_as_real(final)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[-1] == 1:
        return a / b
    conjugate = torch.stack((b[..., 0], -b[..., 1]), -1)
    return _times(a, conjugate) / b.square().sum(-1, keepdim=True)


def _expm1(z: Tensor) -> Tensor:
    """exp(z) − 1 without cancellation: exp(a) cos b − 1 = expm1(a) cos b − 2 sin²(b/2)."""
    if z.shape[-1] == 1:
        return torch.expm1(z)
    a, b = z.unbind(-1)
    return torch.stack((torch.expm1(a) * b.cos() - 2 * (b / 2).sin().square(), a.exp() * b.sin()), -1)


def _power(log_decay: Tensor, exponents: int | Tensor) -> Tensor:
    """exp(exponent · log_decay): (channels, states, parts), or (channels, exponents, states, parts) of several."""
    if isinstance(exponents, Tensor):
        log_decay, exponents = log_decay[:, None], exponents[:, None, None]
    z = log_decay * exponents
    if z.shape[-1] == 1:
        return z.exp()
    a, b = z.unbind(-1)
    size = a.exp()
    return torch.stack((size * b.cos(), size * b.sin()), -1)


def _real_sum(a: Tensor) -> Tensor:
    """Σ over states of a + its conjugate (…, states, parts) → (…)."""
    return a[..., 0].sum(-1) * a.shape[-1]


def _cut(length: int) -> tuple[int, int]:
    """(parts, positions of each), both about √length, whose product is at least the length, and is the length if that
    is a power of two: nothing has to be padded."""
    width = 1 << (length - 1).bit_length() // 2
    return -(-length // width), width


def _vandermonde(weight: Tensor, log_decay: Tensor, length: int) -> Tensor:
    """Σ_n weight_n exp(l · log_decay_n), with conjugates, for l < length: weights (channels, any number, states, parts)
    → (channels, that number, length)."""
    parts, width = _cut(length)
    count = torch.arange(max(parts, width), device=weight.device, dtype=weight.dtype)
    outer = _times(weight[:, :, None], _power(log_decay, count[:parts] * width)[:, None])
    if weight.shape[-1] == 2:  # 2 Re(ab) = 2 Re(a) Re(b) − 2 Im(a) Im(b), as a product of real matrices
        outer = torch.stack((2 * outer[..., 0], -2 * outer[..., 1]), -1)
    inner = _power(log_decay, count[:width])
    sums = outer.flatten(3).flatten(1, 2) @ inner.flatten(2).transpose(1, 2)
    return sums.view(*weight.shape[:2], parts * width)[..., :length]


def _final_state(x: Tensor, log_decay: Tensor, counted: Tensor | None) -> Tensor:
    """Σ_t exp((length − 1 − t) log_decay) x_t, over positions that are `counted` (batch, length) if that is given:
    (batch, channels, states, parts)."""
    if counted is not None:
        x = torch.where(counted[..., None], x, 0)
    batch, length, channels = x.shape
    parts, width = _cut(length)
    x = F.pad(x, (0, 0, parts * width - length, 0))
    count = torch.arange(max(parts, width), device=x.device, dtype=x.dtype)
    inner = _power(log_decay, count[:width].flip(0)).flatten(2)  # (channels, width, states · parts)
    x = x.view(batch * parts, width, channels).permute(2, 0, 1)
    sums = (x @ inner).view(channels, batch, parts, *log_decay.shape[1:])
    outer = _power(log_decay, count[:parts].flip(0) * width)
    return _times(outer[:, None].expand_as(sums), sums).sum(2).transpose(0, 1)


class DiagonalState(NamedTuple):
    """What a mixer around S4D carries from one position to the next."""

    conv_state: Tensor
    """(batch, width − 1, channels), the data's dtype: the convolution's last inputs, oldest first"""
    ssm_state: Tensor
    """(batch, channels, states, 1 or 2), fp32 always: the recurrent state of `DiagonalSSM`"""


class DiagonalMixer(Mixer):
    """The parts of a mixer around S4D: projections, a short convolution, `DiagonalSSM`. Subclasses connect them."""

    causal = True
    carries_state = True

    def __init__(self, config: ModelConfig, projections: int, activation: str | None) -> None:
        """`projections`: how many tensors of the inner width `in_proj` makes; `activation`: the convolution's."""
        super().__init__(config)
        self.in_proj = nn.Linear(config.d_model, projections * config.channels, bias=False)
        self.conv1d = ShortConvolution(config.channels, config, activation)
        self.ssm = DiagonalSSM(config)
        self.out_proj = nn.Linear(config.channels, config.d_model, bias=False)

    @classmethod
    def packs_on_host(cls, config: ModelConfig) -> bool:
        return config.s4d_init != "real"

    def init_state(self, batch: int) -> DiagonalState:
        return DiagonalState(self.conv1d.init_state(batch), self.ssm.init_state(batch))

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def undecayed_parameters(self) -> Iterable[Tensor]:
        return self.ssm.undecayed_parameters()

    def flops_per_token(self, length: int) -> int:
        """Matrices and taps: 2 a weight; S4D's own."""
        matrices = (self.in_proj, self.conv1d, self.out_proj)
        return 2 * sum(module.weight.numel() for module in matrices) + self.ssm.flops_per_token(length)
