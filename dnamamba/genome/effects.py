"""What a single-base change does to the transcripts it lies in, by the standard genetic code."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, encode, reverse_complement
from dnamamba.genome.genes import CODON, Gene
from dnamamba.genome.store import TokenStore

EFFECTS = (
    "between genes",
    "intron",
    "exon, not coding",
    "synonymous",
    "missense",
    "start lost",
    "stop lost",
    "splice site",
    "nonsense",
)
"""In this order of severity; of several transcripts the most severe counts"""
SPLICE = 2
"""Bases of an intron at either end that are called splice site: GT and AG"""

_AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
"""In the order TTT, TTC, TTA, TTG, TCT … of NCBI's table 1; bacteria (table 11) differ in the starts alone"""
_TABLE = np.zeros(BASES**CODON, np.uint8)
for _codon, _letter in zip(product("TCAG", repeat=CODON), _AMINO_ACIDS, strict=True):
    _a, _b, _c = encode("".join(_codon)).tolist()
    _TABLE[_a * 16 + _b * 4 + _c] = ord(_letter)


def translate(tokens: np.ndarray) -> str:
    """Amino acids of a coding sequence (length,) uint8 in frame from its first base; `X` for a codon with an N, and
    what is left of a last codon is left out."""
    codons = tokens[: tokens.size // CODON * CODON].reshape(-1, CODON).astype(np.int64)
    return "".join(chr(_TABLE[a * 16 + b * 4 + c]) if max(a, b, c) < BASES else "X" for a, b, c in codons.tolist())


class Changes(NamedTuple):
    """What single-base changes do to one transcript."""

    effect: np.ndarray
    """(changes,) int64: index into `EFFECTS`"""
    codon: np.ndarray
    """(changes,) int64: 0-based codon of the coding sequence; −1 outside of it"""
    phase: np.ndarray
    """(changes,) int64: which base of the codon, 0 to 2; −1 outside"""
    before: np.ndarray
    """(changes,) str: amino acid of the reference, `*` of a stop, `X` of a codon with an N; empty outside"""
    after: np.ndarray
    """(changes,) str: the same with the change"""
    coding: np.ndarray
    """(bases,) uint8: the transcript's coding sequence as the genome has it, in its own direction"""


def effects_of_changes(
    store: TokenStore, genes: Iterable[Gene], contig: str, start: np.ndarray, alt: np.ndarray
) -> np.ndarray:
    """(changes,) str, one of `EFFECTS` each.

    Args:
        start: (changes,) int64, 0-based positions on the contig.
        alt: (changes,) uint8 tokens of the alternate base on the forward strand.
    """
    worst = np.zeros(start.size, np.int64)
    for gene in genes:
        if gene.contig == contig:
            inside = np.flatnonzero((start >= gene.start) & (start < gene.end))
            if inside.size:
                found = changes_of_transcript(store, gene, start[inside], alt[inside])
                worst[inside] = np.maximum(worst[inside], found.effect)
    return np.array(EFFECTS)[worst]


def _around(store: TokenStore, contig: str, first: int, last: int) -> np.ndarray:
    """Stored tokens from below 0 or to beyond the contig's end, where it goes around a circle."""
    length = store.contig(contig).length
    parts = [(first + by, last + by) for by in (length, 0, -length)]
    inside = [(max(begin, 0), min(end, length)) for begin, end in parts]
    return np.concatenate([store.read(contig, begin, end) for begin, end in inside if begin < end])


def changes_of_transcript(store: TokenStore, gene: Gene, start: np.ndarray, alt: np.ndarray) -> Changes:
    """What changes inside a transcript do to it; `start` and `alt` as in `effects_of_changes`."""
    effect = np.full(start.size, EFFECTS.index("intron"))
    for (_, left), (right, _) in zip(gene.exons[:-1].tolist(), gene.exons[1:].tolist(), strict=True):
        near = ((start >= left) & (start < left + SPLICE)) | ((start >= right - SPLICE) & (start < right))
        effect[near] = EFFECTS.index("splice site")
    for first, last in gene.exons.tolist():
        effect[(start >= first) & (start < last)] = EFFECTS.index("exon, not coding")
    codon, phase = np.full((2, start.size), -1, np.int64)
    before, after = np.full((2, start.size), "", "<U1")
    if not len(gene.coding):
        return Changes(effect, codon, phase, before, after, np.empty(0, np.uint8))
    positions = np.concatenate([np.arange(first, last) for first, last in gene.coding.tolist()])
    tokens = np.concatenate([_around(store, gene.contig, first, last) for first, last in gene.coding.tolist()])
    tokens &= np.uint8(TOKEN_BITS)
    if gene.reverse:
        positions, tokens, alt = positions[::-1], reverse_complement(tokens), 3 - alt
    order = np.argsort(positions)
    index = order[np.minimum(np.searchsorted(positions, start, sorter=order), positions.size - 1)]
    whole = positions.size // CODON
    coding = np.flatnonzero((positions[index] == start) & (index // CODON < whole))
    codon[coding], phase[coding] = index[coding] // CODON, index[coding] % CODON
    codons = tokens[: whole * CODON].reshape(-1, CODON)[codon[coding]]
    changed = codons.copy()
    changed[np.arange(coding.size), phase[coding]] = alt[coding]
    for column, rows in ((before, codons), (after, changed)):
        column[coding] = list(translate(rows.ravel()))
    effect[coding] = _effect_on_protein(before[coding], after[coding], codon[coding])
    return Changes(effect, codon, phase, before, after, tokens)


def _effect_on_protein(before: np.ndarray, after: np.ndarray, codon: np.ndarray) -> np.ndarray:
    kind = np.where(before == after, EFFECTS.index("synonymous"), EFFECTS.index("missense"))
    kind[(after == "*") & (before != "*")] = EFFECTS.index("nonsense")
    kind[(before == "*") & (after != "*")] = EFFECTS.index("stop lost")
    kind[codon == 0] = EFFECTS.index("start lost")
    return kind
