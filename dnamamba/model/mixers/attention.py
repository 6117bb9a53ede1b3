"""Causal multi-head attention with rotary positions; with gated MLPs between, Transformer++ (`PATTERNS`)."""

from collections.abc import Iterable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers.cache import Cache, cache_of
from dnamamba.model.mixers.mixer import Mixer, segment_numbers
from dnamamba.model.precision import data_dtype, full_dtype
from dnamamba_kernels import rotary

QUERIES = 1024
"""Queries that attend at a time where a mask has to be made, of QUERIES · keys bytes a sequence."""


class AttentionMixer(Mixer):
    """softmax(Q Kᵀ / √d) V of rotated queries and keys, over the positions so far; PyTorch's fused kernels (flash
    attention in bf16 on a GPU). Its state is a cache of keys and values in the data's dtype."""

    causal = True
    carries_state = True
    state_grows = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.head_dim = config.head_width(config.d_model)
        self.rope_base = config.rope_base if config.rope else None
        self.compares_content = not config.rope
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=False)  # queries, keys, values
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    @classmethod
    def describe(cls, config: ModelConfig) -> str:
        width = config.head_width(config.d_model)
        return f"attention, {config.d_model // width} heads of {width}{'' if config.rope else ', without positions'}"

    def init_state(self, batch: int) -> Cache:
        shape = batch, 0, self.in_proj.in_features // self.head_dim, self.head_dim
        none = self.in_proj.weight.new_zeros(shape, dtype=data_dtype(self.in_proj.weight))
        return cache_of((none, none))

    @torch.no_grad()
    def start_with_equals(self) -> None:
        """Starts with keys that are the queries: a position attends to those that are like it."""
        query, key, _ = self.in_proj.weight.chunk(3)
        key.copy_(query.mul_(1.5))

    def forward(
        self, x: Tensor, state: Cache | None = None, sequence_ids: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Packed segments and chunks after others attend under masks, `QUERIES` at a time."""
        before = 0 if state is None else state.positions
        query, key, value = self._project(x, torch.arange(before, before + x.shape[1], device=x.device))
        if not before and sequence_ids is None:
            y = _attend(query, key, value, is_causal=True)
            return self.out_proj(y.flatten(-2)), cache_of((key, value))
        start = self.init_state(len(x)) if state is None else state
        cache = start.followed_by((key, value), sequence_ids)
        y = _attend_masked(query, cache, start, sequence_ids)
        return self.out_proj(y.flatten(-2)), cache

    def step(self, x: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        query, key, value = self._project(x[:, None], state.next_position)
        cache = state.with_step((key[:, 0], value[:, 0]))
        counted = cache.counted
        mask = None if counted is None else counted[:, None, None]
        return self.out_proj(_attend(query, *cache.values, attn_mask=mask)[:, 0].flatten(-2)), cache

    def reserve(self, state: Cache, steps: int) -> Cache:
        return state.reserve(steps)

    def output_weights(self) -> Iterable[Tensor]:
        return [self.out_proj.weight]

    def flops_per_token(self, length: int) -> int:
        """Matrices; queries with keys, and weights with values: 2 · 2 a number of the (length + 1) / 2 positions that a
        position sees on average."""
        return super().flops_per_token(length) + 2 * self.in_proj.in_features * (length + 1)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated if the model has RoPE, and values, each (batch, length, heads, head_dim);
        `positions` are (length,), or (batch, length).

        RoPE (arXiv 2104.09864, equation 15): the pair of numbers i of a head turns by position · base^(−2i / head_dim),
        so that products of queries and keys depend on the distance alone. Here a pair is i and i + head_dim / 2, which
        only names them in another order. Angles are fp64: a million positions leave no digits of fp32's. Rotation is an
        operator, so that torch.compile makes their table once, and not for each head of each sequence.
        """
        qkv = self.in_proj(x).unflatten(-1, (3, -1, self.head_dim))
        if self.rope_base is None:
            query, key, value = qkv.unbind(-3)
            return query, key, value
        pair = torch.arange(self.head_dim // 2, device=x.device, dtype=torch.float64)
        angle = positions[..., None] * self.rope_base ** (-2 * pair / self.head_dim)
        cos, sin = (each.to(full_dtype(qkv)) for each in (angle.cos(), angle.sin()))
        return rotary(qkv, cos, sin)


def _attend(query: Tensor, key: Tensor, value: Tensor, **mask: object) -> Tensor:
    """All (batch, positions, heads, head_dim)."""
    heads_first = (each.transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, **mask).transpose(1, 2)  # type: ignore[arg-type]


def _attend_masked(query: Tensor, cache: Cache, start: Cache, sequence_ids: Tensor | None) -> Tensor:
    """Of a chunk's queries with the positions before it, `start`, and its own, all in `cache`."""
    before, masked = start.positions, sequence_ids is not None or start.counted is not None
    if masked:
        if sequence_ids is None:
            segment = torch.zeros(query.shape[:2], dtype=torch.int64, device=query.device)
        else:
            segment = segment_numbers(sequence_ids)
        earlier = segment.new_zeros(len(query), before)
        counted = start.counted
        keys = torch.cat((earlier if counted is None else torch.where(counted, earlier, -1), segment), dim=1)
    parts = []
    for first in range(0, query.shape[1], QUERIES):
        part = query[:, first : first + QUERIES]
        last = before + first + part.shape[1]
        mask: object = causal_lower_right(part.shape[1], last)
        if masked:
            here = torch.arange(before + first, last, device=query.device)
            so_far = torch.arange(last, device=query.device) <= here[:, None]
            same = segment[:, first : first + QUERIES, None] == keys[:, None, :last]
            mask = (so_far & same)[:, None]
        parts.append(_attend(part, *(each[:, :last] for each in cache.values), attn_mask=mask))
    return torch.cat(parts, dim=1)
