"""What the notebooks show where nothing else is given: a human locus where chromosome 20 is at hand, else a small model
and three "species" made of the demo genome."""

import gzip
import os
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
HUMAN_LOCUS = "20:34,203,001-34,222,000"
"""SPAG4 and the coding part of CPNE1 on GRCh37: 27 coding exons, in the test split of the model above"""
HUMAN_STARTS = "PDYN SNX5 MGME1 OVOL2 ERGIC3 RBM12 CTNNBL1 TTI1 RPRD1B TGM2 MAFB EYA2 ZNF217 TCFL5 DIDO1 GID8 SLC17A9"
"""Other genes in that split"""
AROUND_START = 100
"""Bases on both sides of a start codon"""


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


def locus(folder: Path) -> Locus:
    """A human locus, the model of chromosome 20 that comes with the package, and its genes, if the environment variable
    DNAMAMBA_TEST_DATA names a folder with chromosome 20 and its annotation; else the *E. coli* lac operon and a small
    model. What has to be made is written to the folder."""
    data = Path(os.environ.get("DNAMAMBA_TEST_DATA", "."))
    source = data / "genomes" / "human_chr20_GRCh37.fa.gz"
    coding = data / "annotation" / "chr20_GRCh37_cds_from_spliceai_orf.bed.gz"
    repeats = data / "annotation" / "chr20_GRCh37_windowmasker_repeats.bed.gz"
    folder.mkdir(parents=True, exist_ok=True)
    if not all(path.is_file() for path in (source, coding, repeats)):
        around = ["K-12-MG1655:340,001-420,000"]
        region = "K-12-MG1655:359,001-370,000"
        return Locus(demo_checkpoint(folder.parent / "demo"), demo.genome_path(), None, region, around)
    genome, genes = folder / "chr20.fa", folder / "chr20.gff3"
    if not genome.is_file():
        write_masked(genome, source, repeats)
    starts = write_genes(genes, coding)
    others = (starts[name] for name in HUMAN_STARTS.split())
    around = [f"20:{start - AROUND_START}-{start + AROUND_START}" for start in others]
    return Locus(HUMAN_CHECKPOINT, genome, genes, HUMAN_LOCUS, [HUMAN_LOCUS, *around])


def write_masked(path: Path, source: Path, repeats: Path) -> None:
    """A FASTA of one contig with the intervals of a BED file in lower case."""
    with gzip.open(source, "rb") as file:
        header, *lines = file.read().split(b"\n")
    bases = bytearray(b"".join(lines))
    with gzip.open(repeats, "rt") as file:
        for _, start, end, *_ in (line.split() for line in file):
            bases[int(start) : int(end)] = bases[int(start) : int(end)].lower()
    with whole_file(path, overwrite=True) as partial:
        partial.write_bytes(b"\n".join([header, *(bases[at : at + LINE] for at in range(0, len(bases), LINE)), b""]))


def write_genes(path: Path, coding: Path) -> dict[str, int]:
    """A GFF3 of a BED file's coding exons (name in column 4, strand in column 6); gene → the first base of its start
    codon, 1-based."""
    lines, starts = ["##gff-version 3\n"], dict[str, int]()
    with gzip.open(coding, "rt") as file:
        for contig, start, end, name, _, strand, *_ in (line.split() for line in file if line[0] != "#"):
            lines.append(f"{contig}\t.\tCDS\t{int(start) + 1}\t{end}\t.\t{strand}\t.\tParent={name};gene={name}\n")
            starts[name] = max(int(end), starts.get(name, 0)) if strand == "-" else starts.get(name, int(start) + 1)
    with whole_file(path, overwrite=True) as partial:
        partial.write_text("".join(lines))
    return starts


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
