"""What a training objective is."""

from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from dnamamba.model.abilities import Ability
from dnamamba.model.tokens import PreparedBatch


class LossSums(NamedTuple):
    """A batch's loss in parts that add up over chunks, micro-batches, ranks and regions."""

    nll_sum: Tensor
    """() fp32, differentiable: Σ −ln p(target) over the counted positions, in nats (bits = nats / ln 2)"""
    counted: Tensor
    """() int64: positions whose target is A, C, G or T"""
    nll: Tensor
    """(batch, length) fp32, differentiable: −ln p(target) in nats; NaN, missing and not zero, where not counted"""
    state: Any
    """after the last input"""


class Objective(Protocol):
    """How a window becomes inputs and targets, and what the logits then cost. Made without arguments; holds nothing."""

    abilities: ClassVar[Ability]
    """What a model gains by this objective."""
    needs: ClassVar[Ability]
    """What its mixer must be able to do, or the target would be seen."""

    def prepare_batch(
        self, tokens: Tensor, reverse_complement: Tensor | None = None, sequence_ids: Tensor | None = None
    ) -> PreparedBatch:
        """Inputs and targets of windows, on their device.

        Args:
            tokens: (batch, length + 1) uint8 as in the token store, soft mask in bit 7.
            reverse_complement: (batch,) bool, windows to read on the other strand; None reads all as stored.
            sequence_ids: (batch, length + 1) int32 for windows of several segments, each with a number of its own.
        """

    def loss(
        self,
        model: Any,
        inputs: Tensor,
        targets: Tensor,
        state: Any = None,
        sequence_ids: Tensor | None = None,
    ) -> LossSums:
        """One pass of the language model `model` over (batch, length) inputs and what it finds of the targets.

        `state` and `sequence_ids` as in `LanguageModel.forward`.
        """

    def log_likelihood(self, logits: Tensor, targets: Tensor) -> Tensor:
        """ln p of the targets (batch, length) under logits (batch, length, 4), fp32; NaN where a target is no base."""
