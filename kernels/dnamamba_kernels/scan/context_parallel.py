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
        border = _Border(self, a, a.initial_state, a.options.reverse)
        y, _, states = self.backend.forward_across(a, border.across, chunk, keep_states)
        return y, border.final, states

    def backward(
        self, a: ScanArguments, dy: Tensor, dfinal_state: Tensor | None, kept_states: Tensor, chunk: int
    ) -> tuple[ScanGradients, Tensor]:
        border = _Border(self, a, dfinal_state, not a.options.reverse)
        gradients = self.backend.backward_across(a, dy, border.across, kept_states, chunk)
        return gradients, border.final


class _Border:
    """What passes over the borders of parts in one direction, from `initial` before the first to `final`."""

    final: Tensor
    """After the last part, as soon as `across` has been called"""

    def __init__(self, scan: ScanOverRanks, a: ScanArguments, initial: Tensor | None, reverse: bool) -> None:
        self.scan, self.a, self.initial, self.reverse = scan, a, initial, reverse

    def across(self, dt_sum: Tensor, end: Tensor) -> Tensor:
        """What enters this rank's part."""
        ranks, A = self.scan.ranks, self.a.A
        dt_sums, ends, *ids = ranks.gather(dt_sum, end, *edges(self.a.sequence_ids))
        if not ids:  # parts follow one another as chunks do: one kernel, where the host is what takes time
            in_time = dt_sums.transpose(0, 1), ends.transpose(0, 1)
            initial = None if self.initial is None else self.initial.contiguous()
            states, self.final = self.scan.backend.propagate(*in_time, A, initial, self.reverse)
            return states[:, ranks.rank].contiguous()
        # +inf: nothing survives the part
        lasting = torch.where(dt_sums.isinf()[..., None], 0.0, (dt_sums[..., None] * A).exp())
        entering, self.final = chain(lasting, ends, self.initial, joined(ids, ends), self.reverse)
        return entering[ranks.rank].contiguous()


OVER_RANKS = ScanOverRanks
