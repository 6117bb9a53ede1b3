"""Sampling sequences from a model: one base after the other, O(1) memory and work a base.

The prompt goes through the parallel forward pass, in chunks, to the recurrent state; then every base is one `step`. The
randomness is a function of (seed, sequence, position), so a sequence does not depend on which others are sampled with
it (beyond the rounding of its logits).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dnamamba.alphabet import BASES
from dnamamba.genome.windows import hash_bits
from dnamamba.inference.batches import batches_by_length
from dnamamba.inference.graphs import record
from dnamamba.inference.load import Inference
from dnamamba.inference.stream import stream
from dnamamba.model.language_model import LanguageModel, ModelState

PROMPT_CHUNK = 16_384
"""Bases of a prompt in one forward pass."""
PROMPT_BASES = 262_144
"""Bases of all prompts in one forward pass: the memory that it takes."""
STEPS_A_GRAPH = 8
"""Bases a replay of the CUDA graph: the host's share of a replay is small next to them."""
BLOCK = 1024
"""Bases of each sequence between two looks at the device; a multiple of `STEPS_A_GRAPH`."""

SampledBases = Callable[[int, int], None]
"""Called with (bases of each sequence so far, in all)."""


class Sampling(NamedTuple):
    """How a base is drawn from its four probabilities."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable base"""
    top_k: int = BASES
    """Only so many of the most probable bases are drawn from"""
    seed: int = 0


class SamplingState(NamedTuple):
    """Where sequences stand; all with the sequences first."""

    logits: Tensor
    """(sequences, 4) fp32: of each one's next base"""
    state: ModelState


