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

IUPAC_AMBIGUOUS = "RYSWKMBDHVX"
"""Codes read as N and counted; X masks repeats."""

ASCII_TO_TOKEN = np.full(256, UNK, np.uint8)
"""byte -> token, lower case with the soft-mask bit; U is T, IUPAC codes are N, what is no nucleotide code is UNK."""
TOKEN_TO_ASCII = np.full(256, ord("?"), np.uint8)
"""token -> byte: the inverse for A, C, G, T, N, lower case where the soft-mask bit is set."""
for _letter in IUPAC_AMBIGUOUS:
    ASCII_TO_TOKEN[ord(_letter)] = N
    ASCII_TO_TOKEN[ord(_letter.lower())] = N | SOFT_MASK_BIT
for _token, _letter in enumerate("ACGTN"):
    for _mask, _byte in ((0, ord(_letter)), (SOFT_MASK_BIT, ord(_letter.lower()))):
        ASCII_TO_TOKEN[_byte] = _token | _mask
        TOKEN_TO_ASCII[_token | _mask] = _byte
ASCII_TO_TOKEN[ord("U")], ASCII_TO_TOKEN[ord("u")] = T, T | SOFT_MASK_BIT


def encode(sequence: str | bytes) -> np.ndarray:
    """Tokens (length,) uint8 of a nucleotide sequence, soft mask in bit 7. What is no nucleotide code becomes UNK."""
    data = sequence.encode("ascii", "replace") if isinstance(sequence, str) else sequence
    return ASCII_TO_TOKEN[np.frombuffer(data, np.uint8)]


def decode(tokens: np.ndarray) -> str:
    """The sequence of tokens (length,) uint8: A, C, G, T, N, in lower case where soft-masked; other tokens are `?`."""
    return TOKEN_TO_ASCII[tokens].tobytes().decode("ascii")


def reverse_complement(tokens: np.ndarray) -> np.ndarray:
    """Reverse complement along the last axis of uint8 tokens; the soft-mask bit goes with its base. A new array."""
    return COMPLEMENT[tokens[..., ::-1]]
