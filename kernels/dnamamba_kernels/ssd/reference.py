"""SSD in plain PyTorch: what every other backend is compared with, and what runs on a CPU.

    h_t = a_t h_{t−1} + w_t x_t B_tᵀ    (head, state)        y_t = h_t C_t + D x_t        a_t = exp(log_decay_t)

The length is cut into chunks. With R_i = log a_1 + … + log a_i within a chunk, and h the state that enters it:

    y = (L ∘ C Bᵀ) (w x) + E h C + D x        L_ij = exp(R_i − R_j) for j ≤ i        E_i = exp(R_i)
    made = Σ_j F_j w_j x_j B_jᵀ               F_j = exp(R_last − R_j)                 h_next = exp(R_last) h + made

that is three matrix products a chunk (arXiv 2405.21060, section 6), and a recurrence over chunks. A change of id within
the chunk makes zeros of what reaches over it, in L, E, F and exp(R_last).

Backwards, with g = dL/dh_next and the same letters; G_ij = dy_i · x_j:

    u = (L ∘ C Bᵀ)ᵀ dy + F B gᵀ               dx = w u + D dy                         dw = u · x
    dS = Σ_heads L ∘ w_j G                    dC = dS B + Σ E dy h                    dB = dSᵀ C + Σ F w x g
    dL/dh = exp(R_last) g + Σ_i E_i dy_i C_iᵀ, which is g of the chunk before

log a_t decays what passes from before t to t or later. Its gradient is the sum over all such pairs: those within the
chunk, Σ_{j < t ≤ i} M_ij with M = (L ∘ C Bᵀ) ∘ w_j G, from sums of M's rows and columns; those from h (at i ≥ t) and
to g (from j < t); and from h to g.

Arithmetic is fp64 where `x` is fp64, else fp32. Letters: b batch, k chunks, g groups, r heads of a group, q positions
of a chunk, p numbers of a head, n state.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.ssd.protocol import SSDArguments, SSDBackend, SSDGradients

CHUNK = 64
"""Positions of a chunk"""


class ReferenceSSD(SSDBackend):
    """Serves every device, dtype and shape."""

    def forward(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        c = _chunks(a)
        entering, final = _propagate(c, _products(c.x, c.to_end * c.weight, c.B), a.initial_state, reverse=False)
        y = (c.decays * (c.C @ c.B.mT) * c.weight.mT) @ c.x + c.from_start * (c.C @ entering.mT)
        if a.D is not None:
            y = y + _per_head(a.D, a) * c.x
        return _whole(y, a.x.shape[1]).to(a.x.dtype), final.flatten(1, 2)

    def backward(self, a: SSDArguments, dy: Tensor, dfinal_state: Tensor | None) -> SSDGradients:
        c, length = _chunks(a), a.x.shape[1]
        dy = _in_chunks(dy.to(c.x.dtype), c.decays.shape[-1], c.B.shape[2])
        entering, _ = _propagate(c, _products(c.x, c.to_end * c.weight, c.B), a.initial_state, reverse=False)
        leaving, dinitial = _propagate(c, _products(dy, c.from_start, c.C), dfinal_state, reverse=True)
        scores = c.decays * (c.C @ c.B.mT)
        given = c.to_end * (c.B @ leaving.mT)
        u = scores.mT @ dy + given
        dx, dweight = c.weight * u, (u * c.x).sum(-1)
        G = c.weight.mT * (dy @ c.x.mT)
        dscores = (c.decays * G).sum(3, keepdim=True)
        dC_of_heads = c.from_start * (dy @ entering)
        dB_of_heads = c.to_end * c.weight * (c.x @ leaving)
        dC = dscores @ c.B + dC_of_heads.sum(3, keepdim=True)
        dB = dscores.mT @ c.C + dB_of_heads.sum(3, keepdim=True)
        within = scores * G
        from_before = within.sum(-1) - within.sum(-2) + (c.C * dC_of_heads).sum(-1)
        to_next = c.weight[..., 0] * (given * c.x).sum(-1)
        dlog = from_before.flip(-1).cumsum(-1).flip(-1) + to_next.cumsum(-1) - to_next
        dlog = dlog + (c.lasting * leaving * entering).sum((-1, -2))[..., None]
        dD = None
        if a.D is not None:
            dx = dx + _per_head(a.D, a) * dy
            dD = (dy * c.x).sum((0, 1, 4, 5)).flatten()
        return SSDGradients(
            _whole(dx, length).to(a.x.dtype),
            _whole(dlog[..., None], length)[..., 0],
            _whole(dweight[..., None], length)[..., 0],
            _whole(dB, length).to(a.B.dtype),
            _whole(dC, length).to(a.C.dtype),
            dD,
            dinitial.flatten(1, 2),
        )


BACKEND = ReferenceSSD()


class _Chunks(NamedTuple):
    """The arguments in chunks."""

    x: Tensor
    """(b, k, g, r, q, p)"""
    weight: Tensor
    """(b, k, g, r, q, 1), as all that follow up to `to_end`: w"""
    from_start: Tensor
    """E"""
    to_end: Tensor
    """F"""
    lasting: Tensor
    """(b, k, g, r, 1, 1): what is left at the end of the state that enters"""
    decays: Tensor
    """(b, k, g, r, q, q): L"""
    B: Tensor
    """(b, k, g, 1, q, n)"""
    C: Tensor


def _chunks(a: SSDArguments) -> _Chunks:
    dtype, groups = compute_dtype(a.x), a.B.shape[2]
    chunk = min(CHUNK, a.x.shape[1])
    x, log_decay, weight = (
        _in_chunks(each.to(dtype), chunk, groups) for each in (a.x, a.log_decay[..., None], a.weight[..., None])
    )
    B, C = (_in_chunks(each.to(dtype), chunk, groups) for each in (a.B, a.C))
    reach = log_decay.cumsum(-2)
    last = reach[..., -1:, :]
    past = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    # Masked before the exponential: what lies ahead would overflow.
    if a.sequence_ids is None:
        decays = (reach - reach.mT).masked_fill(~past, -torch.inf).exp()
        return _Chunks(x, weight, reach.exp(), (last - reach).exp(), last.exp(), decays, B, C)
    run = _runs(a.sequence_ids, chunk)
    ended = run[..., -1:, :]
    decays = (reach - reach.mT).masked_fill(~(past & (run == run.mT)), -torch.inf).exp()
    from_start, to_end = torch.where(run == 0, reach.exp(), 0), torch.where(run == ended, (last - reach).exp(), 0)
    return _Chunks(x, weight, from_start, to_end, torch.where(ended == 0, last.exp(), 0), decays, B, C)


def _runs(sequence_ids: Tensor, chunk: int) -> Tensor:
    """(b, k, 1, 1, q, 1): how many changes of id there were in the chunk, its first position's included."""
    changes = functional.pad(sequence_ids[:, 1:] != sequence_ids[:, :-1], (1, -sequence_ids.shape[1] % chunk))
    return changes.unflatten(1, (-1, chunk)).cumsum(-1)[:, :, None, None, :, None]


