"""What a model that predicts masked bases says of bases: each is masked while all others of its window are read.

One pass may mask several bases of a window at once, every K-th of those that are asked for, so that K passes serve all.
Then a base is predicted without those of its neighbours that are masked with it, which the exact reading, with it
masked alone, would see.
"""

from typing import Literal

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, MASK
from dnamamba.errors import InputError
from dnamamba.inference.load import Inference
from dnamamba.model.language_model import LanguageModel


def masked_logits(
    inference: Inference[LanguageModel],
    windows: Tensor,
    first: Tensor,
    end: Tensor,
    mask_every: int | None,
    batch_tokens: int,
) -> Tensor:
    """(windows, length, 4) fp32 logits of the bases [first, end) of each window, each masked in one pass; 0 elsewhere.

    Args:
        windows: (windows, length) uint8 tokens without the soft-mask bit, PAD behind shorter ones.
        first, end: (windows,) int64.
        mask_every: bases from one masked base to the next in a pass; None masks one base a pass.
        batch_tokens: at most so many bases a pass, unless one window has more.
    """
    count, length = windows.shape
    number = torch.arange(length, device=windows.device) - first[:, None]
    size = (end - first)[:, None]
    passes = size if mask_every is None else size.clamp(max=mask_every)
    window = torch.repeat_interleave(torch.arange(count, device=windows.device), passes[:, 0])
    turn = torch.arange(len(window), device=windows.device) - (passes.cumsum(0) - passes)[window, 0]
    logits = torch.zeros(count, length, BASES, device=windows.device)
    for begin in range(0, len(window), most := max(batch_tokens // length, 1)):
        rows = window[begin : begin + most]
        is_wanted = (number[rows] >= 0) & (number[rows] < size[rows])
        is_masked = is_wanted & (number[rows] % passes[rows] == turn[begin : begin + most, None])
        output = inference.model(torch.where(is_masked, MASK, windows[rows]))
        logits.index_add_(0, rows, torch.where(is_masked[..., None], output.logits, 0.0))
    return logits


def mask_every_of(given: int | Literal["alone"] | None, default: int | None) -> int | None:
    """What a verb's --mask_every means to `masked_logits`. Raises `InputError`."""
    if given is None:
        return default
    if given == "alone":
        return None
    if not (isinstance(given, int) and given >= 2):
        raise InputError(f"--mask_every: {given} is not possible, expected 2 bases or more, or alone")
    return given
