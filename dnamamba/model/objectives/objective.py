"""What a training objective is."""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dnamamba.alphabet import BASES
from dnamamba.model.abilities import Ability
from dnamamba.model.loss import next_base_log_likelihood, next_base_nll
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


class Objective:
    """How a window becomes inputs and targets, and what the logits then cost. Made without arguments; holds nothing.

    A window is length + 1 bases, of which the first is nobody's target. A position of the loss is a base from the
    second on, whatever the objective: that of the window's base with the index of the position, plus 1.
    """

    abilities: ClassVar[Ability]
    """What a model gains by this objective."""
    needs: ClassVar[Ability]
    """What a model must be able to do, or the target would be seen."""

    def prepare_batch(
        self,
        tokens: Tensor,
        reverse_complement: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        training: bool = False,
    ) -> PreparedBatch:
        """Inputs and targets of windows, on their device.

        Args:
            tokens: (batch, length + 1) uint8 as in the token store, soft mask in bit 7.
            reverse_complement: (batch,) bool, windows to read on the other strand; None reads all as stored.
            sequence_ids: (batch, length + 1) int32 for windows of several segments, each with a number of its own.
            keys: (batch,) int64, a random number a window, from which follows all that is drawn for it; None gives all
                the same.
            training: whether inputs may differ from what a model reads when it is used, so that it learns more.
        """
        raise NotImplementedError

    def loss(
        self,
        model: Any,
        inputs: Tensor,
        targets: Tensor,
        state: Any = None,
        sequence_ids: Tensor | None = None,
    ) -> LossSums:
        """One pass of the language model `model` over (batch, length) inputs and what it finds of the targets: sums and
        counts over A, C, G, T only.

        N and the special tokens are legal in both; as targets they do not count. `state` and `sequence_ids` as in
        `LanguageModel.forward`.
        """
        output = model(inputs, state, sequence_ids)
        nll = next_base_nll(output.logits, targets)
        counted = targets < BASES
        return LossSums(torch.where(counted, nll, 0.0).sum(), counted.sum(), nll, output.state)

    def log_likelihood(self, logits: Tensor, targets: Tensor) -> Tensor:
        """ln p of the targets (batch, length) under logits (batch, length, 4), fp32; NaN where a target is no base."""
        return next_base_log_likelihood(logits, targets)
