"""A language model on DNA: tokens in, the logits of bases and the recurrent states out.

A reverse-complement-equivariant model (`rc_equivariant`; Caduceus-PS, arXiv 2403.03234) has two streams of d_model: of
the sequence, and of its complement. Both stay in the sequence's order of positions and share all weights; the mixers
read the first from the left and the second from the right. So the reverse complement of a sequence gives the same two
streams, in reverse order and with their roles exchanged. Inside, the streams are two halves of the batch.

Shapes (the legend of this file):
    batch, length   sequences and positions
    d_model         width of the residual stream
    hidden          d_model; of a reverse-complement-equivariant model 2 · d_model, the two streams side by side
    4               the bases A, C, G, T: probabilities are a softmax over these alone
"""

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dnamamba.alphabet import BASES, PAD
from dnamamba.model.abilities import Ability, abilities_of, require_for_objective
from dnamamba.model.blocks import Block
from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.context import ContextEmbedding
from dnamamba.model.embedding import Embedding
from dnamamba.model.norm import RMSNorm
from dnamamba.model.objectives import objective_class
from dnamamba.model.objectives.objective import LossSums, Objective
from dnamamba.model.precision import autocast_dtype, full_precision, without_autocast
from dnamamba.model.tokens import complement, plain_tokens

ModelState = tuple[Any, ...]
"""One mixer state a block, and that of the embedding where it reads more than one base: a pytree of tensors with the
batch first."""

_HEAD_POSITIONS = 65_536
"""Positions that go through the head at a time: its fp32 copy of the hidden states stays small."""


class LMOutput(NamedTuple):
    """What a forward pass gives."""

    hidden: Tensor
    """(batch, length, hidden), after the final norm: the embedding of each position"""
    logits: Tensor | None
    """(batch, length, 4) fp32: scores of the base that the objective wants predicted being A, C, G, T; None when not
    wanted"""
    state: ModelState
    """after the last position; hand it to the next chunk of the same sequences"""


