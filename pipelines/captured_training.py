"""Trains many small models at once: each step is a captured CUDA graph, and each model has a stream of its own.

A step of a small model is some hundred kernels of microseconds each, which Python queues ten times slower than the GPU
runs them. Captured once and replayed, they wait for nothing; graphs on several streams fill the GPU, each at its own
pace. What steps read is made on the device from (seed, step), for all steps of a graph at once, so a replay needs
nothing of the host and a resumed run sees the same data. On a CPU the same steps run one after the other.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from dnamamba.outputs import whole_file

BETAS = (0.9, 0.95)
EVERY = 100
"""Steps whose losses make one point of a curve"""
UNROLLED = 10
"""Steps of a graph: launching one costs the host as much as some steps take the GPU. A model's turn is as long."""
WARM_UP = 3
"""Steps run before the capture: kernels are compiled and chosen in them"""
QUEUED = 2
"""Graphs that wait for the GPU, at most: enough that it never waits for the host"""
SAVED_EVERY = 60
"""Seconds"""

Losses = Callable[[nn.Module, Tensor], Iterable[Tensor]]
"""A model and the numbers of steps, (steps,) int64 → the loss of each, computed when it is its turn"""


class Training:
    """One model with Adam at a constant rate after a linear warm-up, without decay.

    Args:
        name: of its file in the folder of checkpoints.
        model: on its device.
        losses: reads no state but its arguments; what it returns is recorded.
        steps: of the whole training.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        losses: Losses,
        *,
        steps: int,
        learning_rate: float,
        warmup: int = 1,
        betas: tuple[float, float] = BETAS,
    ) -> None:
        self.name, self.model, self.losses, self.steps = name, model, losses, steps
        self.learning_rate, self.warmup = learning_rate, warmup
        device = next(model.parameters()).device
        self.captured = device.type == "cuda"
        # In a tensor, a captured step can change it.
        self.rate: Tensor = torch.tensor(learning_rate, device=device)
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=self.rate, betas=betas, fused=True, capturable=self.captured
        )
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.curve = torch.zeros(-(-steps // EVERY), device=device)
        self.done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._queued: deque[torch.cuda.Event] = deque()
        if self.captured:
            self.stream = torch.cuda.Stream()

    @property
    def finished(self) -> bool:
        return self.done >= self.steps

    @property
    def busy(self) -> bool:
        """Whether the GPU has enough of this training to do."""
        return len(self._queued) == QUEUED and not self._queued[0].query()

    def run(self, steps: int) -> None:
        """So many steps, or their capture: nothing here makes the host wait."""
        for loss in self.losses(self.model, self.position + torch.arange(steps, device=self.position.device)):
            self.rate.copy_(self.learning_rate * ((self.position + 1) / self.warmup).clamp(max=1))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
            self.optimizer.step()
            self.curve.index_add_(0, (self.position // EVERY)[None], loss.detach()[None] / EVERY)
            self.position += 1

    def advance(self, steps: int) -> None:
        """Queues so many more steps, or those that are left."""
        steps = min(steps, self.steps - self.done)
        if self.captured:
            steps = self._replay(steps)
            self._queued.append(self.stream.record_event())
            if len(self._queued) > QUEUED:
                self._queued.popleft()
        else:
            self.run(steps)
        self.done += steps

    def _replay(self, steps: int) -> int:
        if self._graph is None:
            steps = min(WARM_UP, steps)
            self.stream.wait_stream(torch.cuda.current_stream())
            self._run_uncaptured(steps)
            torch.cuda.synchronize()
            self.optimizer.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self.stream):
                self.run(UNROLLED)
            return steps
        with torch.cuda.stream(self.stream):
            for _ in range(steps // UNROLLED):
                self._graph.replay()
        self._run_uncaptured(steps % UNROLLED)
        return steps

    def _run_uncaptured(self, steps: int) -> None:
        """Where fewer are wanted than a graph has."""
        if steps:
            with torch.cuda.stream(self.stream):
                self.run(steps)

    def save(self, folder: Path) -> None:
        """All that a resumed training needs, in FOLDER/NAME.pt."""
        if self.captured:
            self.stream.synchronize()
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / f"{self.name}.pt", overwrite=True) as partial:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "curve": self.curve,
                    "done": self.done,
                },
                partial,
            )

    def load(self, folder: Path) -> None:
        """Continues from what `save` wrote, if it did."""
        path = folder / f"{self.name}.pt"
        if not path.exists():
            return
        saved = torch.load(path, map_location=self.position.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.curve = torch.cat((saved["curve"], self.curve[len(saved["curve"]) :]))
        self.done = saved["done"]
        self.position.fill_(self.done)


def train_together(trainings: Sequence[Training], folder: Path, minutes: float) -> bool:
    """Trains until all are finished or the time is over; saves each, and returns whether all are finished."""
    for training in trainings:
        training.load(folder)
    saved = time.monotonic()
    ends = saved + 60 * minutes
    unfinished = [training for training in trainings if not training.finished]
    while unfinished and time.monotonic() < ends:
        idle = [training for training in unfinished if not training.busy]
        for training in idle:
            training.advance(UNROLLED)
        if not idle:
            time.sleep(1e-4)
        if time.monotonic() > saved + SAVED_EVERY:
            for training in trainings:
                training.save(folder)
            saved = time.monotonic()
            print("  ".join(f"{each.name} {each.done:,}" for each in unfinished), flush=True)
        unfinished = [training for training in unfinished if not training.finished]
    for training in trainings:
        training.save(folder)
    return not unfinished
