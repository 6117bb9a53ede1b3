"""What `python -m dnamamba.embed` can be told. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class EmbedSettings:
    """Embeddings of sequences: the model's hidden states after the last block and norm, for other programs."""

    checkpoint: Path
    """Checkpoint or run folder of a pretrained model."""
    input: list[Path]
    """Sequences in FASTA (plain, gzip, bgzip), GenBank, .csv, .tsv or .parquet files, or intervals on --genome in BED
    files (.bed), one or many; column 4 of a BED file is the name and column 6 the strand."""
    out: Path
    """.parquet or .npz file to write."""
    genome: list[Path] | None = None
    """The genome of the BED files: FASTA (plain, gzip, bgzip), GenBank or token store files."""
    store: Path | None = None
    """Where the genome's token store lies. Default: beside the first genome file; if that is read-only, in the user's
    cache."""

    pool: Literal["mean", "last", "position"] = "mean"
    """mean of the hidden states at A, C, G, T; last, the state after the last base, which has seen all of them; or one
    embedding a position, which has seen the bases up to it."""
    both_strands: bool = False
    """Take the mean with the embedding of the reverse complement (of the same position, with --pool position)."""

    batch_tokens: int | None = None
    """Bases in one pass through the model; longer sequences go in chunks with their state carried. The result does not
    depend on it beyond rounding. Default: 262144 on a GPU, 16384 on a CPU."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products: bf16 on a GPU, fp32 on a CPU; states and sums are always fp32."""
    overwrite: bool = False
    """Replace --out if it exists."""
