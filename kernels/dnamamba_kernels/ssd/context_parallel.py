"""SSD of a rank's part of a sequence: any backend's, entered with the state that the other ranks' parts leave.

A part's summaries are products over its positions (the letters are the reference's, of the part as one chunk):

    made = Σ_j F_j w_j x_j B_jᵀ      F_j = exp(R_last − R_j)
    dL/dh = Σ_i E_i dy_i C_iᵀ        E_i = exp(R_i)             where nothing arrives from later parts
"""

import torch
from torch import Tensor

from dnamamba_kernels.checks import compute_dtype
from dnamamba_kernels.context_parallel import Ranks, chain, edges, joined
from dnamamba_kernels.ssd.protocol import SSDArguments, SSDBackend, SSDGradients

_AT_ONCE = 65_536
"""Positions whose values are made in fp32 at a time"""


class SSDOverRanks(SSDBackend):
    """A part as a whole makes of a state h: exp(R_last) h + made. So does its gradient against time."""

    def __init__(self, backend: SSDBackend, ranks: Ranks) -> None:
        self.backend, self.ranks = backend, ranks

    def forward(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        entering, final = self._entering(a)
        return self.backend.forward(a._replace(initial_state=entering))[0], final

    def backward(self, a: SSDArguments, dy: Tensor, dfinal_state: Tensor | None) -> SSDGradients:
        entering, _ = self._entering(a)
        reach, run = _reach(a)
        scale = reach.exp() if run is None else torch.where(run == 0, reach.exp(), 0)
        arriving, dinitial = self._chained(a, _products(dy, scale, a.C), dfinal_state, reverse=True)
        gradients = self.backend.backward(a._replace(initial_state=entering), dy, arriving)
        return gradients._replace(initial_state=dinitial)

    def _entering(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        reach, run = _reach(a)
        scale = (reach[:, -1:] - reach).exp() * a.weight
        if run is not None:
            scale = torch.where(run == run[:, -1:], scale, 0)
        return self._chained(a, _products(a.x, scale, a.B), a.initial_state, reverse=False)

    def _chained(self, a: SSDArguments, made: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
        """What enters this rank's part, in the direction of `reverse`, and what leaves the last."""
        lasting = a.log_decay.sum(1).exp()
        if a.sequence_ids is not None:
            changes = (a.sequence_ids[:, 1:] != a.sequence_ids[:, :-1]).any(1)
            lasting = torch.where(changes[:, None], 0, lasting)
        all_lasting, all_made, *ids = self.ranks.gather(lasting, made, *edges(a.sequence_ids))
        entering, final = chain(all_lasting[..., None, None], all_made, initial, joined(ids, all_made), reverse)
        return entering[self.ranks.rank].contiguous(), final


def _reach(a: SSDArguments) -> tuple[Tensor, Tensor | None]:
    """R (batch, length, heads), and how many changes of id there were (batch, length, 1); None without ids."""
    reach = a.log_decay.cumsum(1)
    if a.sequence_ids is None:
        return reach, None
    changes = a.sequence_ids[:, 1:] != a.sequence_ids[:, :-1]
    return reach, torch.nn.functional.pad(changes, (1, 0)).cumsum(1)[..., None]


def _products(values: Tensor, scale: Tensor, maps: Tensor) -> Tensor:
    """Σ over positions of scale · values · mapsᵀ: values (batch, length, heads, head), scale (batch, length, heads),
    maps (batch, length, groups, state) → (batch, heads, head, state)."""
    dtype, groups = compute_dtype(values), maps.shape[2]
    total: Tensor | int = 0
    for v, s, m in zip(*(each.split(_AT_ONCE, dim=1) for each in (values, scale, maps)), strict=True):
        scaled = (v.to(dtype) * s[..., None]).unflatten(2, (groups, -1))
        total = total + torch.einsum("blgrp,blgn->bgrpn", scaled, m.to(dtype))
    assert isinstance(total, Tensor)
    return total.flatten(1, 2)


OVER_RANKS = SSDOverRanks
