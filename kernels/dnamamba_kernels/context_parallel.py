"""Context parallelism: a sequence's positions over several ranks, each of which holds a part, in the order of ranks.

Within `context_parallel` every operator that mixes positions gives what it gives on the whole sequence, this rank's
part of it, forward and backward, to rounding. What crosses a border is a state: of the convolution its last inputs, of
a scan a summary of each part, (what it leaves of the state that enters it, the state it makes of zero). The ranks
gather these, each chains those of the parts before its own, and none waits for another's scan. In the backward pass
the gradients of states go the other way. What is sent a layer depends on channels and states, and not on the length.

An initial state that is given is that before the first rank's part, the same on all ranks, and the final state, that
after the last rank's part, is returned on all: so chunks of a sequence, each over all ranks, follow one another as they
do on one device. Of their gradients the same holds. Parameters' gradients are those of a rank's own positions: to be
summed over ranks by whoever trains.

Each part has at least `LEAST` positions. All ranks call the same operators in the same order, on as many sequences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 8
"""Positions of a part: more than a convolution's state"""
_ALIGNED = 16
"""Bytes: where a tensor begins among those that are gathered together"""
_gather_into = getattr(torch.distributed, "all_gather_single", torch.distributed.all_gather_into_tensor)
"""torch 2.13 has renamed it"""


