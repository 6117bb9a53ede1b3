"""What `python -m dnamamba.likelihood` takes. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.settings.fields import setting
from dnamamba.settings.options import (
    BatchTokensOptions,
    ComputeOptions,
    GenomeOptions,
    OverwriteOptions,
    PretrainedModelOptions,
)


@dataclass(kw_only=True)
class LikelihoodSettings(ComputeOptions, BatchTokensOptions, OverwriteOptions, GenomeOptions, PretrainedModelOptions):
    """Per-position likelihoods of a genome under a pretrained model, as tracks for genome browsers and as tables.

    Tracks: log_likelihood, ln p of the reference base given the bases before it (given those on both sides, of a model
    that predicts masked bases); p_A, p_C, p_G, p_T, the probabilities
    of the four bases at this position, in letters of the forward strand; entropy of these four. Logarithms are natural
    (nats; bits = nats / 0.6931). Strands: forward; reverse, where the bases are read on the other strand from its own
    5' side; mean of the two. N, and the base that a strand begins with, have no value.
    """

    out: Path
    """PREFIX of the files: PREFIX.forward_log_likelihood.bw and so on, PREFIX.parquet, PREFIX.npz, PREFIX.json."""

    region: list[str] | None = None
    """Regions as samtools takes them, 1-based with both ends: chr20:1,000,001-2,000,000. Values are those of the whole
    genome: the bases around a region are read as its context."""
    regions: Path | None = None
    """BED file of regions, in place of --region."""
    contigs: list[str] | None = None
    """Whole contigs by names or shell patterns. Default, without --region and --regions: the primary ones."""

    format: list[str] | None = None
    """bigwig (a file a track), bedgraph (the same, bgzip), parquet, npz, or several with commas. Default: bigwig."""
    tracks: list[str] | None = None
    """log_likelihood, p_A, p_C, p_G, p_T, entropy, or some of them. Default: all."""
    strands: list[str] | None = None
    """forward, reverse, mean, or some of them. Default: all."""

    context: int | Literal["unlimited"] | None = None
    """Bases of context at most; "unlimited" reads whole contigs, the state handed on. Default: the length the model was
    trained at."""
    overlap: int | None = None
    """Bases of context at least, but near a contig's end where a strand begins; the genome is read in tiles of
    --context bases that overlap by so many. Default: half of --context. Of a model that predicts masked bases: on both
    sides of a base; default a quarter."""
    mask_every: int | Literal["alone"] | None = setting(None, at_least=2)
    """Of a model that predicts masked bases: mask every K-th base of a tile in one pass, so that K passes serve all; or
    alone, one base a pass. What that changes is measured on a sample and printed. Default: 16."""

    shard: str | None = None
    """I/N: compute the I-th of N shares of the contigs, into PREFIX.parts, and write no file yet: for several jobs.
    The same command without --shard writes the files, computes what is still missing, and removes PREFIX.parts."""

    batch_tokens: int | None = setting(None, at_least=1)
    """Bases in one pass through the model; lower it when memory runs out. Default: 524288 on a GPU, 8192 on a CPU."""
