"""Copies planted in training windows, so that a model learns to look for what it has read before.

Genomes are full of copies (tandem and inverted repeats, transposons, segmental duplications), but few windows show one
that pays. Bases are replaced by those a distance before them, as they are or reverse-complemented, exact or with
substitutions.

- Of most steps a share of the windows has some, anywhere in the window (`scattered`).
- Of the first steps all windows are repeats from end to end. A model that has not yet found out how to look back learns
  nothing from a copy here and there; from windows full of them it does in some hundred steps, and then uses the
  scattered ones. First come inverted repeats alone (`hairpins`), which are harder and not found next to tandem repeats,
  then both (`dense`).

A planted base has the soft mask of what it copies, and the region class of the position where it is planted: classes
are those of the window's positions (`dnamamba.training.regions`), copies change tokens alone.

What is planted is a function of (seed, epoch, index), as the window itself is.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, SOFT_MASK_BIT, TOKEN_BITS, reverse_complement
from dnamamba.genome.windows import Window, hash_bits, hash_key
from dnamamba.training.data import Rows, SamplePlan

BASES_A_COPY = 1024
"""Scattered: a window gets one copy for so many of its bases, and at least one."""
LENGTHS = (32, 1024)
"""Scattered: bases of a copy, log-uniform, up to a quarter of the window."""
NEAREST = 16
"""Scattered: least distance of a base from what it copies, log-uniform up to what the window has."""
PERIODS = (16, 256)
"""Dense: bases of the repeated unit, log-uniform, up to a quarter of the window."""
HAIRPINS = (16, 64)
"""The same of the hairpins that come first: short ones are found sooner"""
INVERTED = 0.5
"""Share of the copies, or dense windows, that are reverse-complemented"""
EXACT = 0.5
"""Share of the copies without substitutions; each of the others has its own rate up to `MOST_SUBSTITUTED`."""
MOST_SUBSTITUTED = 0.2


class Copy(NamedTuple):
    """One planted copy; positions are in the window, on the strand as stored."""

    source: int
    """First base of what is copied"""
    distance: int
    """From a base to its copy; of an inverted copy, from the first base to the copy's first"""
    length: int
    inverted: bool
    """Reverse-complemented; then no longer than the distance"""
    substituted: float
    """Probability of a base to be another one"""


Draw = Callable[[int, int], list[Copy]]
"""A window's length and key → what it gets, in the order of planting"""


class CopiedPlan:
    """A training plan of which a share of the windows has copies planted; packed windows are left as they are."""

    def __init__(self, plan: SamplePlan, share: float, seed: int, draw: Draw) -> None:
        self.plan, self.share, self.seed, self.draw = plan, share, seed, draw

    def epoch_size(self, epoch: int) -> int:
        return self.plan.epoch_size(epoch)

    def windows(self, epoch: int, index: int) -> list[Window]:
        """Where a window's segments lie."""
        return self.plan.windows(epoch, index)

    def batch(self, epoch: int, indices: np.ndarray) -> Rows:
        """The plan's, with the copies planted."""
        tokens, *others = self.plan.batch(epoch, indices)
        assert tokens is not None
        ids = others[1] if len(others) > 1 else None
        chance = _uniform(hash_bits(np.asarray(indices).astype(np.uint64), self.seed, epoch, 8))
        for row in np.flatnonzero(chance < self.share).tolist():
            if ids is None or not ids[row].any():
                key = hash_key(self.seed, epoch, int(indices[row]), 9)
                plant(tokens[row], self.draw(tokens.shape[1], key), key)
        return tokens, *others


def plant(window: np.ndarray, copies: list[Copy], key: int) -> None:
    """Plants copies in a window, (length,) uint8 tokens with their soft-mask bits, in place."""
    for number, copy in enumerate(copies):
        first = copy.source + copy.distance
        bases = window[copy.source + np.arange(copy.length) % copy.distance]
        if copy.inverted:
            bases = reverse_complement(bases)
        if copy.substituted:
            bases = _substituted(bases, copy.substituted, hash_key(key, number))
        window[first : first + copy.length] = bases


def scattered(length: int, key: int) -> list[Copy]:
    """Copies here and there; where the distance is shorter than the copy, it is a tandem repeat."""
    count = max(length // BASES_A_COPY, 1)
    drawn = _uniform(hash_bits(np.arange(6 * count, dtype=np.uint64), key, 1)).reshape(count, 6)
    copies = []
    for size, far, start, inverted, exact, rate in drawn.tolist():
        most = max(min(LENGTHS[1], length // 4), 1)
        bases = _log_uniform(size, min(LENGTHS[0], most), most)
        distance = _log_uniform(far, min(NEAREST, length - bases), length - bases)
        source = int(start * (length - bases - distance + 1))
        is_inverted = inverted < INVERTED
        bases = min(bases, distance) if is_inverted else bases
        copies.append(Copy(source, distance, bases, is_inverted, _rate(exact, rate)))
    return copies


def hairpins(length: int, key: int) -> list[Copy]:
    """Exact inverted repeats all through the window: each unit is followed by its reverse complement, and then the
    next."""
    unit, _, _ = _repeat(length, key, HAIRPINS)
    return _inverted(length, unit, 0.0)


def dense(length: int, key: int) -> list[Copy]:
    """Repeats all through the window: its first bases again and again, or hairpins."""
    unit, substituted, inverted = _repeat(length, key, PERIODS)
    return _inverted(length, unit, substituted) if inverted else [Copy(0, unit, length - unit, False, substituted)]


def _repeat(length: int, key: int, periods: tuple[int, int]) -> tuple[int, float, bool]:
    """Of a window of repeats: bases of the unit, the probability of a substitution, and whether it is inverted."""
    period, inverted, exact, rate = _uniform(hash_bits(np.arange(4, dtype=np.uint64), key, 1)).tolist()
    most = max(min(periods[1], length // 4), 1)
    return _log_uniform(period, min(periods[0], most), most), _rate(exact, rate), inverted < INVERTED


def _inverted(length: int, unit: int, substituted: float) -> list[Copy]:
    return [Copy(at, unit, unit, True, substituted) for at in range(0, length - 2 * unit + 1, 2 * unit)]


def _rate(exact: float, rate: float) -> float:
    return 0.0 if exact < EXACT else rate * MOST_SUBSTITUTED


def _uniform(bits: np.ndarray) -> np.ndarray:
    """uint64 → fp64 in [0, 1)."""
    return (bits >> np.uint64(11)) / 2.0**53


def _log_uniform(uniform: float, least: int, most: int) -> int:
    """A whole number from `least` to `most`, both included, each octave as likely as any other."""
    return min(int(least * ((most + 1) / least) ** uniform), most)


def _substituted(tokens: np.ndarray, rate: float, key: int) -> np.ndarray:
    """With other bases where the draw says so; N and the soft mask stay."""
    bits = hash_bits(np.arange(len(tokens), dtype=np.uint64), key, 2)
    hit = (_uniform(bits) < rate) & ((tokens & TOKEN_BITS) < BASES)
    step = 1 + (bits % np.uint64(BASES - 1)).astype(np.uint8)
    return np.where(hit, ((tokens & TOKEN_BITS) + step) % BASES | (tokens & SOFT_MASK_BIT), tokens)
