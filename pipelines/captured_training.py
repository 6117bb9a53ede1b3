"""Trains many small models at once: each step is a captured CUDA graph, and each model has a stream of its own.

A step of a small model is some hundred kernels of microseconds each, which Python queues ten times slower than the GPU
runs them. Captured once and replayed, they wait for nothing; graphs on several streams fill the GPU. What a step reads
is made on the device from (seed, step), so a replay needs nothing of the host and a resumed run sees the same data. On
a CPU the same steps run one after the other.
"""

import time
from collections.abc import Callable, Sequence
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

Loss = Callable[[nn.Module, Tensor], Tensor]
"""A model and the step's number, () int64 → the loss to be minimised"""


class Training:
    """One model with Adam at a constant rate after a linear warm-up, without decay.

    Args:
        name: of its file in the folder of checkpoints.
        model: on its device.
        loss: reads no state but its arguments; what it returns is recorded.
        steps: of the whole training.
    """

    def __init__(
        self, name: str, model: nn.Module, loss: Loss, *, steps: int, learning_rate: float, warmup: int = 1
    ) -> None:
        self.name, self.model, self.loss, self.steps = name, model, loss, steps
        self.learning_rate, self.warmup = learning_rate, warmup
        device = next(model.parameters()).device
        self.captured = device.type == "cuda"
        # In a tensor, a captured step can change it.
        self.rate: Tensor = torch.tensor(learning_rate, device=device)
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=self.rate, betas=BETAS, fused=True, capturable=self.captured
        )
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.curve = torch.zeros(-(-steps // EVERY), device=device)
        self.done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        if self.captured:
            self.stream = torch.cuda.Stream()

    @property
    def finished(self) -> bool:
        return self.done >= self.steps

    def step(self) -> None:
        """One step, or its capture: nothing here makes the host wait."""
        self.rate.copy_(self.learning_rate * ((self.position + 1) / self.warmup).clamp(max=1))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.position)
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
        else:
            for _ in range(steps):
                self.step()
        self.done += steps

    def _replay(self, steps: int) -> int:
        if self._graph is None:
            steps = min(WARM_UP, steps)
            self.stream.wait_stream(torch.cuda.current_stream())
            self._run(steps)
            torch.cuda.synchronize()
            self.optimizer.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self.stream):
                for _ in range(UNROLLED):
                    self.step()
            return steps
        with torch.cuda.stream(self.stream):
            for _ in range(steps // UNROLLED):
                self._graph.replay()
        self._run(steps % UNROLLED)
        return steps

    def _run(self, steps: int) -> None:
        """Uncaptured, where fewer are wanted than a graph has."""
        with torch.cuda.stream(self.stream):
            for _ in range(steps):
                self.step()

    def save(self, folder: Path) -> None:
        """All that a resumed training needs, in FOLDER/NAME.pt."""
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
        self.curve[: len(saved["curve"])] = saved["curve"][: len(self.curve)]
        self.done = saved["done"]
        self.position.fill_(self.done)


def train_together(trainings: Sequence[Training], folder: Path, minutes: float) -> bool:
    """Trains until all are finished or the time is over; saves each, and returns whether all are finished."""
    for training in trainings:
        training.load(folder)
    ends, shown = time.monotonic() + 60 * minutes, time.monotonic()
    unfinished = [training for training in trainings if not training.finished]
    while unfinished and time.monotonic() < ends:
        for training in unfinished:
            training.advance(UNROLLED)
        if unfinished[0].captured:
            unfinished[0].stream.synchronize()  # the queue stays short
        if time.monotonic() > shown + 20:
            shown = time.monotonic()
            print("  ".join(f"{each.name} {each.done:,}" for each in unfinished), flush=True)
        unfinished = [training for training in unfinished if not training.finished]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    for training in trainings:
        training.save(folder)
    return not unfinished
