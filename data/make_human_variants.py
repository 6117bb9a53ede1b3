"""Makes the variants that come with the human locus: single-base changes of each effect, and deletions, in each gene.

    python data/make_human_variants.py

Nobody has seen these variants in a person: they are drawn (seed 0) from all that would have the effect, by the genes of
`human_locus.gff3`. So what they do to a protein is known, and nothing else is.
"""

import tempfile
from pathlib import Path

import numpy as np

from dnamamba import demo
from dnamamba.alphabet import TOKEN_BITS, decode
from dnamamba.genome.effects import EFFECTS, changes_of_transcript, effects_of_changes
from dnamamba.genome.genes import Gene, read_genes
from dnamamba.genome.store import TokenStore, open_genome

SHOWN = ("nonsense", "missense", "synonymous", "splice site", "intron")
DELETED = 3


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(open_genome([demo.locus_path()], store=Path(folder) / "locus.dnamamba"), out)


def write(store: TokenStore, out: Path) -> None:
    rng = np.random.default_rng(0)
    genes = read_genes(demo.locus_genes_path(), store)
    rows = [row for gene in genes for row in variants(store, genes, gene, rng)]
    contig = store.contigs[0]
    lines = ["##fileformat=VCFv4.2", f"##contig=<ID={contig.name},length={contig.length}>"]
    lines += ['##INFO=<ID=EFFECT,Number=1,Type=String,Description="What the change does to the transcript">']
    lines += ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for start, ref, alt, name, effect in sorted(rows):
        lines.append(f"{contig.name}\t{start + 1}\t{name}\t{ref}\t{alt}\t.\t.\tEFFECT={effect}")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def variants(
    store: TokenStore, genes: list[Gene], gene: Gene, rng: np.random.Generator
) -> list[tuple[int, str, str, str, str]]:
    """Start, REF, ALT, ID and effect: one of each of `SHOWN` that the gene can have, and a deletion in its CDS. No
    change has a worse effect on another of the genes."""
    tokens = store.read(gene.contig, gene.start, gene.end) & TOKEN_BITS
    start = np.repeat(np.arange(gene.start, gene.end), 3)
    alt = ((np.repeat(tokens, 3) + np.tile([1, 2, 3], len(tokens))) % 4).astype(np.uint8)
    effect = np.array(EFFECTS)[changes_of_transcript(store, gene, start, alt).effect]
    effect[effect != effects_of_changes(store, genes, gene.contig, start, alt)] = ""
    rows = []
    for kind in SHOWN:
        there = np.flatnonzero(effect == kind)
        if there.size:
            row = int(rng.choice(there))
            ref = decode(tokens[start[row] - gene.start][None])
            text = kind.replace(" ", "_")
            rows.append((int(start[row]), ref, decode(alt[row][None]), f"{gene.name}_{text}", text))
    first, last = gene.coding[len(gene.coding) // 2].tolist()
    before = int(rng.integers(first, last - DELETED - 1))
    bases = decode(tokens[before - gene.start : before - gene.start + 1 + DELETED])
    return [*rows, (before, bases, bases[0], f"{gene.name}_deletion", "inframe_deletion")]


if __name__ == "__main__":
    main(demo.locus_path().with_name(f"{demo.LOCUS_NAME}.vcf"))
