"""Truncated backpropagation through time (TBPTT): the state is carried from chunk to chunk, its gradient is not.

An approximation, for comparison: no base learns what it does to the loss beyond the end of its chunk.
"""

import torch
from torch import Tensor

from dnamamba.model.chunked_backward import State, detached
from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop.chunks import Chunks


def truncated(model: LanguageModel, chunks: Chunks, scale: Tensor) -> Tensor:
    """As `dnamamba.training.backprop.whole.whole`, without the gradients that pass from chunk to chunk."""
    nll = torch.zeros((), dtype=torch.float64, device=scale.device)
    state: State = None
    for number in range(len(chunks)):
        weighted, loss = chunks.loss(model, number, state)
        (weighted * scale).backward()
        nll += loss.nll_sum.detach()
        state = detached(loss.state)
    return nll