class Backbone(nn.Module):
    """Embedding, blocks, final norm: tokens to hidden states. Parameter names are those of mamba-ssm's checkpoints."""

    recompute: Recompute | None = None
    """Whoever trains may set it: what the backward pass computes again rather than keeps, where Mamba's blocks are one
    operator each. none: nothing. cheap: all but the scan and what follows it; of other mixers nothing. all: each block,
    of which only the input is kept. None leaves blocks to autograd, and what is not a module's own, such as hooks,
    takes part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.is_causal = Ability.CAUSAL in abilities_of(config)
        self.reads_both_strands = config.rc_equivariant
        self.embedding = Embedding(config.vocabulary_size, config.d_model)
        self.context = ContextEmbedding(config.kmer, config.d_model) if config.kmer > 1 else None
        self.layers = cast(list[Block], nn.ModuleList(Block(config, mixer) for mixer in config.mixers))
        self.norm_f = RMSNorm(config)

    def _embed(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens.int())
        return hidden if self.residual_in_fp32 else hidden.to(autocast_dtype(hidden.device) or hidden.dtype)

    def forward(
        self, tokens: Tensor, state: ModelState | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """tokens (batch, length) → hidden states (batch, length, hidden) after the final norm, and the states."""
        tokens = plain_tokens(tokens)
        if sequence_ids is None and not self.is_causal:
            sequence_ids = (tokens == PAD).int()  # no base sees the padding behind it
        if self.reads_both_strands:
            tokens = torch.cat((tokens, complement(tokens)))
        hidden, residual = self._embed(tokens), None
        last_tokens: ModelState = ()
        if self.context is not None:
            added, after = self.context(tokens, None if state is None else state[-1], sequence_ids)
            hidden, last_tokens = hidden + added, (after,)
        states = []
        for index, block in enumerate(self.layers):
            block_state = None if state is None else state[index]
            hidden, residual, block_state = block(hidden, residual, block_state, sequence_ids, self.recompute)
            states.append(block_state)
        hidden, _ = self.norm_f(hidden, residual)
        hidden = torch.cat(hidden.chunk(2), dim=-1) if self.reads_both_strands else hidden
        return hidden, (*states, *last_tokens)

    def embeddings(self, hidden: Tensor) -> Tensor:
        """hidden (…, hidden) → (…, d_model): itself; of a reverse-complement-equivariant model the mean of the two
        streams, which is the same for both strands."""
        if not self.reads_both_strands:
            return hidden
        first, second = hidden.chunk(2, dim=-1)
        return (first + second) / 2

    def step(self, token: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """token (batch,) → hidden states (batch, d_model) after the final norm, and the states."""
        token = plain_tokens(token)
        hidden, residual = self._embed(token), None
        last_tokens: ModelState = ()
        if self.context is not None:
            added, after = self.context.step(token, state[-1])
            hidden, last_tokens = hidden + added, (after,)
        states = []
        for block, block_state in zip(self.layers, state[: len(self.layers)], strict=True):
            hidden, residual, block_state = block.step(hidden, residual, block_state)
            states.append(block_state)
        return self.norm_f(hidden, residual)[0], (*states, *last_tokens)


class LanguageModel(nn.Module):
    """The backbone and a linear head, by default tied to the embedding.

    Weights are drawn from torch's global generator as in the paper's released code: embedding N(0, 0.02), linear
    weights kaiming-uniform, every mixer's `output_weights` divided by √n_layer so that the residual stream's variance
    does not grow with depth, linear biases zero; the rest as in the mixer's module. `InputError` where the mixer cannot
    do what the objective needs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocabulary_size, bias=False)
        self.objective: Objective = objective_class(config.objective)()
        self.abilities: Ability = abilities_of(config)
        """What verbs may need of this model (`dnamamba.model.abilities.require`)."""
        require_for_objective(config)
        self._initialise_weights()
        self.tie_weights()

    @torch.no_grad()
    def _initialise_weights(self) -> None:
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        if self.backbone.context is not None:
            nn.init.normal_(self.backbone.context.weight, std=0.02)
        for block in self.backbone.layers:
            for weight in block.mixer.output_weights():
                weight.div_(math.sqrt(self.config.n_layer))
        self._start_with_copies()

    def _start_with_copies(self) -> None:
        """Attention without positions that compares k-mers starts out looking for a word on both strands: training
        finds repeats from any start, but reverse complements only from some."""
        context = self.backbone.context
        comparing: list[Any] = [block.mixer for block in self.backbone.layers if block.mixer.compares_content]
        if context is None or not comparing:
            return
        context.start_with_words()
        for mixer in comparing:
            mixer.start_with_equals()

    def tie_weights(self) -> None:
        """Make the head share the embedding's weight, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def init_state(self, batch: int) -> ModelState:
        """The states before a sequence's first base, for `forward` or `step`."""
        context = self.backbone.context
        last_tokens = () if context is None else (context.init_state(batch),)
        return (*(block.mixer.init_state(batch) for block in self.backbone.layers), *last_tokens)

    def reserve(self, state: ModelState, steps: int) -> ModelState:
        """The states for so many calls of `step`, in tensors that keep their shapes: see `Mixer.reserve`."""
        layers = self.backbone.layers
        reserved = (block.mixer.reserve(each, steps) for block, each in zip(layers, state, strict=False))
        return (*reserved, *state[len(layers) :])

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        sequence_ids: Tensor | None = None,
        *,
        logits: bool = True,
    ) -> LMOutput:
        """One pass over a batch of sequences, or over the next chunk of them.

        Args:
            tokens: (batch, length) uint8 or int64 token ids; the soft-mask bit says nothing.
            state: as returned by the chunk before, or by `init_state`; None starts afresh.
            sequence_ids: (batch, length) int32 for packed windows: nothing crosses a change of id; `state` belongs to
                the first id, the returned one to the last.
            logits: False leaves the head out (embeddings, states alone).
        """
        hidden, new_state = self.backbone(tokens, state, sequence_ids)
        return LMOutput(hidden, self.base_logits(hidden) if logits else None, new_state)

    def step(self, token: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One base a sequence: token (batch,) → the next base's logits (batch, 4) fp32, and the states. O(1) work."""
        hidden, state = self.backbone.step(token, state)
        return self.base_logits(hidden), state

    def base_logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, hidden) → logits (…, 4), at least in fp32: bf16 would round each by up to 0.4 %."""
        if hidden.dtype in (torch.float32, torch.float64):
            return self._head(hidden)
        # Part by part, and recomputed in the backward pass: no fp32 copy of all hidden states is made or kept.
        parts = hidden.flatten(0, -2).split(_HEAD_POSITIONS)
        if torch.is_grad_enabled():
            outputs = [checkpoint(self._head, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        else:
            outputs = [self._head(part) for part in parts]
        return torch.cat(outputs).view(*hidden.shape[:-1], BASES)

    def _head(self, hidden: Tensor) -> Tensor:
        with without_autocast(hidden.device):
            hidden, weight = full_precision(hidden), full_precision(self.lm_head.weight[:BASES])
            if not self.config.rc_equivariant:
                return F.linear(hidden, weight)
            first, second = (F.linear(stream, weight) for stream in hidden.chunk(2, dim=-1))
            return first + second.flip(-1)  # the complement of base b is 3 − b

    def loss(
        self,
        inputs: Tensor,
        targets: Tensor,
        state: ModelState | None = None,
        sequence_ids: Tensor | None = None,
    ) -> LossSums:
        """What the objective makes of one pass over a batch that its `prepare_batch` gave.

        Args:
            inputs, targets: (batch, length) tokens without the soft-mask bit.
            state, sequence_ids: as in `forward`.
        """
        return self.objective.loss(self, inputs, targets, state, sequence_ids)
