"""What a single-base change does to the transcripts it lies in, by the standard genetic code."""

from collections.abc import Iterable
from itertools import product

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
                found = _of_gene(store, gene, start[inside], alt[inside])
                worst[inside] = np.maximum(worst[inside], found)
    return np.array(EFFECTS)[worst]


def _around(store: TokenStore, contig: str, first: int, last: int) -> np.ndarray:
    """Stored tokens from below 0 or to beyond the contig's end, where it goes around a circle."""
    length = store.contig(contig).length
    parts = [(first + by, last + by) for by in (length, 0, -length)]
    inside = [(max(begin, 0), min(end, length)) for begin, end in parts]
    return np.concatenate([store.read(contig, begin, end) for begin, end in inside if begin < end])


def _of_gene(store: TokenStore, gene: Gene, start: np.ndarray, alt: np.ndarray) -> np.ndarray:
    level = np.full(start.size, EFFECTS.index("intron"))
    for (_, left), (right, _) in zip(gene.exons[:-1].tolist(), gene.exons[1:].tolist(), strict=True):
        near = ((start >= left) & (start < left + SPLICE)) | ((start >= right - SPLICE) & (start < right))
        level[near] = EFFECTS.index("splice site")
    for first, last in gene.exons.tolist():
        level[(start >= first) & (start < last)] = EFFECTS.index("exon, not coding")
    if not len(gene.coding):
        return level
    positions = np.concatenate([np.arange(first, last) for first, last in gene.coding.tolist()])
    tokens = np.concatenate([_around(store, gene.contig, first, last) for first, last in gene.coding.tolist()])
    tokens &= np.uint8(TOKEN_BITS)
    if gene.reverse:
        positions, tokens, alt = positions[::-1], reverse_complement(tokens), 3 - alt
    order = np.argsort(positions)
    index = order[np.minimum(np.searchsorted(positions, start, sorter=order), positions.size - 1)]
    whole = positions.size // CODON
    coding = np.flatnonzero((positions[index] == start) & (index // CODON < whole))
    codons = tokens[: whole * CODON].reshape(-1, CODON)[index[coding] // CODON]
    changed = codons.copy()
    changed[np.arange(coding.size), index[coding] % CODON] = alt[coding]
    before, after = (np.array(list(translate(rows.ravel())), "<U1") for rows in (codons, changed))
    kind = np.where(before == after, EFFECTS.index("synonymous"), EFFECTS.index("missense"))
    kind[(after == "*") & (before != "*")] = EFFECTS.index("nonsense")
    kind[(before == "*") & (after != "*")] = EFFECTS.index("stop lost")
    kind[index[coding] // CODON == 0] = EFFECTS.index("start lost")
    level[coding] = kind
    return level
