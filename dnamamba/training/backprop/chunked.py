"""Exact backpropagation through windows of any length, in the memory of one chunk."""

import torch
from torch import Tensor

from dnamamba.model.chunked_backward import State, backward_in_chunks
from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop.chunks import Chunks


def chunked(model: LanguageModel, chunks: Chunks, scale: Tensor) -> Tensor:
    """As `dnamamba.training.backprop.whole.whole`, but for rounding, whatever the length of a chunk: see
    `dnamamba.model.chunked_backward`."""
    nll = torch.zeros((), dtype=torch.float64, device=scale.device)

    def part(number: int, state: State) -> tuple[Tensor, State]:
        weighted, loss = chunks.loss(model, number, state)
        nll.add_(loss.nll_sum.detach())
        return weighted * scale, loss.state

    backward_in_chunks(part, len(chunks), lambda number, state: chunks.advance(model, number, state))
    return nll
