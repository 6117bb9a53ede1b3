"""Windows of several genomes as one FASTA, to embed and compare them."""

import csv
from pathlib import Path

import numpy as np

from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.errors import InputError
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import hash_key
from dnamamba.outputs import whole_file

TRIES = 50
"""Places tried for a window before a genome is given up as too short or too full of N"""


def write_species_windows(species: Path, out: Path, *, length: int, windows: int, seed: int = 0) -> None:
    """FASTA of `windows` windows a species without N, at random places of its primary contigs, forward strand.

    Args:
        species: TSV with the columns name and fasta, as `dnamamba finetune --task species` takes it.
        out: records are called SPECIES|CONTIG:START-END (1-based, both included).
    """
    with species.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"name", "fasta"} <= rows[0].keys():
        raise InputError(f"{species}: expected a TSV with the columns name and fasta, a row a species")
    with whole_file(out) as partial, partial.open("w", encoding="ascii") as file:
        for row in rows:
            store = open_genome([species.parent / name.strip() for name in row["fasta"].split(",")])
            for contig, start in _places(store, row["name"], length, windows, seed):
                tokens = store.read(contig, start, start + length) & np.uint8(TOKEN_BITS)
                file.write(f">{row['name']}|{contig}:{start + 1}-{start + length}\n{decode(tokens)}\n")


def _places(store: TokenStore, name: str, length: int, windows: int, seed: int) -> list[tuple[str, int]]:
    contigs = [contig for contig in select_contigs(store, None).chosen if contig.length >= length]
    random = np.random.default_rng(hash_key(seed, *name.encode()))
    sizes = np.array([contig.length - length + 1 for contig in contigs], float)
    found: list[tuple[str, int]] = []
    for _ in range(windows * TRIES if contigs else 0):
        contig = contigs[int(random.choice(len(contigs), p=sizes / sizes.sum()))]
        start = int(random.integers(contig.length - length + 1))
        if store.n_count(contig.name, start, start + length) == 0:
            found.append((contig.name, start))
            if len(found) == windows:
                return found
    raise InputError(f"{name}: found {len(found)} windows of {length:,} bases without N, expected {windows}")
