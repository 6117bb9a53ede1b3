"""What an annotation of genes says of a variant, as numbers for a classifier: effect, amino acids, splice sites.

An allele lies in many transcripts. The one counts in which its effect is the most severe (`effects.EFFECTS`), of equal
ones that with the longest coding sequence, then the first in the file's order. All features follow that transcript's
strand. NaN stands for what is not there: amino acids outside of a coding sequence, splice sites of one exon, an N.
"""

from collections.abc import Sequence

import numpy as np

from dnamamba.alphabet import BASES, TOKEN_BITS, C, G, N, encode
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.amino_acids import (
    AMINO_ACIDS,
    CHARGE,
    HYDROPATHY,
    VOLUME,
    blosum62,
    grantham,
    numbers_of,
    values_of,
)
from dnamamba.genome.effects import EFFECTS, Changes, changes_of_transcript, translate
from dnamamba.genome.genes import CODON, Gene
from dnamamba.genome.store import TokenStore

FARTHEST = 50
"""Bases: a splice site farther away counts as this far"""
AROUND = 50
"""Bases on either side of which GC is taken"""
NEIGHBOURS = (-3, -2, -1, 1, 2, 3)
"""Amino acids next to the changed one, towards the carboxyl end"""
WINDOWS = (5, 15)
"""Amino acids on either side of which composition is taken"""
_GROUPS = {"aromatic_or_cysteine": "FWYC", "glycine_or_proline": "GP", "charged": "DEKR", "cysteine": "C"}

_OF_SEQUENCE = ("effect", "reference_base", "alternate_base", "transition", "cpg", "gc", "length_change", "frame_shift")
_OF_SPLICING = ("donor_distance", "acceptor_distance")
_OF_CHANGE = (
    *("codon_position", "blosum62", "grantham", "hydropathy_change", "volume_change", "charge_change"),
    *(f"{allele}_{scale}" for allele in ("reference", "alternate") for scale in ("hydropathy", "volume", "charge")),
    *("reference_blosum62", "alternate_proline", "place_in_protein", "amino_acids_to_end", "protein_length"),
)
_OF_PROTEIN = (
    *(f"{scale}_at_{place:+d}" for scale in ("hydropathy", "volume") for place in NEIGHBOURS),
    *(
        f"{what}_within_{width}"
        for width in WINDOWS
        for what in ("hydropathy", "volume", *_GROUPS, "different_amino_acids")
    ),
)
FEATURES = (*_OF_SEQUENCE, *_OF_SPLICING, *_OF_CHANGE, *_OF_PROTEIN)
"""Names of the columns of `variant_features`"""
_FIRST_OF_SPLICING = len(_OF_SEQUENCE)
_FIRST_OF_CHANGE = _FIRST_OF_SPLICING + len(_OF_SPLICING)
_FIRST_OF_PROTEIN = _FIRST_OF_CHANGE + len(_OF_CHANGE)
CODING_CHANGE = len(EFFECTS)
"""The effect of an insertion, deletion or several bases that begin in a coding sequence; `frame_shift` says more"""


def variant_features(store: TokenStore, genes: Sequence[Gene], alleles: Alleles) -> np.ndarray:
    """(alleles, len(FEATURES)) float32; NaN throughout for alleles with a reason (`Alleles.reason`).

    effect is a place in `EFFECTS`, or `CODING_CHANGE`. Bases are tokens, on the transcript's strand (forward between
    genes). Distances count bases from the exon's edge along the transcript, at most `FARTHEST`: of a donor −1 is the
    exon's last base and 1 the intron's first, of an acceptor 1 is the exon's first. GC is of `AROUND` bases on either
    side. Volumes are in Å³.
    """
    found = np.full((len(alleles), len(FEATURES)), np.nan, np.float32)
    known = np.flatnonzero(alleles.reason == 0)
    by_contig: dict[str, list[Gene]] = {}
    for gene in genes:
        by_contig.setdefault(gene.contig, []).append(gene)
    for contig in np.unique(alleles.contig[known]).tolist():
        rows = known[alleles.contig[known] == contig]
        name = store.contigs[contig].name
        alt = [alleles.alt[row] for row in rows.tolist()]
        found[rows] = _on_contig(
            store, by_contig.get(name, []), name, alleles.start[rows], alleles.ref_length[rows], alt
        )
    return found


def _on_contig(
    store: TokenStore, genes: list[Gene], contig: str, start: np.ndarray, ref_length: np.ndarray, alt: list[str]
) -> np.ndarray:
    one_base = (ref_length == 1) & (np.array([len(text) for text in alt], np.int64) == 1)
    sequence = _contig(store, contig)
    place = np.minimum(start, sequence.size - 1)  # an insertion may be behind the last base
    reference = sequence[place]
    alternate = np.where(one_base, encode("".join(text[:1] or "N" for text in alt)) & TOKEN_BITS, reference)
    found = np.full((start.size, len(FEATURES)), np.nan)
    found[:, 0] = EFFECTS.index("between genes")
    reverse, worst = np.zeros(start.size, bool), np.full((start.size, 2), -1, np.int64)
    for gene in genes:
        inside = np.flatnonzero((start >= gene.start) & (start < gene.end))
        if not inside.size:
            continue
        changes = changes_of_transcript(store, gene, start[inside], alternate[inside])
        effect = np.where(~one_base[inside] & (changes.codon >= 0), CODING_CHANGE, changes.effect)
        better = (effect > worst[inside, 0]) | ((effect == worst[inside, 0]) & (changes.coding.size > worst[inside, 1]))
        if not better.any():
            continue
        rows = inside[better]
        worst[rows, 0], worst[rows, 1], reverse[rows] = effect[better], changes.coding.size, gene.reverse
        found[rows, 0] = effect[better]
        found[rows, _FIRST_OF_SPLICING:_FIRST_OF_CHANGE] = _to_splice_sites(gene, start[rows])
        found[rows, _FIRST_OF_CHANGE:] = _in_protein(changes, better, one_base[rows])
    found[:, 1:_FIRST_OF_SPLICING] = _of_sequence(sequence, place, reference, alternate, one_base, reverse)
    change = np.array([len(text) for text in alt], np.int64) - ref_length
    found[:, _OF_SEQUENCE.index("length_change")] = change
    found[:, _OF_SEQUENCE.index("frame_shift")] = (found[:, 0] == CODING_CHANGE) & (change % CODON != 0)
    return found


