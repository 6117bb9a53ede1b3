"""Which variants have to stay in one split: those that share a gene, or a site in the genome, however indirectly."""

import re
from collections.abc import Sequence

from dnamamba.tables import MISSING

NAMES_SHOWN = 3


def names_in(cell: str) -> list[str]:
    """The genes of a cell or INFO field: `BRCA1,NBR2` and `BRCA1;NBR2` are two. Missing ones are left out."""
    return [name for name in map(str.strip, re.split("[,;]", cell)) if name not in MISSING]


def joined_groups(names: Sequence[Sequence[str]], sites: Sequence[tuple[str, int]]) -> list[str]:
    """The group of each variant.

    Genes of one variant are joined, and so are those of all variants at one site: its alternates, overlapping genes. A
    group is called by its genes in alphabetical order, the first three of many.

    Args:
        names: the genes of each variant, at least one.
        sites: contig and position of each.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = name = parent[above]
        return name

    at: dict[tuple[str, int], str] = {}
    for genes, site in zip(names, sites, strict=True):
        first = at.setdefault(site, genes[0])
        for gene in genes:
            parent[root(gene)] = root(first)
    members: dict[str, list[str]] = {}
    for gene in sorted(parent):
        members.setdefault(root(gene), []).append(gene)
    called = {
        top: ",".join(genes[:NAMES_SHOWN])
        + (f" and {len(genes) - NAMES_SHOWN} more" if len(genes) > NAMES_SHOWN else "")
        for top, genes in members.items()
    }
    return [called[root(genes[0])] for genes in names]
