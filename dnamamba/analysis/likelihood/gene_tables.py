"""Genes, repeats and likelihoods as the tables that the figures of `pictures/` take."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dnamamba.genome.genes import Gene, SiteKind, Sites, sites
from dnamamba.genome.intervals import Interval, merge

if TYPE_CHECKING:
    import polars

SITE_KINDS: tuple[SiteKind, ...] = ("donor", "acceptor", "start codon")


def gene_table(genes: Iterable[Gene]) -> "polars.DataFrame":
    """A row an exon and a row a coding part: gene, reverse, kind (exon, coding), start, end (0-based half-open)."""
    import polars as pl

    schema = {"gene": pl.String, "reverse": pl.Boolean, "kind": pl.String, "start": pl.Int64, "end": pl.Int64}
    rows = [
        (gene.name, gene.reverse, kind, start, end)
        for gene in genes
        for kind, pairs in (("exon", gene.exons), ("coding", gene.coding))
        for start, end in pairs.tolist()
    ]
    return pl.DataFrame(rows, schema, orient="row")


def interval_table(pairs: np.ndarray) -> "polars.DataFrame":
    """start, end of (k, 2) intervals."""
    import polars as pl

    return pl.DataFrame({"start": pairs[:, 0], "end": pairs[:, 1]}, {"start": pl.Int64, "end": pl.Int64})


def rows_within(table: "polars.DataFrame", interval: Interval, column: str = "position") -> "polars.DataFrame":
    """The rows of one contig whose position lies in the interval."""
    import polars as pl

    here = (pl.col("contig").cast(pl.String) == interval.contig) & (pl.col(column) >= interval.start)
    return table.filter(here & (pl.col(column) < interval.end))


def in_bits(track: "polars.DataFrame", strand: str = "mean") -> "polars.DataFrame":
    """From the nats of `dnamamba likelihood`'s table, in bits above guessing: contig, position, `gain` = 2 + log₂ p of
    the reference base and, where the table has the entropy, `information` = 2 − entropy: the bits that its
    probabilities hold. Over many bases the two are equal for a calibrated model."""
    import polars as pl

    columns = {"gain": 2 + pl.col(f"{strand}_log_likelihood") / math.log(2)}
    if f"{strand}_entropy" in track.columns:
        columns["information"] = 2 - pl.col(f"{strand}_entropy") / math.log(2)
    return track.select("contig", "position", **columns)


def classes_of(
    track: "polars.DataFrame", genes: Iterable[Gene], repeats: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """(rows,) str: coding, exon (not coding), intron or between genes for each base of the table; of several the first
    of these. With `repeats` (contig -> intervals) what is soft-masked outside of exons has ", repeat" behind it."""
    order = ("between genes", "intron", "exon, not coding", "coding")
    out = np.empty(len(track), dtype="<U32")
    contigs = track["contig"].cast(str).to_numpy()
    positions = track["position"].to_numpy()
    genes = list(genes)
    for contig in np.unique(contigs).tolist():
        rows = np.flatnonzero(contigs == contig)
        position = positions[rows]
        level = np.zeros(len(rows), np.int8)
        for number, pairs_of in ((1, _span), (2, _exons), (3, _coding)):
            pairs = [pairs_of(gene) for gene in genes if gene.contig == contig]
            level[_inside(position, np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64))] = number
        names = np.array(order)[level].astype("<U32")
        if repeats is not None and len(masked := repeats.get(contig, np.empty((0, 2), np.int64))):
            inside = _inside(position, masked) & (level < 2)
            names[inside] = np.char.add(names[inside], ", repeat")
        out[rows] = names
    return out


def class_table(track: "polars.DataFrame", classes: np.ndarray, strand: str = "mean") -> "polars.DataFrame":
    """class, bases (with a value), bits_per_base: sums over counts, classes with the most bases first."""
    import polars as pl

    value = pl.col(f"{strand}_log_likelihood").cast(pl.Float64)
    known = track.select(value=value, classed=pl.Series(classes)).filter(pl.col("value").is_not_null())
    return (
        known.filter(pl.col("value").is_not_nan())
        .group_by(pl.col("classed").alias("class"))
        .agg(bases=pl.len().cast(pl.Int64), bits_per_base=-pl.col("value").sum() / pl.len() / math.log(2))
        .sort("bases", "class", descending=[True, False])
    )


def profile_table(
    track: "polars.DataFrame", genes: Iterable[Gene], measures: Mapping[str, str], flank: int = 30
) -> "polars.DataFrame":
    """Means around donors, acceptors and start codons of the genes, over those with a value.

    Args:
        track: contig, position (0-based, ascending within a contig), and the columns of `measures`.
        measures: what to call it -> a column of `track`.
        flank: bases on both sides of a site.

    Returns:
        site, measure, offset (in reading direction; 0 is the first base after the boundary: the G of a donor's GT, the
        exon's first base after AG, the A of ATG), mean, standard_error, count. Kinds without any site are left out.
    """
    import polars as pl

    genes = list(genes)
    parts = []
    for kind in SITE_KINDS:
        found = sites(genes, kind)
        if not found.position.size:
            continue
        for measure, column in measures.items():
            around = values_around(track, column, found, flank)
            there = ~np.isnan(around)
            count = there.sum(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(there, around, 0).sum(0) / count
                spread = np.sqrt((np.where(there, around - mean, 0) ** 2).sum(0) / (count - 1))
                error = np.where(count > 1, spread / np.sqrt(count), np.nan)
            parts.append(
                pl.DataFrame(
                    {
                        "site": [kind] * len(mean),
                        "measure": [measure] * len(mean),
                        "offset": np.arange(-flank, flank),
                        "mean": mean,
                        "standard_error": error,
                        "count": count,
                    }
                )
            )
    if not parts:
        kinds = {"site": pl.String, "measure": pl.String, "offset": pl.Int64, "count": pl.Int64}
        return pl.DataFrame(schema=kinds | {"mean": pl.Float64, "standard_error": pl.Float64})
    return pl.concat(parts)


def values_around(values: "polars.DataFrame", column: str, sites: Sites, flank: int) -> np.ndarray:
    """(sites, 2·flank) float64: the column at offsets −flank … flank − 1 of each site in reading direction; NaN where
    the table has no such base or no value."""
    import polars as pl

    offsets = np.arange(-flank, flank)
    wanted = sites.position[:, None] + np.where(sites.reverse, -1, 1)[:, None] * offsets
    out = np.full(wanted.shape, np.nan)
    for contig in np.unique(sites.contig).tolist():
        own = values.filter(pl.col("contig").cast(pl.String) == contig)
        position = own["position"].to_numpy()
        if not position.size:
            continue
        numbers = own[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        rows = np.flatnonzero(sites.contig == contig)
        index = np.minimum(np.searchsorted(position, wanted[rows]), position.size - 1)
        out[rows] = np.where(position[index] == wanted[rows], numbers[index], np.nan)
    return out


def _span(gene: Gene) -> np.ndarray:
    return np.array([[gene.start, gene.end]], np.int64)


def _exons(gene: Gene) -> np.ndarray:
    return gene.exons


def _coding(gene: Gene) -> np.ndarray:
    return gene.coding


def _inside(positions: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(positions,) bool: which lie in any of the intervals."""
    merged = merge(pairs)
    if not len(merged):
        return np.zeros(len(positions), bool)
    index = np.searchsorted(merged[:, 1], positions, side="right")
    return (index < len(merged)) & (merged[np.minimum(index, len(merged) - 1), 0] <= positions)
