"""How far the host runs ahead of the device."""

from collections import deque

import torch
from torch import Tensor

STEPS_AHEAD = 2
"""Enough for the device never to wait. Each more takes pinned memory, which is slow to get: some 5 ms a step."""


def event_on(device: torch.device) -> torch.cuda.Event | None:
    """After all that a GPU has to do so far; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event


class Pace:
    """Lets the host queue the steps of a device before they are due, but not many."""

    def __init__(self) -> None:
        self._queued: deque[tuple[torch.cuda.Event | None, Tensor]] = deque()
        self._free: list[Tensor] = []
        """Of the host's memory: where no step's numbers are on their way"""

    def step_queued(self, numbers: Tensor) -> list[float] | None:
        """Waits until all but the last `STEPS_AHEAD` steps are done. `numbers` (n,) are the device's, of the step that
        is queued; returns those of the step that so many come after, None where there is none yet."""
        on_host = self._free.pop() if self._free else self._empty_like(numbers)
        on_host.copy_(numbers, non_blocking=True)
        self._queued.append((event_on(numbers.device), on_host))
        if len(self._queued) <= STEPS_AHEAD:
            return None
        event, arrived = self._queued.popleft()
        if event is not None:
            event.synchronize()
        self._free.append(arrived)
        return arrived.tolist()

    def _empty_like(self, numbers: Tensor) -> Tensor:
        return torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=numbers.is_cuda)
