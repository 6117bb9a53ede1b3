"""What `python -m dnamamba.embed` takes. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.settings.options import (
    BatchTokensOptions,
    ComputeOptions,
    OverwriteOptions,
    PretrainedModelOptions,
    StoreOptions,
)


@dataclass(kw_only=True)
class EmbedSettings(ComputeOptions, BatchTokensOptions, OverwriteOptions, StoreOptions, PretrainedModelOptions):
    """Embeddings of sequences: the model's hidden states after the last block and norm, for other programs."""

    input: list[Path]
    """Sequences in FASTA (plain, gzip, bgzip), GenBank, .csv, .tsv or .parquet files, or intervals on --genome in BED
    files (.bed), one or many; column 4 of a BED file is the name and column 6 the strand."""
    out: Path
    """.parquet or .npz file to write."""
    genome: list[Path] | None = None
    """The genome of the BED files: FASTA (plain, gzip, bgzip), GenBank or token store files."""

    pool: Literal["mean", "last", "position"] = "mean"
    """mean of the hidden states at A, C, G, T; last, of a causal model, the state after the last base, which has seen
    all of them; or one embedding a position, which has seen the bases up to it (all bases, of a model of both sides).
    Of a reverse-complement-equivariant model all are the mean of its two streams: the same for both strands."""
    both_strands: bool = False
    """Take the mean with the embedding of the reverse complement (of the same position, with --pool position)."""
