"""The likelihood of each next base, as sums and counts, never means.

Means of means depend on how the data is cut into micro-batches and ranks; a sum of nats and a count of bases do not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dnamamba.alphabet import BASES, PAD
from dnamamba.model.precision import full_precision


def next_base_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """−ln p(target) in nats, (…) fp32, differentiable; NaN (missing, not zero) where the target is no base.

    Args:
        logits: (…, 4), over A, C, G, T alone: the log-softmax is over these four columns, in fp32.
        targets: (…) integer tokens without the soft-mask bit.
    """
    counted = targets < BASES
    labels = targets.long().masked_fill(~counted, PAD)
    nll = F.cross_entropy(full_precision(logits).flatten(0, -2), labels.flatten(), ignore_index=PAD, reduction="none")
    return torch.where(counted, nll.view(targets.shape), torch.nan)


def next_base_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """ln p(target), −`next_base_nll`: NaN where the target is no base."""
    return -next_base_nll(logits, targets)
