"""The state of mixers that look at all earlier positions again: what they keep of each of them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Cache(NamedTuple):
    """Values of positions, in tensors that grow by each position, or in tensors with free positions (`reserve`)."""

    values: tuple[Tensor, ...]
    """each (batch, positions, …)"""
    begin: Tensor
    """(batch, 1) int64: the first position that counts, where several segments have been packed into a window; (batch,
    0) where all count"""
    end: Tensor
    """(batch, 1) int64: positions that are filled, the others being free; (batch, 0) where all are"""

    @property
    def positions(self) -> int:
        """The free ones too."""
        return self.values[0].shape[1]

    @property
    def next_position(self) -> Tensor:
        """(1 or batch, 1) int64: of what comes next."""
        return self.end if self.end.shape[1] else torch.full((1, 1), self.positions, device=self.end.device)

    @property
    def counted(self) -> Tensor | None:
        """(batch, positions) bool: what a later position sees; None if all."""
        position = torch.arange(self.positions, device=self.begin.device)
        parts = []
        if self.begin.shape[1]:
            parts.append(position >= self.begin)
        if self.end.shape[1]:
            parts.append(position < self.end)
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]

    def followed_by(self, values: tuple[Tensor, ...], sequence_ids: Tensor | None = None) -> "Cache":
        """With a chunk's values, each (batch, length, …), after its own: a new cache. With `sequence_ids` (batch,
        length) the last id's alone count, as of `Mixer.forward`'s state."""
        assert not self.end.shape[1], "a state with free positions is for single steps"
        grown = Cache(tuple(torch.cat(pair, dim=1) for pair in zip(self.values, values, strict=True)), *self[1:])
        if sequence_ids is None:
            return grown
        changed = sequence_ids[:, 1:] != sequence_ids[:, :-1]
        position = torch.arange(1, sequence_ids.shape[1], device=changed.device)
        start = pad(torch.where(changed, position, 0), (1, 0)).amax(dim=1, keepdim=True)  # of the last segment
        before = self.begin if self.begin.shape[1] else torch.zeros_like(start)
        return grown._replace(begin=torch.where(start > 0, start + self.positions, before))

    def with_step(self, values: tuple[Tensor, ...]) -> "Cache":
        """With one position's values, each (batch, …): grown, or where positions are free filled in place, which takes
        no gradients."""
        if not self.end.shape[1]:
            return self.followed_by(tuple(value[:, None] for value in values))
        sequence = torch.arange(len(self.end), device=self.end.device)
        for kept, value in zip(self.values, values, strict=True):
            kept.index_put_((sequence, self.end[:, 0]), value.to(kept.dtype))
        return self._replace(end=self.end + 1)

    def reserve(self, steps: int) -> "Cache":
        """A copy with so many more free positions."""
        values = tuple(
            torch.cat((value, value.new_zeros(len(value), steps, *value.shape[2:])), dim=1) for value in self.values
        )
        end = self.end.clone() if self.end.shape[1] else self.end.new_full((len(self.end), 1), self.positions)
        return Cache(values, self.begin.clone(), end)


def cache_of(values: tuple[Tensor, ...]) -> Cache:
    """Of positions that all count; none of them where values are (batch, 0, …)."""
    none = torch.zeros(len(values[0]), 0, dtype=torch.int64, device=values[0].device)
    return Cache(values, none, none)
