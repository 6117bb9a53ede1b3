"""The learning rate as a pure function of the optimiser step: nothing to save, nothing to get wrong on resume."""

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Learning rate of optimiser step `step` (0-based) of `steps`: linear warm-up, then a cosine.

    The warm-up reaches `peak` after ⌈warmup_fraction · steps⌉ steps; the cosine ends at `final_fraction · peak` with
    the last step. Recipe of the Mamba paper (arXiv 2312.00752, appendix E.3.2).
    """
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - 1 - warmup, 1), 1.0)
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))
