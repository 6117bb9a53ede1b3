"""The same of a model that predicts masked bases: tiles with context on both sides, each base masked in one pass."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dnamamba.alphabet import BASES, MASK
from dnamamba.analysis.likelihood.strand_values import StrandValues, describe, read_strand
from dnamamba.inference.batches import batches_by_length, padded
from dnamamba.inference.load import Inference
from dnamamba.inference.masked import masked_logits
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.loss import next_base_log_likelihood


class MaskedTile(NamedTuple):
    """A tile of a strand, in its coordinates."""

    reverse: bool
    start: int
    """First base that is read"""
    first: int
    """First base that is wanted"""
    last: int
    """Where the wanted bases end"""
    end: int
    """Where the bases that are read end"""


class MaskedTiling(NamedTuple):
    """How strands are cut into tiles of `context` bases, whose wanted bases have `overlap` bases at least on both sides
    (fewer near a contig's ends), with `overlap` below context / 2."""

    context: int
    overlap: int
    mask_every: int | None
    """Bases from one masked base to the next in a pass; None masks one base a pass"""
    same_on_both_strands: bool
    """Of an equivariant model: one strand is read, and serves both"""

    def tiles(self, strands: Sequence[str], pairs: np.ndarray, length: int) -> list[MaskedTile]:
        """The tiles that describe the bases in `pairs` (k, 2), merged intervals of a contig of `length` bases, each
        once on each strand (forward, reverse). Where tiles lie depends on the contig alone."""
        wanted = [name == "reverse" for name in strands]
        return [
            tile
            for reverse in (wanted[:1] if self.same_on_both_strands else wanted)
            for tile in self._of_strand(reverse, (length - pairs)[::-1, ::-1] if reverse else pairs, length)
        ]

    def _of_strand(self, reverse: bool, pairs: np.ndarray, length: int) -> Iterator[MaskedTile]:
        stride = self.context - 2 * self.overlap
        final = max(-(-(length - self.context) // stride), 0)
        shares: dict[int, tuple[int, int]] = {}
        for start, end in pairs.tolist():
            begin, last = (min(max(base - self.overlap, 0) // stride, final) for base in (start, end - 1))
            for number in range(begin, last + 1):
                low = start if number == begin else number * stride + self.overlap
                high = end if number == last else (number + 1) * stride + self.overlap
                shares[number] = min(low, shares.get(number, (low, high))[0]), high
        for number, (low, high) in shares.items():
            start = min(number * stride, max(length - self.context, 0))
            yield MaskedTile(reverse, start, low, high, min(start + self.context, length))

    def bases_read(self, tiles: Sequence[MaskedTile]) -> int:
        """In all passes."""
        return sum((tile.end - tile.start) * self._passes(tile) for tile in tiles)

    def _passes(self, tile: MaskedTile) -> int:
        wanted = tile.last - tile.first
        return wanted if self.mask_every is None else min(self.mask_every, wanted)

    def describe(
        self,
        inference: Inference[LanguageModel],
        tokens: np.ndarray,
        tiles: Sequence[MaskedTile],
        tracks: Sequence[str],
        batch_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[StrandValues]:
        """As `dnamamba.analysis.likelihood.strand_values.describe_strands`."""
        lengths = np.array([tile.end - tile.start for tile in tiles], np.int64)
        put = inference.compute.put
        for batch in batches_by_length(lengths, batch_tokens):
            members = [tiles[index] for index in batch]
            windows = put(padded([read_strand(tokens, tile.reverse, tile.start, tile.end) for tile in members]))
            first, last = (
                put(np.array([getattr(tile, name) - tile.start for tile in members])) for name in ("first", "last")
            )
            logits = masked_logits(inference, windows, first, last, self.mask_every, batch_tokens)
            reverse = put(np.array([tile.reverse for tile in members]))
            for row, tile in zip(describe(logits, windows, reverse, tracks).cpu().numpy(), members, strict=True):
                values = row[:, tile.first - tile.start : tile.last - tile.start]
                if tile.reverse:
                    values = values[:, ::-1]
                start = tokens.size - tile.last if tile.reverse else tile.first
                yield StrandValues(tile.reverse, start, values)
                if self.same_on_both_strands:
                    yield StrandValues(not tile.reverse, start, values)
            if progress is not None:
                progress(self.bases_read(members))


@torch.inference_mode()
def masking_differences(
    inference: Inference[LanguageModel],
    tokens: np.ndarray,
    tiles: Sequence[MaskedTile],
    mask_every: int,
    sample: int,
) -> np.ndarray:
    """(at most `sample`,) |difference| in nats that masking several bases at once makes to ln p of a base. The bases
    lie evenly among those that the tiles describe, N left out."""
    ends = np.cumsum([tile.last - tile.first for tile in tiles])
    chosen = np.unique(np.linspace(0, ends[-1] - 1, sample).round().astype(np.int64)) if len(tiles) else ()
    found = []
    for number in chosen:
        index = int(np.searchsorted(ends, number, side="right"))
        tile = tiles[index]
        window = inference.compute.put(read_strand(tokens, tile.reverse, tile.start, tile.end))
        first, last = tile.first - tile.start, tile.last - tile.start
        here = last - int(ends[index] - number)
        if int(window[here]) >= BASES:
            continue
        position = torch.arange(window.numel(), device=window.device)
        together = (position >= first) & (position < last) & ((position - here) % mask_every == 0)
        masked = torch.stack([position == here, together])
        with inference.autocast():
            logits = inference.model(torch.where(masked, MASK, window)).logits[:, here]
        alone, among = next_base_log_likelihood(logits, window[here].expand(2)).tolist()
        found.append(abs(alone - among))
    return np.array(found)
