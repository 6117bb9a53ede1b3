"""How far the host runs ahead of a device that is slow."""

import pytest
import torch

from dnamamba.runs import pace
from dnamamba.runs.pace import STEPS_AHEAD, Pace


def test_the_host_waits_for_all_but_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Event:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            waited.append(self.number)

    events = map(Event, range(100))
    monkeypatch.setattr(pace, "event_on", lambda device: next(events))
    steps = Pace()
    for number in range(10):
        arrived = steps.step_queued(torch.tensor([float(number), 7.0]))
        assert waited == list(range(number + 1 - STEPS_AHEAD))
        assert arrived == ([number - STEPS_AHEAD, 7.0] if number >= STEPS_AHEAD else None)


def test_a_cpu_is_not_waited_for() -> None:
    steps = Pace()
    assert [steps.step_queued(torch.tensor([number])) for number in range(5)] == [None, None, [0], [1], [2]]
