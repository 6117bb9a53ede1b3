"""The likelihood of a contig's bases: both strands in one batch, into its tracks."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dnamamba.analysis.likelihood.contig_tracks import Column, ContigTracks
from dnamamba.analysis.likelihood.masked_tiles import MaskedTile, MaskedTiling
from dnamamba.analysis.likelihood.strand_tiles import StrandTiling
from dnamamba.analysis.likelihood.strand_values import TRACKS, StrandTile
from dnamamba.analysis.likelihood.track_files import table_of, table_schema
from dnamamba.genome.intervals import Interval, merge
from dnamamba.genome.regions import merged_regions
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.model.language_model import LanguageModel

if TYPE_CHECKING:
    import polars

Tiling = StrandTiling | MaskedTiling
"""Of models that predict the next base, and of those that predict masked bases"""
Tile = StrandTile | MaskedTile
STRANDS = ("forward", "reverse", "mean")
BATCH_TOKENS = {"cuda": 524_288, "cpu": 8_192}
"""Bases in one pass, by device: on a GPU 8 kB a base of preset 7m; on a CPU what its caches like."""


def likelihood_table(
    inference: Inference[LanguageModel],
    store: GenomeView,
    intervals: Sequence[Interval],
    tiling: Tiling,
    strands: Sequence[str] = STRANDS,
    tracks: Sequence[str] = TRACKS,
    batch_tokens: int | None = None,
) -> "polars.DataFrame":
    """The likelihoods of a few regions in memory: what `python -m dnamamba.likelihood --format parquet` writes.

    A row a base of the merged intervals: contig, position (0-based), ref, then STRAND_TRACK (fp32, nats, null where
    missing) for all strands and tracks.
    """
    import polars as pl

    wanted = merged_regions(store, intervals)
    computed = strands_to_read(strands)
    columns = [Column(strand, track) for strand in strands for track in tracks]
    schema = table_schema(columns, wanted)
    tables = [pl.DataFrame(schema=schema)]
    for name, pairs in wanted.items():
        contig = store.contig(name)
        tiles = tiling.tiles(computed, pairs, contig.length)
        tokens = store.read_sparse(name, spans_read(tiles, pairs, contig.length))
        with ContigTracks(name, tokens, pairs, computed, tracks, Path(tempfile.gettempdir())) as filled:
            batch = batch_tokens or BATCH_TOKENS[inference.device.type]
            fill_tracks(inference, filled, tokens, tiling, tiles, batch, LikelihoodSums())
            tables += [table_of(filled, block, columns, schema) for block in filled.blocks()]
    return pl.concat(tables)


def spans_read(tiles: Sequence[Tile], pairs: np.ndarray, length: int) -> np.ndarray:
    """(k, 2) int64: what is read of a contig, merged: the tiles of both strands and the wanted bases."""
    read = [(length - part.end, length - part.start) if part.reverse else (part.start, part.end) for part in tiles]
    return merge(np.concatenate((np.array(read, np.int64).reshape(-1, 2), pairs)))


def strands_to_read(strands: Sequence[str]) -> tuple[str, ...]:
    """Those that the model has to read: for the mean, both."""
    return tuple(strand for strand in ("forward", "reverse") if strand in strands or "mean" in strands)


class LikelihoodSums:
    """Log-likelihood and bases of each strand, over contigs: sums, never means of means."""

    def __init__(self) -> None:
        self.nats: dict[str, float] = {}
        self.bases: dict[str, int] = {}
        self.added: list[tuple[str, float, int]] = []
        """What they are the sums of, in this order: strand, nats, bases"""
        self.masking: list[np.ndarray] = []
        """|difference| in nats of bases masked with others and alone, of a sample (`masking_differences`)"""

    def add(self, strand: str, log_likelihood: np.ndarray) -> None:
        there = log_likelihood[~np.isnan(log_likelihood)]
        self.add_sum(strand, float(there.sum(dtype=np.float64)), there.size)

    def add_sum(self, strand: str, nats: float, bases: int) -> None:
        self.nats[strand] = self.nats.get(strand, 0.0) + nats
        self.bases[strand] = self.bases.get(strand, 0) + bases
        self.added.append((strand, nats, bases))

    def join(self, other: "LikelihoodSums") -> None:
        """Adds what another has added, one by one: the same bits as if it had been added here."""
        for each in other.added:
            self.add_sum(*each)
        self.masking += other.masking

    def bits_per_base(self) -> dict[str, float]:
        """−log₂ p, the mean over all bases with a value; strands without any are left out."""
        return {strand: -self.nats[strand] / bases / math.log(2) for strand, bases in self.bases.items() if bases}

    @property
    def masking_difference(self) -> float | None:
        """Nats, the mean over the sample; None without one."""
        sample = np.concatenate([*self.masking, np.empty(0)])
        return float(sample.mean()) if sample.size else None

    def describe_masking(self) -> str:
        """For people; "" without a sample."""
        if self.masking_difference is None:
            return ""
        count = sum(part.size for part in self.masking)
        return f"ln p changes by {self.masking_difference:.4f} nats (mean of {count} bases) with each masked alone"


@torch.inference_mode()
def fill_tracks(
    inference: Inference[LanguageModel],
    tracks: ContigTracks,
    tokens: np.ndarray,
    tiling: Tiling,
    tiles: Sequence[Any],
    batch_tokens: int,
    sums: LikelihoodSums,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Computes all values of a contig's tracks.

    Args:
        tokens: (length,) uint8 of the contig.
        tiles: of both strands, or of one, from `tiling.tiles`; together they describe each wanted base once, but those
            that a strand begins with where the next base is predicted.
        batch_tokens, progress: see `describe_strands`.
    """
    for strand, first in (("forward", 0), ("reverse", tokens.size - 1)):
        if strand in tracks.strands and isinstance(tiling, StrandTiling):
            tracks.put(strand, first, np.full((len(tracks.tracks), 1), np.nan, np.float32))
    summed = tracks.tracks.index("log_likelihood") if "log_likelihood" in tracks.tracks else None
    with inference.autocast():
        for found in tiling.describe(inference, tokens, tiles, tracks.tracks, batch_tokens, progress):
            strand = "reverse" if found.reverse else "forward"
            if strand not in tracks.strands:
                continue
            tracks.put(strand, found.start, found.values)
            if summed is not None:
                sums.add(strand, found.values[summed])
    tracks.assert_complete()
