"""The processes that train together, for a training loop of one's own; Lightning makes the group of pretraining."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from dnamamba.parallel.agreement import refuse_disagreement
from dnamamba.parallel.processes import PATIENCE, process_rank

Value = TypeVar("Value")
Items = TypeVar("Items", bound=Sequence[Any] | np.ndarray)


class Group:
    """This process among them; one that is alone hears nothing but itself, and waits for nobody.

    All ranks call the same methods in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def share(self, items: Items) -> Items:
        """This rank's: all ranks together have each item once."""
        return cast(Items, items[self.rank :: self.size])

    def sum(self, values: Tensor) -> Tensor:
        """Over all ranks, on each of them."""
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def most(self, number: int, device: torch.device) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number, device=device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def as_first(self, value: Value) -> Value:
        """What the first rank has, on each of them: what they decide, they decide alike."""
        if self.size == 1:
            return value
        held = [value if self.is_first else None]
        torch.distributed.broadcast_object_list(held, src=0)
        return held[0]  # type: ignore[return-value]


ALONE = Group()


@contextmanager
def joined(devices: int, on_gpu: bool, settings: dict[str, Any]) -> Iterator[Group]:
    """Inside, all of them are there; a single device has no others. Raises `InputError` on all ranks where their
    `settings`, by dotted names, are not the same."""
    if devices == 1:
        yield ALONE
        return
    rank = process_rank().rank
    makes_the_group = not torch.distributed.is_initialized()
    if makes_the_group:
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", rank=rank, world_size=devices, timeout=PATIENCE
        )
    refuse_disagreement(settings)
    yield Group(rank, devices)
    if makes_the_group:
        torch.distributed.destroy_process_group()  # by all at once: NCCL's end waits for the peers
