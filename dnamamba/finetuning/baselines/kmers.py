"""k-mer counts of many sequences at once. numpy only."""

from collections.abc import Sequence

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, N

CHUNK_BASES = 1 << 22
CHUNK_CELLS = 1 << 24
"""Bases, and cells of the table, that one call of `bincount` handles."""


def kmer_counts(sequences: Sequence[np.ndarray] | np.ndarray, k: int, *, both_strands: bool = False) -> np.ndarray:
    """(sequences, 4^k) float32: how often each k-mer occurs; column c is the k-mer that c spells in base 4.

    Args:
        sequences: uint8 tokens of each, of any lengths; the soft-mask bit is dropped, and k-mers with anything but
            A, C, G, T are not counted.
        both_strands: adds the counts of the reverse complement.
    """
    assert 1 <= k <= 10, "4^k columns"
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    counts = np.zeros((len(lengths), BASES**k), np.float32)
    per_call = max(CHUNK_CELLS // BASES**k, 1)
    first = 0
    while first < len(lengths):
        fits = int(np.searchsorted(np.cumsum(lengths[first : first + per_call]), CHUNK_BASES, side="right"))
        last = first + max(fits, 1)
        counts[first:last] = _count(sequences[first:last], lengths[first:last], k)
        first = last
    return counts + counts[:, reverse_complement_codes(k)] if both_strands else counts


def kmer_frequencies(sequences: Sequence[np.ndarray] | np.ndarray, k: int, *, both_strands: bool = False) -> np.ndarray:
    """(sequences, 4^k) float32: `kmer_counts` divided by their sum; zeros for a sequence without any k-mer."""
    counts = kmer_counts(sequences, k, both_strands=both_strands)
    counts /= np.maximum(counts.sum(1, keepdims=True), 1)
    return counts


def reverse_complement_codes(k: int) -> np.ndarray:
    """(4^k,) int64: the code of each k-mer's reverse complement."""
    codes = np.arange(BASES**k)
    complements = np.zeros_like(codes)
    for _ in range(k):
        complements = complements * BASES + (BASES - 1 - codes % BASES)
        codes = codes // BASES
    return complements


def _count(sequences: Sequence[np.ndarray] | np.ndarray, lengths: np.ndarray, k: int) -> np.ndarray:
    """All sequences in one row with an N behind each, so that no k-mer reaches over a border; one rolling code."""
    ends = np.cumsum(lengths + 1)
    row = np.full(int(ends[-1]) + k, N, np.uint8)
    for sequence, end in zip(sequences, ends.tolist(), strict=True):
        row[end - 1 - len(sequence) : end - 1] = np.asarray(sequence) & TOKEN_BITS
    size = len(row) - k + 1
    codes = np.zeros(size, np.int64)
    is_valid = np.ones(size, bool)
    for offset in range(k):
        bases = row[offset : offset + size]
        codes = codes * BASES + bases
        is_valid &= bases < BASES
    owner = np.repeat(np.arange(len(lengths)), lengths + 1)
    where = np.flatnonzero(is_valid)
    flat = np.bincount(owner[where] * BASES**k + codes[where], minlength=len(lengths) * BASES**k)
    return flat.reshape(len(lengths), BASES**k)