def _in_chunks(values: Tensor, chunk: int, groups: int) -> Tensor:
    """(b, length, heads or groups, …) → (b, k, g, r, q, …); zeros at the end neither decay a state nor add to it."""
    values = functional.pad(values, (0, 0, 0, 0, 0, -values.shape[1] % chunk))
    return values.unflatten(2, (groups, -1)).unflatten(1, (-1, chunk)).permute(0, 1, 3, 4, 2, 5)


def _whole(values: Tensor, length: int) -> Tensor:
    """The reverse of `_in_chunks`, for four dimensions."""
    return values.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, :length]


def _per_head(D: Tensor, a: SSDArguments) -> Tensor:
    """(g, r, 1, 1)"""
    return D.view(a.B.shape[2], -1, 1, 1)


def _products(values: Tensor, scale: Tensor, maps: Tensor) -> Tensor:
    """Σ_q scale values mapsᵀ (b, k, g, r, p, n)."""
    return (scale * values).mT @ maps


def _propagate(c: _Chunks, made: Tensor, state: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """The states (b, k, g, r, p, n) that enter each chunk from before, or from behind, and the one after the last."""
    now = torch.zeros_like(made[:, 0]) if state is None else state.unflatten(1, made.shape[2:4])
    entering = {}
    for k in range(made.shape[1] - 1, -1, -1) if reverse else range(made.shape[1]):
        entering[k] = now
        lasting = c.lasting[:, k]
        now = torch.where(lasting == 0, 0.0, lasting * now) + made[:, k]  # 0 · NaN would be NaN
    return torch.stack([entering[k] for k in range(made.shape[1])], 1), now
