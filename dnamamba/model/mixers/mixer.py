"""What a sequence mixer is, and what the rest of the program calls."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.norm import RMSNorm


class Mixer(nn.Module):
    """Carries information along the length, on channels-last data of width d_model.

    A state is a pytree of tensors, batch first, so that chunked training, generation and variant scoring treat every
    mixer alike. A forward pass in chunks, each entered with the state of the one before, equals the pass over the
    whole.
    A mixer that carries no state takes and returns None, and has no `init_state` and no `step`.

    What is to be known of its parameters is answered here for projections held as `nn.Linear`; a mixer with other
    parameters overrides them.
    """

    causal: ClassVar[bool]
    """No position sees a later one."""
    carries_state: ClassVar[bool]
    """What later positions see of earlier ones is handed on as a state."""
    state_grows: ClassVar[bool] = False
    """The state keeps something of every position, as attention's keys and values: a cache, and no state of constant
    size."""
    compares_content: bool = False
    """Positions are compared by what they hold and by nothing else; such a mixer has `start_with_equals`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        """For the model card: its name and the options that it reads; empty for the name that it is registered by."""
        return ""

    @classmethod
    def packs_on_host(cls, config: ModelConfig) -> bool:
        """Whether the host waits for a packed window's ids: such a pass cannot be recorded as a CUDA graph."""
        return False

    def init_state(self, batch: int) -> Any:
        """The state before the first position."""
        raise NotImplementedError(f"{type(self).__name__} carries no state")

    def forward(self, x: Tensor, state: Any = None, sequence_ids: Tensor | None = None) -> tuple[Tensor, Any]:
        """x (batch, length, d_model) → y of the same shape, and the state after the last position.

        `state` None starts afresh. `sequence_ids` (batch, length) int32 packs several segments into a window: nothing
        crosses a change of id; the given state belongs to the first id, the returned one to the last.
        """
        raise NotImplementedError

    def reverse(self, x: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
        """y of sequences that are read from their last position to their first, each at its own position. A mixer whose
        operators run both ways overrides this."""
        ids = None if sequence_ids is None else sequence_ids.flip(1)
        return self(x.flip(1), None, ids)[0].flip(1)

    def both_strands(self, x: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
        """x (2 · batch, length, d_model): sequences, then their complements → y, the complements read in reverse. The
        ids, (batch, length), are those of both."""
        forward, complement = x.chunk(2)
        return torch.cat((self(forward, None, sequence_ids)[0], self.reverse(complement, sequence_ids)))

    def recomputing(
        self,
        norm: RMSNorm,
        hidden: Tensor,
        residual: Tensor | None,
        state: Any,
        sequence_ids: Tensor | None,
        recompute: Recompute,
        both_strands: bool,
    ) -> tuple[Tensor, Tensor, Any] | None:
        """A block's add, norm and this mixer, if they can be computed together so that less is kept for the backward
        pass than autograd keeps: hidden, residual and state as of `Block.forward`, of `both_strands` as of
        `both_strands` above. None where they cannot, be it for the mixer, its options or what is to see inside
        (torch.compile, torch.func)."""
        return None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One position, O(1) work: x (batch, d_model) → y (batch, d_model) and the state after it."""
        raise NotImplementedError(f"{type(self).__name__} carries no state")

    def reserve(self, state: Any, steps: int) -> Any:
        """A state for `step` alone, whose tensors keep their shapes for so many steps: for those that run from a CUDA
        graph. A state that grows comes as a copy with free positions, filled in place: of two steps from the same
        state only the later one's state holds."""
        return state

    def output_weights(self) -> Iterable[Tensor]:
        """Weights whose products are added to the residual stream: divided by √n_layer at initialisation."""
        raise NotImplementedError

    def undecayed_parameters(self) -> Iterable[Tensor]:
        """What weight decay must leave alone, as it does vectors, which never decay."""
        return ()

    def castable_parameters(self) -> Iterable[Tensor]:
        """What autocast multiplies in the lower precision: may be held in it where nothing is trained."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]

    def kept_bytes(self, recompute: Recompute, width: int) -> int:
        """Bytes a position that its block keeps for the backward pass on a GPU, with `width` bytes a number in matrix
        products; 0 where that is not known."""
        return 0

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations of one position's forward pass, the mean over a sequence of this length; what is
        small next to the matrices is left out."""
        return 2 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim >= 2)


def segment_numbers(sequence_ids: Tensor) -> Tensor:
    """(batch, length) int64: which segment of its packed window a position is in, from 0; `sequence_ids` as of
    `Mixer.forward`."""
    return F.pad((sequence_ids[:, 1:] != sequence_ids[:, :-1]).cumsum(1), (1, 0))
