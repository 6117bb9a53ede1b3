"""What a model that predicts masked bases says of bases: each is masked while all others of its window are read.

One pass may mask several bases of a window at once, every K-th of those that are asked for, so that K passes serve all.
Then a base is predicted without those of its neighbours that are masked with it, which the exact reading, with it
masked alone, would see.
"""

import torch
from torch import Tensor

from dnamamba.alphabet import BASES, MASK
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
    position = torch.arange(length, device=windows.device)
    number = position - first[:, None]
    wanted = (number >= 0) & (position < end[:, None])
    most = int((end - first).max())
    passes = most if mask_every is None else min(mask_every, most)
    logits = torch.zeros(count, length, BASES, device=windows.device)
    for rows in torch.arange(count * passes, device=windows.device).split(max(batch_tokens // length, 1)):
        window, turn = rows // passes, rows % passes
        is_masked = wanted[window] & (number[window] % passes == turn[:, None])
        output = inference.model(torch.where(is_masked, MASK, windows[window]))
        logits.index_add_(0, window, torch.where(is_masked[..., None], output.logits, 0.0))
    return logits
