"""The one alphabet: token ids, the soft-mask bit, and the look-up tables between bytes and tokens.

Torch-free on purpose: the command line's `--help` and the genome reader import it.
"""

import numpy as np

A, C, G, T, N, PAD, MASK, BOS, CLS, SEP, UNK = range(11)
TOKENS = ("A", "C", "G", "T", "N", "[PAD]", "[MASK]", "[BOS]", "[CLS]", "[SEP]", "[UNK]")
BASES = 4
"""The tokens 0..3 are the bases; losses and probabilities are over these alone."""
VOCABULARY_SIZE = 16
"""Rows of embedding tables: the tokens, padded to a size that matrix units like."""

SOFT_MASK_BIT = 0x80
"""Set in the token store on bases that the source wrote in lower case (repeats)."""
TOKEN_BITS = 0x7F

COMPLEMENT = np.arange(256, dtype=np.uint8)
"""token -> complementary token: 3 − t for the bases, itself otherwise; the soft-mask bit is kept."""
for _base in range(BASES):
    COMPLEMENT[_base] = 3 - _base
    COMPLEMENT[_base | SOFT_MASK_BIT] = (3 - _base) | SOFT_MASK_BIT

IUPAC_AMBIGUOUS = "RYSWKMBDHVU"
"""Codes read as N and counted. U is RNA's T, but in a reference genome it is a fault worth counting."""
