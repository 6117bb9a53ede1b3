"""Windows of several genomes as one table, to embed and compare them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.errors import InputError
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.species_table import SpeciesRow, read_species
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import hash_key

if TYPE_CHECKING:
    import polars

TRIES = 50
"""Positions tried for a window before a genome is given up as too short or too full of N"""


def species_windows(species: Path, *, length: int, windows: int, seed: int = 0) -> "polars.DataFrame":
    """`windows` windows of each species without N, at random positions of the contigs named or the primary ones,
    forward strand: species, contig, start, end (0-based, half-open), sequence.

    Args:
        species: TSV with the columns name and fasta, perhaps contigs, as `dnamamba finetune --task species` takes it.
    """
    import polars

    rows = []
    for row in read_species(species):
        store = open_genome(row.fasta)
        for contig, start in _starts(store, row, length, windows, seed):
            tokens = store.read(contig, start, start + length) & np.uint8(TOKEN_BITS)
            rows.append((row.name, contig, start, start + length, decode(tokens)))
    return polars.DataFrame(rows, schema=["species", "contig", "start", "end", "sequence"], orient="row")


def _starts(store: TokenStore, species: SpeciesRow, length: int, windows: int, seed: int) -> list[tuple[str, int]]:
    contigs = [contig for contig in select_contigs(store, species.contigs).chosen if contig.length >= length]
    random = np.random.default_rng(hash_key(seed, *species.name.encode()))
    sizes = np.array([contig.length - length + 1 for contig in contigs], float)
    found: list[tuple[str, int]] = []
    for _ in range(windows * TRIES if contigs else 0):
        contig = contigs[int(random.choice(len(contigs), p=sizes / sizes.sum()))]
        start = int(random.integers(contig.length - length + 1))
        if store.n_count(contig.name, start, start + length) == 0:
            found.append((contig.name, start))
            if len(found) == windows:
                return found
    raise InputError(f"{species.name}: found {len(found)} windows of {length:,} bases without N, expected {windows}")
