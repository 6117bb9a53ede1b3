"""The convolution of a rank's part of a sequence: any backend's, entered with the inputs before the part."""

import torch
from torch import Tensor

from dnamamba_kernels.context_parallel import Ranks, before_part, edges, joined
from dnamamba_kernels.conv.protocol import ConvArguments, ConvBackend


class ConvOverRanks(ConvBackend):
    """The state before a part is the last inputs of the one before. Its gradient is added to that of these inputs."""

    def __init__(self, backend: ConvBackend, ranks: Ranks) -> None:
        self.backend, self.ranks = backend, ranks

    def forward(self, a: ConvArguments) -> tuple[Tensor, Tensor]:
        entered, final = self._entered(a)
        return self.backend.forward(entered)[0], final

    def backward(
        self, a: ConvArguments, dy: Tensor, dfinal_state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        ranks, reverse, back = self.ranks, a.reverse, a.weight.shape[1] - 1
        dx, dweight, dbias, dentering = self.backend.backward(self._entered(a)[0], dy, None)
        found, *ids = ranks.gather(dentering, *edges(a.sequence_ids))
        after, same = ranks.after(reverse), joined(ids, found)
        arriving: Tensor | None = dfinal_state
        if after is not None:
            arriving = found[after]
            if same is not None:
                arriving = torch.where(same[min(after, ranks.rank)], arriving, 0)
        if arriving is not None:
            last = slice(0, back) if reverse else slice(dx.shape[1] - back, None)
            arriving = arriving.flip(1) if reverse else arriving
            if a.sequence_ids is not None:
                ids_there = a.sequence_ids[:, last]
                arriving = torch.where((ids_there == ids_there[:, 0 if reverse else -1, None])[..., None], arriving, 0)
            dx[:, last] += arriving
        return dx, dweight, dbias, found[ranks.first(reverse)].clone()

    def _entered(self, a: ConvArguments) -> tuple[ConvArguments, Tensor]:
        """The arguments of this part, and the state after the whole."""
        back = a.weight.shape[1] - 1
        before, final = before_part(a.x, back, a.initial_state, a.sequence_ids, a.reverse)
        return a._replace(initial_state=before), final


OVER_RANKS = ConvOverRanks
