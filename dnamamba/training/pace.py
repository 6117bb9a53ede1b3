"""How far the host runs ahead of the device."""

from collections import deque

import torch

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
        self._queued: deque[torch.cuda.Event | None] = deque()

    def step_queued(self, device: torch.device) -> None:
        """Waits until all but the last `STEPS_AHEAD` steps are done."""
        self._queued.append(event_on(device))
        while len(self._queued) > STEPS_AHEAD:
            if (event := self._queued.popleft()) is not None:
                event.synchronize()
