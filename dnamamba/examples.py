"""What the notebooks show where nothing else is given: a human locus, a small model, and three "species" made of the
demo genome."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba import demo
from dnamamba.alphabet import BASES, TOKEN_BITS, decode
from dnamamba.genome.store import open_genome
from dnamamba.outputs import whole_file
from dnamamba.training.settings import PretrainSettings

STEPS = 150
"""Of the demo's training: about 20 seconds on two cores"""
SPECIES_BASES = 600_000
"""Of each made species"""
ORDER = 3
"""Of the Markov chain that the third is drawn from"""
LINE = 80
HUMAN_CHECKPOINT = "human-chr20-1.4m"
HUMAN_CONTIG = "20:34190001-34255000"
HUMAN_LOCUS = f"{HUMAN_CONTIG}:13,001-32,000"
"""SPAG4 and the coding part of CPNE1: 27 coding exons, in the test split of the model above"""


class Locus(NamedTuple):
    """What a notebook looks at."""

    checkpoint: Path | str
    genome: Path
    genes: Path | None
    """GFF3; None: open reading frames stand for genes"""
    region: str
    """1-based with both ends, as samtools takes it"""
    around: list[str]
    """Regions that have the sites to be averaged"""


def human_locus() -> Locus:
    """The locus of human chromosome 20 and the model of that chromosome that come with the package. All of the locus is
    in the model's test split."""
    return Locus(HUMAN_CHECKPOINT, demo.locus_path(), demo.locus_genes_path(), HUMAN_LOCUS, [HUMAN_CONTIG])


def demo_checkpoint(folder: Path) -> Path:
    """A run folder with a model of the bundled E. coli, trained now if it is not there: 600,000 bases in 20 seconds, a
    quarter of what `python -m dnamamba.pretrain` does by default."""
    from dnamamba.training.run import pretrain

    if not (folder / "summary.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        pretrain(PretrainSettings(out=folder, max_steps=STEPS, validation_tokens=100_000, markov_order=6))
    return folder


def demo_species(folder: Path) -> Path:
    """Writes three FASTA files and a table of species that lists them, and gives the table.

    ecoli: 600,000 bases of the chromosome. backwards: the next 600,000, read from end to start without complementing:
    the same bases and the same k-mers reversed, and no gene that works. chain: drawn from the order-3 Markov chain of
    the first: the same 4-mers and nothing longer.
    """
    table = folder / "species.tsv"
    if table.is_file():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    store = open_genome(demo.genome_path())
    first, second = (
        store.read(store.contigs[0].name, start, start + SPECIES_BASES) & np.uint8(TOKEN_BITS)
        for start in (1_000_000, 2_500_000)
    )
    made = {"ecoli": first, "backwards": second[::-1], "chain": markov_chain(first, ORDER, SPECIES_BASES, seed=0)}
    for name, tokens in made.items():
        text = decode(np.ascontiguousarray(tokens))
        lines = "\n".join(text[start : start + LINE] for start in range(0, len(text), LINE))
        (folder / f"{name}.fa").write_text(f">{name}\n{lines}\n")
    with whole_file(table, overwrite=True) as partial:
        partial.write_text("name\tfasta\n" + "".join(f"{name}\t{name}.fa\n" for name in made))
    return table


def markov_chain(tokens: np.ndarray, order: int, length: int, seed: int) -> np.ndarray:
    """(length,) uint8 bases drawn from the frequencies of the bases after each `order` bases of `tokens` (no N)."""
    context = np.zeros(tokens.size - order, np.int64)
    for position in range(order):
        context = context * BASES + tokens[position : position + context.size]
    counts = np.zeros((BASES**order, BASES))
    np.add.at(counts, (context, tokens[order:]), 1)
    cumulative = np.cumsum(counts + 1e-9, 1)
    cumulative = (cumulative / cumulative[:, -1:]).tolist()
    uniforms = np.random.default_rng(seed).random(length).tolist()
    out = np.empty(length, np.uint8)
    state = int(context[0])
    for position, uniform in enumerate(uniforms):
        row = cumulative[state]
        base = 0 if uniform < row[0] else 1 if uniform < row[1] else 2 if uniform < row[2] else 3
        out[position] = base
        state = (state * BASES + base) % BASES**order
    return out