class Ranks:
    """The ranks over which a sequence is spread, in the order of their parts."""

    def __init__(self, group: torch.distributed.ProcessGroup) -> None:
        self.group = group
        self.size, self.rank = group.size(), group.rank()
        self.on_host = torch.distributed.get_backend(group) == "gloo"
        """gloo gathers in the host's memory"""

    def gather(self, *tensors: Tensor) -> list[Tensor]:
        """Each of the same shape on all ranks → each (ranks, …), on all of them, in one operation."""
        flat = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in tensors]
        widths = [-(-len(each) // _ALIGNED) * _ALIGNED for each in flat]
        mine = flat[0]
        if widths != [len(mine)]:
            mine = mine.new_empty(sum(widths))
            for each, slot in zip(flat, mine.split(widths), strict=True):
                slot[: len(each)] = each
        device = mine.device
        if self.on_host:
            mine = mine.cpu()
        found = mine.new_empty(self.size * len(mine))
        _gather_into(found, mine, group=self.group)
        parts = found.to(device).view(self.size, -1).split(widths, dim=1)
        return [
            part[:, : len(each)].view(tensor.dtype).view(self.size, *tensor.shape)
            for part, each, tensor in zip(parts, flat, tensors, strict=True)
        ]

    def first(self, reverse: bool) -> int:
        """The rank whose part comes first in time: the last one where time runs from the right."""
        return self.size - 1 if reverse else 0

    def last(self, reverse: bool) -> int:
        return self.first(not reverse)

    def before(self, reverse: bool) -> int | None:
        """The rank whose part comes before this one's in time; None of the first."""
        return None if self.rank == self.first(reverse) else self.rank + (1 if reverse else -1)

    def after(self, reverse: bool) -> int | None:
        return self.before(not reverse)


_ranks: Ranks | None = None
"""For all threads: autograd's run the backward pass."""


@contextmanager
def context_parallel(ranks: Ranks | None) -> Iterator[None]:
    """Within it the operators take their sequences for parts of longer ones, in forward and in backward passes. None
    changes nothing."""
    global _ranks
    earlier, _ranks = _ranks, ranks
    try:
        yield
    finally:
        _ranks = earlier


def current_ranks() -> Ranks | None:
    """Those of the `context_parallel` that this runs in."""
    return _ranks


def edges(sequence_ids: Tensor | None) -> list[Tensor]:
    """What ranks gather of a part's ids (batch, length), to know whether its first and last sequence cross a border:
    none, or (batch, 2) of one."""
    return [] if sequence_ids is None else [sequence_ids[:, [0, -1]]]


def joined(gathered: list[Tensor], like: Tensor) -> Tensor | None:
    """(ranks − 1, batch, 1, …) bool with as many dimensions as `like` (ranks, batch, …): whether the sequence at the
    border after a rank's part continues behind it. Of what came of `edges`; None where all do."""
    if not gathered:
        return None
    ids = gathered[0]
    same = ids[:-1, :, 1] == ids[1:, :, 0]
    return same.view(*same.shape, *[1] * (like.dim() - 2))


def chain(
    lasting: Tensor, made: Tensor, initial: Tensor | None, same: Tensor | None, reverse: bool
) -> tuple[list[Tensor], Tensor]:
    """The states that enter the parts, by rank, and the one that leaves the last in time: h ← lasting · h + made.

    Args:
        lasting: (ranks, batch, …), what is left of a state behind a part; where it is zero, of NaN, too.
        made: (ranks, batch, …), the state behind it that it makes of zero.
        initial: (batch, …); None is zero.
        same: as from `joined`.
        reverse: from the last rank to the first.
    """
    ranks = len(made)
    state = torch.zeros_like(made[0]) if initial is None else initial
    entering: dict[int, Tensor] = {}
    for number in range(ranks):
        rank = ranks - 1 - number if reverse else number
        if number and same is not None:
            state = torch.where(same[rank if reverse else rank - 1], state, 0)
        entering[rank] = state
        state = torch.where(lasting[rank] == 0, 0, lasting[rank] * state) + made[rank]
    return [entering[rank] for rank in range(ranks)], state


def enter(lasting: Tensor, made: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that enters this rank's part, and the one that leaves the last rank's; differentiable in all.

    Args:
        lasting: of this part, as in `chain`: (batch, …), or less if it is the same for all; real or complex.
        made: (batch, …) of this part.
        initial: (batch, …) before the first rank's part.
    """
    assert _ranks is not None, "within context_parallel"
    return _Enter.apply(_ranks, lasting, made, initial)


class _Enter(torch.autograd.Function):
    """`enter`. With g the gradient of the state that enters a part, which is that of this rank's use of it plus that of
    the state behind it times what lasts: gathered, and chained the other way."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, lasting: Tensor, made: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        all_lasting, all_made = ranks.gather(lasting, made)
        entering, final = chain(all_lasting, all_made, initial, None, reverse=False)
        ctx.ranks = ranks
        ctx.given = initial is not None
        ctx.save_for_backward(all_lasting, entering[ranks.rank])
        return entering[ranks.rank].clone(), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dentering: Tensor, dfinal: Tensor) -> Any:
        all_lasting, entering = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        (used,) = ranks.gather(dentering)
        leaving, dinitial = chain(all_lasting.conj().resolve_conj(), used, dfinal, None, reverse=True)
        dmade = leaving[ranks.rank]
        dlasting = (dmade * entering.conj()).sum_to_size(all_lasting.shape[1:])
        return None, dlasting, dmade, dinitial if ctx.given else None


def before_part(
    values: Tensor, count: int, initial: Tensor | None, sequence_ids: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The `count` values that come before this rank's part in time, and the last ones of the whole, on all ranks; both
    (batch, count, …), the earliest first. What belongs to another sequence than the neighbouring position is zero.

    Args:
        values: (batch, length, …), of `LEAST` positions at least.
        initial: (batch, count, …), before the first part in time; None is zero.
    """
    ranks = _ranks
    assert ranks is not None, "within context_parallel"
    assert values.shape[1] >= count, f"{values.shape[1]} positions of a part, {count} are handed on"
    own = values[:, :count].flip(1) if reverse else values[:, values.shape[1] - count :]
    if sequence_ids is not None:
        ids = sequence_ids[:, :count].flip(1) if reverse else sequence_ids[:, sequence_ids.shape[1] - count :]
        own = torch.where((ids == ids[:, -1:]).view(*ids.shape, *[1] * (own.dim() - 2)), own, 0)
    tails, *borders = ranks.gather(own, *edges(sequence_ids))
    final, before = tails[ranks.last(reverse)].clone(), ranks.before(reverse)
    if before is None:
        return (torch.zeros_like(own) if initial is None else initial), final
    same = joined(borders, tails)
    if same is None:
        return tails[before], final
    return torch.where(same[min(before, ranks.rank)], tails[before], 0), final
