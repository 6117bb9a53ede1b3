"""One pass over several reference sequences that keeps the model's states on the way, and what starts from them.

A causal model's state after a position is all that later bases see of it. Kept every so many bases, in fp32 as the scan
computes it, it lets a changed sequence start shortly before its change.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dnamamba.inference.batches import padded
from dnamamba.inference.load import Inference
from dnamamba.inference.stream import stream
from dnamamba.model.language_model import LanguageModel


class KeptStates(NamedTuple):
    """What `pass_and_keep` leaves; sequences shorter than the longest are as if followed by padding."""

    tokens: Tensor
    """(sequences, length) uint8"""
    host: np.ndarray
    """The same in host memory"""
    log_likelihood: Tensor
    """(sequences, length) fp32: ln p of each base given those before it; NaN for the first, for N and for padding"""
    every: int
    kept: dict[int, int]
    """Number of bases read (a multiple of `every`) -> index of that state"""
    states: Any
    """The states: a pytree of tensors (kept, sequences, …)"""
    bases: int
    """Bases that went through the model"""

    def before(self, positions: np.ndarray) -> np.ndarray:
        """Bases read by the last state from which the base at each position (from 1 on) can be predicted."""
        return (positions - 1) // self.every * self.every

    def start(self, sequences: np.ndarray, read: np.ndarray) -> Any:
        """The states (rows, …) after `read` bases of these sequences."""
        device = self.tokens.device
        index = torch.tensor([self.kept[count] for count in read.tolist()], device=device)
        rows = torch.from_numpy(sequences).to(device)
        return tree_map(lambda tensor: tensor[index, rows], self.states)


def states_needed(positions: np.ndarray, every: int) -> list[int]:
    """Which states changes at these positions (from 1 on) start from, as numbers of bases read, ascending."""
    return np.unique((positions - 1) // every * every).tolist()


@torch.inference_mode()
def pass_and_keep(
    inference: Inference[LanguageModel], sequences: Sequence[np.ndarray], every: int, needed: Iterable[int]
) -> KeptStates:
    """Reads uint8 token sequences in steps of `every` bases and keeps the states of `needed` (multiples of it)."""
    host = padded(sequences)
    tokens = inference.compute.put(host)
    log_likelihood = torch.full(tokens.shape, torch.nan, device=inference.device)
    kept = {count: index for index, count in enumerate(sorted(needed))}
    with inference.autocast():
        state = inference.model.init_state(len(sequences))
        states = [state] if 0 in kept else []
        for chunk in stream(inference.model.backbone, tokens.split(every, dim=1), state):
            if chunk.end in kept:
                states.append(chunk.state)
            following = tokens[:, chunk.begin + 1 : chunk.end + 1]
            logits = inference.model.base_logits(chunk.hidden)[:, : following.shape[1]]
            found = inference.model.objective.log_likelihood(logits, following)
            log_likelihood[:, chunk.begin + 1 : chunk.end + 1] = found
    stacked = tree_map(lambda *tensors: torch.stack(tensors), *states) if states else ()
    return KeptStates(tokens, host, log_likelihood, every, kept, stacked, host.size)
