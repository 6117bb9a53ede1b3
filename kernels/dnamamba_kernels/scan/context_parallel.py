"""The scan of a rank's part of a sequence: any backend's, entered with the state that the other ranks' parts leave."""

from typing import Any

import torch
from torch import Tensor

from dnamamba_kernels.context_parallel import Ranks, chain, edges, joined
from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients
from dnamamba_kernels.scan.protocol import ScanBackend


class ScanOverRanks(ScanBackend):
    """A part as a whole makes of a state h: exp(A ΣΔ) h + end. So does its gradient against time."""

    def __init__(self, backend: ScanBackend, ranks: Ranks) -> None:
        self.backend, self.ranks = backend, ranks

    def __getattr__(self, name: str) -> Any:
        """The phases are those of a part."""
        return getattr(self.backend, name)

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        return self.backend.chunk_length(batch, length, channels, state, groups)

    def forward(self, a: ScanArguments, chunk: int, keep_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        entering, final = self._chained(*self.backend.summary(a), a, a.initial_state, a.options.reverse)
        y, _, states = self.backend.forward(a._replace(initial_state=entering), chunk, keep_states)
        return y, final, states

    def backward(
        self, a: ScanArguments, dy: Tensor, dfinal_state: Tensor | None, kept_states: Tensor, chunk: int
    ) -> tuple[ScanGradients, Tensor]:
        summary = self.backend.adjoint_summary(a, dy)
        arriving, dinitial = self._chained(*summary, a, dfinal_state, not a.options.reverse)
        gradients, _ = self.backend.backward(a, dy, arriving, kept_states, chunk)
        return gradients, dinitial

    def _chained(
        self, dt_sum: Tensor, end: Tensor, a: ScanArguments, initial: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """What enters this rank's part, in the direction of `reverse`, and what leaves the last."""
        dt_sums, ends, *ids = self.ranks.gather(dt_sum, end, *edges(a.sequence_ids))
        # +inf: nothing survives the part
        lasting = torch.where(dt_sums.isinf()[..., None], 0.0, (dt_sums[..., None] * a.A).exp())
        entering, final = chain(lasting, ends, initial, joined(ids, ends), reverse)
        return entering[self.ranks.rank].contiguous(), final


OVER_RANKS = ScanOverRanks
