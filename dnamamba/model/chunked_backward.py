"""The exact gradient of a sequence of any length in the memory of one chunk.

The future of a causal state space model depends on its past through the states alone. So the sequence is run in chunks
without a graph, and the states that enter each chunk are kept. Then the chunks come again, the last one first, each
with a graph from its states: what arrives at them is the gradient of the loss of all that follows, and is handed to the
chunk before. Nothing is truncated; the price is one more forward pass. (Gradient checkpointing, arXiv 1604.06174, along
the length in place of the depth.)

For a model of one's own, `backward_in_chunks` does both:

>>> from dnamamba import MambaBlock, backward_in_chunks
>>> block, head = MambaBlock(d_model=8, d_state=4), torch.nn.Linear(8, 1)
>>> chunks = torch.randn(1, 1000, 8).split(300, dim=1)
>>> def part(number, state):
...     y, state = block.scan(chunks[number], state)
...     return head(y).square().sum(), state
>>> backward_in_chunks(part, len(chunks))

Truncated backpropagation through time (TBPTT) needs no help: states are differentiable, and where one is detached the
gradient ends. Here that is every second border; gradients reach one chunk back at most, in the memory of two:

>>> state, total = None, 0
>>> for number in range(len(chunks)):
...     loss, state = part(number, state)
...     total = total + loss
...     if number % 2 == 1:
...         total.backward()
...         state, total = type(state)(*(tensor.detach() for tensor in state)), 0
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from dnamamba.model.precision import full_precision

State = Any
"""A pytree of tensors, as mixers and models carry it from chunk to chunk; None before the first chunk"""
Part = Callable[[int, State], tuple[Tensor, State]]
"""(number of a chunk, the state that enters it) → (its part of the loss (), the state that leaves it)"""
Advance = Callable[[int, State], State]
"""(number of a chunk, the state that enters it) → the state that leaves it"""

BYTES_ON_DEVICE = 1 << 30
"""Kept states that need more together lie in pinned memory of the host"""


class KeptBorders:
    """The states that enter the second and each later chunk, in the dtypes that they have: recurrent ones are fp32.

    They stay on their device, or lie in the host's memory where all of them need more than `BYTES_ON_DEVICE` there.
    """

    def __init__(self, count: int, like: State) -> None:
        """Room for `count` states of the shapes of `like`."""
        leaves, self._structure = tree_flatten(like)
        on_gpu = any(leaf.is_cuda for leaf in leaves)
        self.on_host = on_gpu and bytes_on_device(count, like) == 0
        self._devices = [leaf.device for leaf in leaves]
        self._kept = [
            torch.empty(
                (count, *leaf.shape),
                dtype=leaf.dtype,
                device="cpu" if self.on_host else leaf.device,
                pin_memory=self.on_host,
            )
            for leaf in leaves
        ]

    def __setitem__(self, number: int, state: State) -> None:
        for kept, leaf in zip(self._kept, tree_leaves(state), strict=True):
            kept[number].copy_(leaf, non_blocking=True)

    def __getitem__(self, number: int) -> State:
        """A copy, with a place for its gradient."""
        leaves = [
            kept[number].to(device, copy=True, non_blocking=True).requires_grad_(kept.is_floating_point())
            for kept, device in zip(self._kept, self._devices, strict=True)
        ]
        return tree_unflatten(leaves, self._structure)


def keep_borders(advance: Advance, count: int) -> KeptBorders | None:
    """Runs all chunks but the last without a graph and keeps what enters those after the first; None of one chunk."""
    kept, state = None, None
    with torch.no_grad():
        for number in range(count - 1):
            state = advance(number, state)
            if kept is None:
                kept = KeptBorders(count - 1, state)
            kept[number] = state
    return kept


def backward_from_borders(part: Part, count: int, kept: KeptBorders | None, *, truncated: bool = False) -> None:
    """Runs the chunks with a graph, the last one first, and adds the gradient of the sum of their losses to the `.grad`
    of what they depend on; `truncated` leaves out what passes from chunk to chunk."""
    arriving: list[Tensor] = []
    for number in reversed(range(count)):
        state = None if number == 0 or kept is None else kept[number - 1]
        loss, leaving = part(number, state)
        if arriving and not truncated:
            loss = loss + _dot(tree_leaves(leaving), arriving)
        loss.backward()
        leaves = [] if state is None else tree_leaves(state)
        arriving = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


def backward_in_chunks(part: Part, count: int, advance: Advance | None = None) -> None:
    """Adds the gradient of the sum of the chunks' losses to the `.grad` of what they depend on: that of one pass over
    the whole sequence, but for rounding.

    Args:
        part: runs a chunk. It is called for all but the last without a graph, from the first on, then for all with one,
            from the last to the first, and has to compute the same both times.
        count: of chunks.
        advance: computes no more than the states, to save time in the pass without a graph; None takes `part`.
    """
    kept = keep_borders(advance or (lambda number, state: part(number, state)[1]), count)
    backward_from_borders(part, count, kept)


def state_bytes(state: State) -> int:
    """Of its tensors."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state))


def bytes_on_device(count: int, state: State) -> int:
    """What so many kept states take of a GPU's memory: nothing where there are too many."""
    total = count * state_bytes(state)
    return total if total <= BYTES_ON_DEVICE else 0


def detached(state: State) -> State:
    """The same numbers without their graph."""
    return tree_map(Tensor.detach, state)


def restarted(state: State, continues: Tensor | None) -> State:
    """A state with zeros, as before a sequence's first position, where `continues` (batch,) is False; None continues
    all."""
    if state is None or continues is None:
        return state
    return tree_map(lambda leaf: torch.where(continues.view(-1, *[1] * (leaf.ndim - 1)), leaf, 0), state)


def _dot(states: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """() whose gradient with respect to the states is `gradients`."""
    parts = [(full_precision(a) * g).sum() for a, g in zip(states, gradients, strict=True)]
    return torch.stack(parts).sum()
