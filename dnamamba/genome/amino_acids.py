"""What amino acids are like, and how unlike two of them are: published tables, for the features of variants."""

from functools import cache

import numpy as np

AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"
"""In the order of BLOSUM62's table; all arrays here have it"""

HYDROPATHY = np.array(
    [1.8, -4.5, -3.5, -3.5, 2.5, -3.5, -3.5, -0.4, -3.2, 4.5, 3.8, -3.9, 1.9, 2.8, -1.6, -0.8, -0.7, -0.9, -1.3, 4.2]
)
"""Kyte & Doolittle 1982, J. Mol. Biol. 157: 105, table 2; higher is less soluble"""
_VOLUME_TEXT = """88.6 173.4 114.1 111.1 108.5 143.8 138.4 60.1 153.2 166.7 166.7 168.6 162.9 189.9 112.7 89.0 116.1
227.8 193.6 140.0"""
VOLUME = np.array(_VOLUME_TEXT.split(), np.float64)
"""Å³ in solution: Zamyatnin 1972, Prog. Biophys. Mol. Biol. 24: 107"""
CHARGE = np.array([{"D": -1.0, "E": -1.0, "K": 1.0, "R": 1.0}.get(letter, 0.0) for letter in AMINO_ACIDS])
"""At pH 7; histidine counts as neutral"""

_COMPOSITION = [0, 0.65, 1.33, 1.38, 2.75, 0.89, 0.92, 0.74, 0.58, 0, 0, 0.33, 0, 0, 0.39, 1.42, 0.71, 0.13, 0.20, 0]
_POLARITY = [8.1, 10.5, 11.6, 13, 5.5, 10.5, 12.3, 9, 10.4, 5.2, 4.9, 11.3, 5.7, 5.2, 8, 9.2, 8.6, 5.4, 6.2, 5.9]
_SIDE_CHAIN = [31, 124, 56, 54, 55, 85, 83, 3, 96, 111, 111, 119, 105, 132, 32.5, 32, 61, 170, 136, 84]


@cache
def grantham() -> np.ndarray:
    """(20, 20) float64: Grantham's distance, from 0 to 215 (cysteine to tryptophan), not rounded.

    D = 50.723 · √(1.833 (cᵢ − cⱼ)² + 0.1018 (pᵢ − pⱼ)² + 0.000399 (vᵢ − vⱼ)²) of composition c, polarity p and volume
    v of the side chain: Grantham 1974, Science 185: 862, table 1 and equation 1.
    """
    parts = zip((1.833, 0.1018, 0.000399), (_COMPOSITION, _POLARITY, _SIDE_CHAIN), strict=True)
    squares = [weight * np.subtract.outer(np.array(values), np.array(values)) ** 2 for weight, values in parts]
    return 50.723 * np.sqrt(np.sum(squares, axis=0))


@cache
def blosum62() -> np.ndarray:
    """(20, 20) float64: half-bits of Henikoff & Henikoff 1992, PNAS 89: 10915, as Biopython has them."""
    from Bio.Align import substitution_matrices

    table = substitution_matrices.load("BLOSUM62")
    return np.array([[float(table[a, b]) for b in AMINO_ACIDS] for a in AMINO_ACIDS])


def numbers_of(letters: str | np.ndarray) -> np.ndarray:
    """(length,) int64: where each letter stands in `AMINO_ACIDS`; −1 for a stop, an unknown one, or none."""
    return np.array([AMINO_ACIDS.find(letter) if letter else -1 for letter in letters], np.int64)


def values_of(scale: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """A scale's values at `numbers`, NaN at −1."""
    return np.where(numbers < 0, np.nan, scale[numbers])
