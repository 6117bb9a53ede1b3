"""The windows of a micro-batch as chunks, each made when it is asked for, and what a chunk costs."""

from collections.abc import Callable

from torch import Tensor

from dnamamba.model.chunked_backward import State, restarted
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.objectives.objective import LossSums
from dnamamba.training.backprop import MicroBatch, micro_batch, weighted_nll
from dnamamba.training.loss_weights import EQUAL, LossWeights
from dnamamba.training.window_parts import WindowParts


class Chunks:
    """Consecutive chunks of windows that go through the model together.

    Args:
        length: positions of a chunk; the last one may be shorter.
        weights: of the bases in the loss.
        of: the part of a chunk that goes through the model here, where several ranks share it.
    """

    def __init__(
        self,
        windows: WindowParts,
        length: int,
        weights: LossWeights = EQUAL,
        of: Callable[[MicroBatch], MicroBatch] = lambda chunk: chunk,
    ) -> None:
        self.windows, self.length, self.weights, self.of = windows, length, weights, of

    def __len__(self) -> int:
        return -(-self.windows.length // self.length)

    def __getitem__(self, number: int) -> MicroBatch:
        first = number * self.length
        prepared = self.windows.chunk(first, min(first + self.length, self.windows.length))
        return self.of(micro_batch(prepared, self.weights))

    def entering(self, number: int, state: State) -> State:
        """The state that a chunk is entered with, of the one that left the chunk before: zeros in packed windows where
        another sequence begins."""
        return state if number == 0 else restarted(state, self.windows.continues(number * self.length))

    def advance(self, model: LanguageModel, number: int, state: State) -> State:
        """The state that leaves a chunk."""
        chunk = self[number]
        return model(chunk.inputs, self.entering(number, state), chunk.sequence_ids, logits=False).state

    def loss(self, model: LanguageModel, number: int, state: State) -> tuple[Tensor, LossSums]:
        """Σ weight · −ln p(target) of a chunk, () fp32, and what it is made of."""
        chunk = self[number]
        loss = model.loss(chunk.inputs, chunk.targets, self.entering(number, state), chunk.sequence_ids)
        return weighted_nll(loss, chunk.weights), loss
