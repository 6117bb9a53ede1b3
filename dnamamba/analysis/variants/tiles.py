"""Fixed tiles of a strand, and which of them a variant is scored in.

A tile of `context` bases begins every `context // 2` bases of a strand. A variant belongs to the tile in whose second
half it begins, so that it sees at least half a context to its left (those near the strand's start see what there is).
Tiles are read `suffix` bases beyond their end, so that the last variants in them have as many bases after them as the
others. Which variants a file holds moves no tile. On the reverse strand all of this is counted from the contig's end.
"""

from typing import NamedTuple

import numpy as np


class TiledVariants(NamedTuple):
    """Variants in their tiles; all (variants,) int64, in coordinates of the strand."""

    tile: np.ndarray
    """Number of the tile"""
    tile_start: np.ndarray
    """Its first base"""
    offset: np.ndarray
    """The variant's first base, from there"""
    end: np.ndarray
    """Where the scored bases end, from there: the suffix after the variant, cut at the contig's end"""
    exact_end: np.ndarray
    """The tile's end, from there; at least `end`"""


class Tiling(NamedTuple):
    """How a strand is cut."""

    context: int
    """Bases of a tile, even"""
    suffix: int
    """Bases scored after a variant"""

    def locate(self, start: np.ndarray, ref_length: np.ndarray, strand_length: np.ndarray) -> TiledVariants:
        """The tiles of variants that replace `ref_length` bases from `start` on; all (variants,) int64."""
        stride = self.context // 2
        tile = np.maximum(start // stride - 1, 0)
        tile_start = tile * stride
        offset = start - tile_start
        limit = strand_length - tile_start
        end = np.minimum(offset + ref_length + self.suffix, limit)
        exact_end = np.maximum(np.minimum(self.context + self.suffix, limit), end)
        return TiledVariants(tile, tile_start, offset, end, exact_end)


def on_reverse_strand(start: np.ndarray, ref_length: np.ndarray, contig_length: np.ndarray) -> np.ndarray:
    """Where the same variant begins on the reverse complement of its contig."""
    return contig_length - start - ref_length