class Generator:
    """A model made ready to sample: its matrices in the precision they are multiplied in, its step as a CUDA graph."""

    def __init__(self, inference: Inference[LanguageModel], sampling: Sampling) -> None:
        self.inference, self.sampling = inference, sampling
        self.model = inference.model
        if inference.precision == "bf16":
            self.model = _with_matrices_in(torch.bfloat16, self.model)
        self._graph: _StepGraph | None = None

    def generate(
        self, prompts: Sequence[np.ndarray], samples: Sequence[int], length: int, progress: SampledBases | None = None
    ) -> np.ndarray:
        """Continues each prompt by `length` bases.

        Args:
            prompts: (bases,) uint8 tokens each, at least one base; equal ones share the work.
            samples: a number for each sequence, its part in the randomness: equal prompts with other numbers differ.

        Returns:
            (sequences, length) uint8 tokens of the bases A, C, G, T.
        """
        return self.continue_from(self.read(prompts), samples, length, progress)

    def read(self, prompts: Sequence[np.ndarray]) -> SamplingState:
        """What is known after each prompt. Those of one length are read together."""
        assert all(len(prompt) for prompt in prompts), "a causal model has no prediction before the first base"
        number: dict[bytes, int] = {}
        which = [number.setdefault(prompt.tobytes(), len(number)) for prompt in prompts]
        distinct = [np.frombuffer(prompt, np.uint8) for prompt in number]
        lengths = np.array([len(prompt) for prompt in distinct])
        parts, order = [], []
        with torch.inference_mode(), self.inference.autocast():
            for length in np.unique(lengths):
                members = np.flatnonzero(lengths == length)
                for batch in batches_by_length(lengths[members].clip(max=PROMPT_CHUNK), PROMPT_BASES):
                    order += members[batch].tolist()
                    read = self._read(np.stack([distinct[row] for row in members[batch]]))
                    # States that grow are given the same size, so that they can stand in one batch.
                    state = self.model.reserve(read.state, int(lengths.max() - length))
                    parts.append(read._replace(state=state))
            rows_of = torch.from_numpy(np.argsort(order)[which]).to(self.inference.device)
            return tree_map(lambda *tensors: torch.cat(tensors)[rows_of], *parts)

    def _read(self, tokens: np.ndarray) -> SamplingState:
        """Of (sequences, length) uint8 prompts."""
        chunks = self.inference.compute.put(tokens).split(PROMPT_CHUNK, dim=1)
        for chunk in stream(self.model.backbone, chunks):
            last = chunk
        return SamplingState(self.model.base_logits(last.hidden[:, -1]), last.state)

    def continue_from(
        self, start: SamplingState, samples: Sequence[int], length: int, progress: SampledBases | None = None
    ) -> np.ndarray:
        """(sequences, length) uint8: the next `length` bases from where the sequences stand; see `generate`."""
        out = np.empty((len(samples), length), np.uint8)
        with torch.inference_mode(), self.inference.autocast():
            advance = self._stepper(start, length)
            for first in range(0, length, BLOCK):
                uniforms = _uniforms(self.sampling.seed, samples, first, min(BLOCK, length - first))
                tokens = advance(uniforms.to(self.inference.device))
                out[:, first : first + len(tokens)] = tokens.T.cpu().numpy()
                if progress is not None:
                    progress(first + len(tokens), length)
        return out

    def _stepper(self, start: SamplingState, steps: int) -> Callable[[Tensor], Tensor]:
        """A function that takes (count, sequences) uniform numbers to the next (count, sequences) tokens, again and
        again, `steps` in all."""
        replays = max(-(-steps // STEPS_A_GRAPH), 1)
        start = start._replace(state=self.model.reserve(start.state, replays * STEPS_A_GRAPH))
        if self.inference.device.type != "cuda":
            return _Steps(self.model, self.sampling, start)
        if self._graph is None or not self._graph.fits(start):
            self._graph = None  # its memory first
            self._graph = _StepGraph(self.model, self.sampling, start)
        self._graph.restart(start)
        return self._graph


class _Steps:
    """Step after step."""

    def __init__(self, model: LanguageModel, sampling: Sampling, start: SamplingState) -> None:
        self.model, self.sampling, self.current = model, sampling, start

    def __call__(self, uniforms: Tensor) -> Tensor:
        tokens = torch.empty(uniforms.shape, dtype=torch.uint8, device=uniforms.device)
        for step, numbers in enumerate(uniforms):
            tokens[step] = draw(self.current.logits, numbers, self.sampling.temperature, self.sampling.top_k)
            self.current = SamplingState(*self.model.step(tokens[step], self.current.state))
        return tokens


class _StepGraph:
    """`STEPS_A_GRAPH` steps recorded once as a CUDA graph and replayed: no work for the host between them."""

    def __init__(self, model: LanguageModel, sampling: Sampling, start: SamplingState) -> None:
        # What a replay reads and writes, at addresses that stay.
        self.current = tree_map(torch.clone, start)
        sequences, device = len(start.logits), start.logits.device
        self.uniforms = torch.zeros(STEPS_A_GRAPH, sequences, device=device)
        self.tokens = torch.zeros(STEPS_A_GRAPH, sequences, dtype=torch.uint8, device=device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._steps(model, sampling)  # kernels are compiled and workspaces allocated before the recording
        torch.cuda.current_stream(device).wait_stream(side)
        self._replay = record(partial(self._steps, model, sampling))

    def _steps(self, model: LanguageModel, sampling: Sampling) -> None:
        steps = _Steps(model, sampling, self.current)
        self.tokens.copy_(steps(self.uniforms))
        self.restart(steps.current)

    def fits(self, start: SamplingState) -> bool:
        """Whether it can continue from there: as many sequences, states of the same shapes."""
        now, then = ([leaf.shape for leaf in tree_leaves(each)] for each in (self.current, start))
        return now == then

    def restart(self, start: SamplingState) -> None:
        """Continue from here."""
        for kept, new in zip(tree_leaves(self.current), tree_leaves(start), strict=True):
            kept.copy_(new)

    def __call__(self, uniforms: Tensor) -> Tensor:
        """The number of them a multiple of `STEPS_A_GRAPH`, or the last: `current` is lost then."""
        tokens = torch.empty(uniforms.shape, dtype=torch.uint8, device=uniforms.device)
        for first in range(0, len(uniforms), STEPS_A_GRAPH):
            count = min(STEPS_A_GRAPH, len(uniforms) - first)
            self.uniforms[:count] = uniforms[first : first + count]
            self._replay()
            tokens[first : first + count] = self.tokens[:count]
        return tokens


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int) -> Tensor:
    """(batch, 4) logits and (batch,) uniform numbers in [0, 1) → (batch,) uint8 bases, by the inverse of the CDF."""
    if temperature == 0:
        return logits.argmax(-1).to(torch.uint8)
    if top_k < BASES:
        # Ranks, and not a threshold, so that of equal logits no more than k are kept.
        rank = logits.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        logits = logits.masked_fill(rank >= top_k, -torch.inf)
    cumulative = torch.softmax(logits / temperature, -1).cumsum(-1)
    # Times the last: the sum is 1 only to rounding, and a base of probability 0 must not be drawn.
    above = uniforms[:, None] * cumulative[:, -1:] >= cumulative
    return above.sum(-1).to(torch.uint8)


def _uniforms(seed: int, samples: Sequence[int], first: int, count: int) -> Tensor:
    """(count, sequences) fp32 in [0, 1), each a function of (seed, sample, position)."""
    positions = np.arange(first, first + count, dtype=np.uint64)
    columns = [hash_bits(positions, seed, sample) >> np.uint64(40) for sample in samples]
    return torch.from_numpy(np.stack(columns, 1).astype(np.float32) / np.float32(1 << 24))


def _with_matrices_in(dtype: torch.dtype, model: LanguageModel) -> LanguageModel:
    """A copy whose projections hold what autocast would make of them at each step."""
    model = copy.deepcopy(model)
    for block in model.backbone.layers:
        for parameter in block.mixer.castable_parameters():
            parameter.data = parameter.data.to(dtype)
    return model
