"""The processes that train together, for a training loop of one's own; Lightning makes the group of pretraining.

A signal to one of them is noted there, and stops all of them at the same point: ranks vote, in what they sum anyway.
One that just left would have the others wait for it.
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from dnamamba.cli import Ended
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
        self.signal: signal.Signals | None = None
        """That this one got"""
        self.stops = False
        """Whether all have agreed on stopping"""

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

    def vote(self, device: torch.device) -> Tensor:
        """(1,) fp64: whether a signal wants this rank to stop; to be summed, and given to `follow` on each of them."""
        return torch.full((1,), float(self.signal is not None), dtype=torch.float64, device=device)

    def follow(self, votes: float) -> None:
        """Where any rank voted so, stops all of them: raises what its signal asks for on the rank that got one, and
        `Ended` by SIGTERM on the others."""
        if votes > 0:
            self.stops = True
            self._raise(self.signal or signal.SIGTERM)

    def agree(self, device: torch.device) -> None:
        """Votes and follows at once: the host waits for the device."""
        if self.size > 1:
            self.follow(float(self.sum(self.vote(device))))

    @contextmanager
    def noting_signals(self) -> Iterator[None]:
        """Inside, signals wait for the next vote; after it those that came too late for one are raised here."""
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):  # `nohup` ignores SIGHUP
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, handler)
        if self.signal is not None:
            self._raise(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signal = signal.Signals(number)

    def _raise(self, number: signal.Signals) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Ended(number)


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
    group, is_over = Group(rank, devices), False
    try:
        with group.noting_signals():
            yield group
            is_over = True
    finally:
        if makes_the_group and (is_over or group.stops):
            torch.distributed.destroy_process_group()  # by all at once: NCCL's end waits for the peers
