"""The likelihoods of sequences in memory, each as if it were a contig of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dnamamba.analysis.likelihood.compute import BATCH_TOKENS, Tiling, strands_to_read
from dnamamba.inference.load import Inference


def likelihoods_of_sequences(
    inference: Inference,
    sequences: Sequence[np.ndarray],
    tiling: Tiling,
    strand: str,
    tracks: Sequence[str],
    batch_tokens: int | None = None,
) -> list[np.ndarray]:
    """(tracks, bases) fp32 of each sequence, NaN where there is no value; tiles lie as on a contig of that length.

    Args:
        sequences: (bases,) uint8 tokens each; sequences of like length go through the model together.
        strand: forward, reverse or mean.
        tracks: some of `strand_values.TRACKS`.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    ends = np.cumsum(lengths)
    # One after another, as one strand: a tile never reads beyond its own sequence.
    joined = np.concatenate([*sequences, np.empty(0, np.uint8)])
    computed = strands_to_read([strand])
    tiles: list[Any] = []
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        for tile in tiling.tiles(computed, np.array([[0, length]], np.int64), length):
            shift = joined.size - end if tile.reverse else end - length
            tiles.append(type(tile)(tile.reverse, *(position + shift for position in tile[1:])))
    values = {name: np.full((len(tracks), joined.size), np.nan, np.float32) for name in computed}
    batch = batch_tokens or BATCH_TOKENS[inference.device.type]
    with torch.inference_mode(), inference.autocast():
        for reverse, start, found in tiling.describe(inference, joined, tiles, tracks, batch):
            if (name := "reverse" if reverse else "forward") in values:
                values[name][:, start : start + found.shape[1]] = found
    whole_strand = (values["forward"] + values["reverse"]) / 2 if strand == "mean" else values[strand]
    return np.split(whole_strand, ends[:-1], axis=1) if len(sequences) else []
