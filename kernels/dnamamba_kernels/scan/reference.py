"""The selective scan in plain PyTorch: what every other backend is compared with.

    Δ = softplus(dt + dt_bias)                            (batch, length, channels)
    Ā = exp(ΔA),  B̄ = ΔB  or  (exp(ΔA) − 1)/A · B          (batch, length, channels, state)
    h_t = Ā_t h_{t−1} + B̄_t x_t                           the state
    y_t = Σ_n C_t h_t + D x_t,   out = y · silu(z)

The length is cut into chunks; all chunks advance together, one position a step, first from a zero state
(`chunk_summaries`), then, once `propagate` has found the state that enters each chunk, from that one
(`chunk_outputs`). With one chunk of the whole length this is the recurrence itself. The backward pass does the same
with the adjoint g_t = dL/dh_t, which runs against time:

    g_t = C_t dL/dy_t + Ā_{t+1} g_{t+1}

Arithmetic is fp64 where `x` is fp64, else fp32. Letters: b batch, k chunks, j positions of a chunk, d channels, g
groups, n state.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients, ScanOptions
from dnamamba_kernels.scan.protocol import ScanBackend, ScanStep

SERIES_BELOW = 0.5  # |ΔA| under which (u eᵘ − expm1(u))/u² is summed as a series, as the difference would cancel


class ReferenceScan(ScanBackend, ScanStep):
    """Serves every device, dtype and shape."""

    def supports(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
        return None

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        """About √length: as many steps in Python within the chunks as over them."""
        return max(16, 1 << math.ceil(math.log2(max(length, 1)) / 2))

    def chunk_summaries(self, a: ScanArguments, chunk: int) -> tuple[Tensor, Tensor]:
        delta, keep = _delta(a, chunk), _keep(a, chunk)
        x, B = _fold(a.x.to(delta.dtype), chunk), _fold_map(a.B, chunk, delta.dtype)
        state = delta.new_zeros(*delta.shape[:2], *a.A.shape)
        for j in _steps(chunk, a.options.reverse):
            state = _advance(state, x[:, :, j], delta[:, :, j], a.A, _at(B, j, a.A), keep, j, a.options)
        return _decay_sums(delta, keep), state

    def propagate(
        self, dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        batch, chunks = dt_sums.shape[:2]
        state = end_states.new_zeros(batch, *A.shape) if initial_state is None else initial_state.clone()
        entering = {}  # and not slices of one tensor: no transform of torch.func is in the way of new ones
        for k in _steps(chunks, reverse):
            entering[k] = state
            lost = torch.isinf(dt_sums[:, k])[..., None]
            decay = torch.exp(dt_sums[:, k, :, None] * A)
            state = torch.where(lost, 0.0, decay * state) + end_states[:, k]  # 0 · NaN would be NaN
        return torch.stack([entering[k] for k in range(chunks)], 1), state

    def chunk_outputs(self, a: ScanArguments, chunk_states: Tensor, chunk: int) -> Tensor:
        delta, keep = _delta(a, chunk), _keep(a, chunk)
        x = _fold(a.x.to(delta.dtype), chunk)
        B, C = _fold_map(a.B, chunk, delta.dtype), _fold_map(a.C, chunk, delta.dtype)
        y = {}
        state = chunk_states
        for j in _steps(chunk, a.options.reverse):
            state = _advance(state, x[:, :, j], delta[:, :, j], a.A, _at(B, j, a.A), keep, j, a.options)
            y[j] = (state * _at(C, j, a.A)).sum(-1)
        folded = torch.stack([y[j] for j in range(chunk)], 2)
        return _skip_and_gate(_unfold(folded, a.x.shape[1]), a.x, a).to(a.x.dtype)

    def backward_summaries(self, a: ScanArguments, dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        delta, keep = _delta(a, chunk), _keep(a, chunk)
        dy = _fold(_before_gate(dy, a.z, delta.dtype), chunk)
        C = _fold_map(a.C, chunk, delta.dtype)
        adjoint = delta.new_zeros(*delta.shape[:2], *a.A.shape)
        for j in _steps(chunk, not a.options.reverse):
            adjoint = adjoint + dy[:, :, j, :, None] * _at(C, j, a.A)
            adjoint = _kept(adjoint * torch.exp(delta[:, :, j, :, None] * a.A), keep, j)
        return _decay_sums(delta, keep), adjoint

    def chunk_gradients(
        self, a: ScanArguments, dy: Tensor, chunk_states: Tensor, chunk_adjoints: Tensor, chunk: int
    ) -> ScanGradients:
        """Unlike the fast backends this one holds all states (b, k, j, d, n) while it runs."""
        (x, dt, A, B, C, D, z, dt_bias, _, _, options), length = a, a.x.shape[1]
        delta, keep = _delta(a, chunk), _keep(a, chunk)
        inputs = x.to(delta.dtype)
        folded, dy_folded = _fold(inputs, chunk), _fold(_before_gate(dy, z, delta.dtype), chunk)
        B_folded, C_folded = _fold_map(B, chunk, delta.dtype), _fold_map(C, chunk, delta.dtype)

        before = {}  # the state before each position is taken in, a reset already done
        states = {}
        state = chunk_states
        for j in _steps(chunk, options.reverse):
            before[j] = _kept(state, keep, j)
            args = folded[:, :, j], delta[:, :, j], A, _at(B_folded, j, A), None, j, options
            states[j] = state = _advance(before[j], *args)

        y, dx, ddelta = torch.zeros_like(folded), torch.zeros_like(folded), torch.zeros_like(folded)
        dA = torch.zeros_like(A, dtype=delta.dtype)
        dB, dC = torch.zeros_like(B_folded), torch.zeros_like(C_folded)
        adjoint = chunk_adjoints
        for j in _steps(chunk, not options.reverse):
            step, B_j, C_j = delta[:, :, j, :, None], _at(B_folded, j, A), _at(C_folded, j, A)
            decay, weight = torch.exp(step * A), _input_weight(step, A, options)
            y[:, :, j] = (C_j * states[j]).sum(-1)
            _add_at(dC, j, states[j] * dy_folded[:, :, j, :, None])
            adjoint = adjoint + dy_folded[:, :, j, :, None] * C_j
            dx[:, :, j] = (adjoint * weight * B_j).sum(-1)
            _add_at(dB, j, adjoint * weight * folded[:, :, j, :, None])
            d_weight = adjoint * B_j * folded[:, :, j, :, None]
            d_product = adjoint * before[j] * decay  # dL/d(ΔA) through the decay
            if options.zoh:  # weight = expm1(ΔA)/A
                ddelta[:, :, j] = (d_product * A + d_weight * decay).sum(-1)
                dA += (d_product * step + d_weight * _input_weight_slope(step, A)).sum((0, 1))
            else:  # weight = Δ
                ddelta[:, :, j] = (d_product * A + d_weight).sum(-1)
                dA += (d_product * step).sum((0, 1))
            adjoint = _kept(adjoint * decay, keep, j)

        dy_ungated = _before_gate(dy, z, delta.dtype)
        dx, y, ddt = _unfold(dx, length), _unfold(y, length), _unfold(ddelta, length)
        if options.dt_softplus:
            biased = dt.to(delta.dtype) if dt_bias is None else dt + dt_bias
            ddt = ddt * torch.where(biased > 20, 1.0, torch.sigmoid(biased))
        dD = dz = None
        if D is not None:
            y, dx, dD = y + D * inputs, dx + D * dy_ungated, (dy_ungated * inputs).sum((0, 1))
        if z is not None:
            gate = z.to(y.dtype)
            sigmoid = torch.sigmoid(gate)
            dz = (dy * y * sigmoid * (1 + gate * (1 - sigmoid))).to(z.dtype)
        return ScanGradients(
            dx.to(x.dtype),
            ddt.to(dt.dtype),
            dA,
            _unfold_map(dB, B),
            _unfold_map(dC, C),
            dD,
            dz,
            None if dt_bias is None else ddt.sum((0, 1)),
        )

    def step(self, a: ScanArguments) -> tuple[Tensor, Tensor]:
        """Differentiable, as every operation is."""
        assert a.initial_state is not None
        compute, channels = compute_dtype(a.x), a.x.shape[1]
        B, C = (
            (m if m.dim() == 2 else m.repeat_interleave(channels // m.shape[1], dim=1)).to(compute) for m in (a.B, a.C)
        )
        delta, x = a.dt.to(compute), a.x.to(compute)
        if a.dt_bias is not None:
            delta = delta + a.dt_bias
        if a.options.dt_softplus:
            delta = functional.softplus(delta)
        delta = delta[..., None]
        state = torch.exp(delta * a.A) * a.initial_state + _input_weight(delta, a.A, a.options) * B * x[..., None]
        return _skip_and_gate((state * C).sum(-1), x, a).to(a.x.dtype), state


BACKEND = ReferenceScan()


def _steps(count: int, backwards: bool) -> range:
    return range(count - 1, -1, -1) if backwards else range(count)


def _fold(values: Tensor, chunk: int) -> Tensor:
    """(b, length, …) → (b, k, j, …); the last chunk is filled with zeros, which leave the state alone as Δ is 0
    there."""
    batch, length, *rest = values.shape
    chunks = -(-length // chunk)
    padding = values.new_zeros(batch, chunks * chunk - length, *rest)
    return torch.cat([values, padding], 1).view(batch, chunks, chunk, *rest)


def _unfold(folded: Tensor, length: int) -> Tensor:
    return folded.flatten(1, 2)[:, :length]


def _delta(a: ScanArguments, chunk: int) -> Tensor:
    """Δ (b, k, j, d), 0 in the padding."""
    dt = a.dt.to(compute_dtype(a.dt))
    if a.dt_bias is not None:
        dt = dt + a.dt_bias
    return _fold(functional.softplus(dt) if a.options.dt_softplus else dt, chunk)


def _keep(a: ScanArguments, chunk: int) -> Tensor | None:
    """(b, k, j): 1 where the position continues its predecessor's sequence, 0 where the state restarts."""
    ids, reverse = a.sequence_ids, a.options.reverse
    if ids is None:
        return None
    restarts = torch.zeros_like(ids, dtype=torch.bool)
    restarts[:, : -1 if reverse else None][:, 0 if reverse else 1 :] = ids[:, 1:] != ids[:, :-1]
    return 1 - _fold(restarts.to(compute_dtype(a.dt)), chunk)


