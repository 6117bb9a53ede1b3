"""Random numbers that follow from a number alone, alike on all devices: SplitMix64 (Steele et al. 2014) on tensors."""

from torch import Tensor

STEP = 0x9E3779B97F4A7C15 - (1 << 64)
"""From one state to the next; the constants are the generator's, as torch's signed numbers"""
_FACTORS = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def splitmix64(state: Tensor) -> Tensor:
    """The number that follows each state, (…) int64 of 64 random bits."""
    bits = state + STEP
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        bits = (bits ^ shifted(bits, shift)) * factor
    return bits ^ shifted(bits, 31)


def shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in, which torch's shift of signed numbers does not do."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
