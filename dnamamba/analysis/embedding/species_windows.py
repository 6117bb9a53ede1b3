"""Windows of several genomes as one FASTA, to embed and compare them."""

from pathlib import Path

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.errors import InputError
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.species_table import SpeciesRow, read_species
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import hash_key
from dnamamba.outputs import whole_file

TRIES = 50
"""Places tried for a window before a genome is given up as too short or too full of N"""


def write_species_windows(species: Path, out: Path, *, length: int, windows: int, seed: int = 0) -> None:
    """FASTA of `windows` windows a species without N, at random places of the contigs named or the primary ones.

    Args:
        species: TSV with the columns name and fasta, perhaps contigs, as `dnamamba finetune --task species` takes it.
        out: records are called SPECIES|CONTIG:START-END (1-based, both included).
    """
    rows = read_species(species)
    with whole_file(out) as partial, partial.open("w", encoding="ascii") as file:
        for row in rows:
            store = open_genome(row.fasta)
            for contig, start in _places(store, row, length, windows, seed):
                tokens = store.read(contig, start, start + length) & np.uint8(TOKEN_BITS)
                file.write(f">{row.name}|{contig}:{start + 1}-{start + length}\n{decode(tokens)}\n")


def _places(store: TokenStore, species: SpeciesRow, length: int, windows: int, seed: int) -> list[tuple[str, int]]:
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