def _contig(store: TokenStore, contig: str) -> np.ndarray:
    return store.read(contig, 0, store.contig(contig).length) & np.uint8(TOKEN_BITS)


def _of_sequence(
    sequence: np.ndarray,
    place: np.ndarray,
    reference: np.ndarray,
    alternate: np.ndarray,
    one_base: np.ndarray,
    reverse: np.ndarray,
) -> np.ndarray:
    """(alleles, 7): the columns of `_OF_SEQUENCE` but the effect, the last two empty."""
    found = np.full((place.size, len(_OF_SEQUENCE) - 1), np.nan)
    known = (reference < BASES) & one_base
    for column, token in enumerate((reference, alternate)):
        found[known, column] = np.where(reverse, 3 - token.astype(np.int64), token)[known]
    found[known, 2] = np.abs(reference[known].astype(int) - alternate[known]) == 2  # A and G, C and T
    padded = np.concatenate(([N], sequence, [N]))
    before, here, after = padded[place], padded[place + 1], padded[place + 2]
    found[:, 3] = ((here == C) & (after == G)) | ((before == C) & (here == G))
    strong = np.concatenate(([0], np.cumsum((sequence == C) | (sequence == G))))
    of_known = np.concatenate(([0], np.cumsum(sequence < BASES)))
    first, last = np.maximum(place - AROUND, 0), np.minimum(place + AROUND + 1, sequence.size)
    bases = of_known[last] - of_known[first]
    found[:, 4] = np.where(bases > 0, (strong[last] - strong[first]) / np.maximum(bases, 1), np.nan)
    return found


def _to_splice_sites(gene: Gene, start: np.ndarray) -> np.ndarray:
    """(alleles, 2): to the nearest donor and the nearest acceptor of the transcript; see `variant_features`."""
    found = np.full((start.size, 2), np.nan)
    left, right = gene.exons[:-1, 1], gene.exons[1:, 0]  # an intron's first base, and the base after its last
    if not left.size:
        return found
    for column, is_left in enumerate((not gene.reverse, gene.reverse)):
        edges = left if is_left else right
        edges = edges[::-1] if gene.reverse else edges  # of two as near the transcript's first one counts
        nearest = np.abs(start[:, None] * 2 + 1 - 2 * edges).argmin(1)
        # There is no 0: an edge lies between two bases.
        steps = start - edges[nearest]
        steps = np.where(steps >= 0, steps + 1, steps)
        found[:, column] = np.clip(-steps if gene.reverse else steps, -FARTHEST, FARTHEST)
    return found


def _in_protein(changes: Changes, chosen: np.ndarray, one_base: np.ndarray) -> np.ndarray:
    """(chosen alleles, columns of `_OF_CHANGE` and `_OF_PROTEIN`)."""
    found = np.full((int(chosen.sum()), len(_OF_CHANGE) + len(_OF_PROTEIN)), np.nan)
    codon, phase = changes.codon[chosen], changes.phase[chosen]
    rows = np.flatnonzero(codon >= 0)
    if not rows.size:
        return found
    protein = translate(changes.coding)
    numbers = numbers_of(protein)
    before, after = numbers_of(changes.before[chosen][rows]), numbers_of(changes.after[chosen][rows])
    after[~one_base[rows]] = -1
    scales = [(values_of(scale, before), values_of(scale, after)) for scale in (HYDROPATHY, VOLUME, CHARGE)]
    both = (before >= 0) & (after >= 0)
    columns = [
        phase[rows],
        np.where(both, blosum62()[before, after], np.nan),
        np.where(both, grantham()[before, after], np.nan),
        *(new - old for old, new in scales),
        *(old for old, _ in scales),
        *(new for _, new in scales),
        values_of(np.diag(blosum62()), before),
        np.where(after < 0, np.nan, after == AMINO_ACIDS.index("P")),
        codon[rows] / max(len(protein), 1),
        len(protein) - codon[rows],
        np.full(rows.size, len(protein)),
        *_around(numbers, codon[rows]),
    ]
    found[rows] = np.column_stack(columns)
    return found


def _around(protein: np.ndarray, codon: np.ndarray) -> list[np.ndarray]:
    """The columns of `_OF_PROTEIN` at each codon: its neighbours, and the composition of windows around it."""
    farthest = max(WINDOWS)
    padded = np.concatenate((np.full(farthest, -1), protein, np.full(farthest, -1)))
    at = codon + farthest
    columns = [values_of(scale, padded[at + by]) for scale in (HYDROPATHY, VOLUME) for by in NEIGHBOURS]
    for width in WINDOWS:
        near = padded[at[:, None] + np.arange(-width, width + 1)]
        known = (near >= 0).sum(1)
        for scale in (HYDROPATHY, VOLUME):
            columns.append(np.where(near < 0, 0.0, scale[near]).sum(1) / np.where(known, known, np.nan))
        counts = (near[:, :, None] == np.arange(len(AMINO_ACIDS))).sum(1)
        for letters in _GROUPS.values():
            columns.append(counts[:, numbers_of(letters)].sum(1))
        columns.append((counts > 0).sum(1))
    return columns
