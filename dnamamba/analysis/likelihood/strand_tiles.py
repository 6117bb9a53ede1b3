"""Which tiles of a strand are read for which of its bases, so that each has enough context before it.

Tile i of a strand reads the bases from i · stride on, stride = context − overlap, and describes the `stride` bases (the
first tile of all) up to `context` bases after its start: those have more than `overlap` and at most `context` bases
of the tile before them. Where tiles lie depends on the contig alone: a region's values are those of the whole genome.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnamamba.analysis.likelihood.strand_values import StrandTile, StrandValues, describe_strands


class StrandTiling(NamedTuple):
    """How strands are cut into tiles; `context` None reads whole strands."""

    context: int | None
    overlap: int
    """Below `context`"""

    def tiles(self, strands: Sequence[str], pairs: np.ndarray, length: int) -> list[StrandTile]:
        """`tiles_of_strand` of these strands (forward, reverse)."""
        return [tile for name in strands for tile in self.tiles_of_strand(name == "reverse", pairs, length)]

    def tiles_of_strand(self, reverse: bool, pairs: np.ndarray, length: int) -> list[StrandTile]:
        """The tiles that describe the bases in `pairs` of a contig of `length` bases, each once, but the strand's
        first.

        `pairs` (k, 2) int64: merged intervals in the contig's coordinates. Tiles without wanted bases are left out, and
        read up to their last one only: what follows changes nothing.
        """
        if not len(pairs):
            return []
        if reverse:
            pairs = (length - pairs)[::-1, ::-1]
        # The first base of a strand has no prediction: it is in no tile's share.
        starts, ends = np.maximum(pairs[:, 0], 1), pairs[:, 1]
        starts, ends = starts[starts < ends], ends[starts < ends]
        if not len(starts):
            return []
        if self.context is None:
            return [StrandTile(reverse, 0, int(starts[0]), int(ends[-1]))]
        tiles = np.unique(
            np.concatenate([np.arange(a, b + 1) for a, b in zip(*self._tile_of(starts, ends), strict=True)])
        )
        share_start, share_end = self._share(tiles)
        # First and last wanted base of each tile's share.
        following = np.searchsorted(ends, share_start, side="right")
        first = np.maximum(starts[following], share_start)
        before = np.searchsorted(starts, share_end, side="left") - 1
        end = np.minimum(ends[before], share_end)
        stride = self.context - self.overlap
        return [
            StrandTile(reverse, *tile)
            for tile in zip((tiles * stride).tolist(), first.tolist(), end.tolist(), strict=True)
        ]

    def bases_read(self, tiles: Sequence[StrandTile]) -> int:
        """The last base of a tile is predicted, and not read."""
        return sum(tile.end - tile.start - 1 for tile in tiles)

    def describe(self, *arguments: Any) -> Iterator[StrandValues]:
        """`describe_strands`."""
        return describe_strands(*arguments)

    def _tile_of(self, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last tile that describe bases in [starts, ends)."""
        assert self.context is not None
        stride = self.context - self.overlap
        first, last = ((base - self.overlap - 1) // stride for base in (starts, ends - 1))
        return np.maximum(first, 0), np.maximum(last, 0)

    def _share(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bases that each tile describes: from, to."""
        assert self.context is not None
        start = tiles * (self.context - self.overlap)
        return np.where(tiles == 0, 1, start + self.overlap + 1), start + self.context + 1