def _kept(values: Tensor, keep: Tensor | None, j: int) -> Tensor:
    """(b, k, d, n), zero where the state restarts, whatever was there (NaN, too)."""
    return values if keep is None else torch.where(keep[:, :, j, None, None] == 0, 0.0, values)


def _decay_sums(delta: Tensor, keep: Tensor | None) -> Tensor:
    sums = delta.sum(2)
    return sums if keep is None else torch.where((keep == 0).any(2)[..., None], math.inf, sums)


def _fold_map(B: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """B or C (b, length, g, n) → (b, k, j, g, n); a constant one (d, n) stays."""
    return B.to(dtype) if B.dim() == 2 else _fold(B.to(dtype), chunk)


def _unfold_map(gradient: Tensor, like: Tensor) -> Tensor:
    return (gradient if like.dim() == 2 else _unfold(gradient, like.shape[1])).to(like.dtype)


def _at(B: Tensor, j: int, A: Tensor) -> Tensor:
    """B or C at position j of every chunk, for each channel: (b, k, d, n), or (d, n) if constant."""
    return B if B.dim() == 2 else B[:, :, j].repeat_interleave(A.shape[0] // B.shape[3], dim=2)


def _add_at(gradient: Tensor, j: int, per_channel: Tensor) -> None:
    """The reverse of `_at`: adds (b, k, d, n) into the gradient of B or C."""
    if gradient.dim() == 2:
        gradient += per_channel.sum((0, 1))
    else:
        gradient[:, :, j] += per_channel.unflatten(2, (gradient.shape[3], -1)).sum(3)


def _advance(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    keep: Tensor | None,
    j: int,
    options: ScanOptions,
) -> Tensor:
    """h_t = Ā h_{t−1} + B̄ x_t for one position of every chunk; x, delta (b, k, d), state (b, k, d, n)."""
    delta, x = delta[..., None], x[..., None]
    return torch.exp(delta * A) * _kept(state, keep, j) + _input_weight(delta, A, options) * B * x


def _input_weight(delta: Tensor, A: Tensor, options: ScanOptions) -> Tensor:
    """B̄/B: Δ (euler), or (exp(ΔA) − 1)/A (zoh), whose limit for A → 0 is Δ."""
    if not options.zoh:
        return delta
    return torch.where(A == 0, delta, torch.expm1(delta * A) / torch.where(A == 0, 1.0, A))


def _input_weight_slope(delta: Tensor, A: Tensor) -> Tensor:
    """d/dA of (exp(ΔA) − 1)/A = Δ² (u eᵘ − expm1(u))/u² with u = ΔA; near 0 the series Σ_k (k−1)/k! u^(k−2)."""
    u = delta * A
    small = u.abs() < SERIES_BELOW
    near = torch.where(small, u, 0.0)
    series = torch.zeros_like(u)
    for k in range(16, 1, -1):
        series = series * near + (k - 1) / math.factorial(k)
    far = torch.where(small, 1.0, u)
    return delta**2 * torch.where(small, series, (far * torch.exp(far) - torch.expm1(far)) / far**2)


def _before_gate(dy: Tensor, z: Tensor | None, dtype: torch.dtype) -> Tensor:
    """dL/dy before the gate."""
    return dy.to(dtype) if z is None else dy.to(dtype) * functional.silu(z.to(dtype))


def _skip_and_gate(y: Tensor, x: Tensor, a: ScanArguments) -> Tensor:
    if a.D is not None:
        y = y + a.D * x
    return y if a.z is None else y * functional.silu(a.z.to(y.dtype))
