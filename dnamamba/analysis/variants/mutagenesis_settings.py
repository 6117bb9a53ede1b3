"""What `python -m dnamamba.mutagenesis` can be told. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FORMATS = ("parquet", "npz", "tsv", "png")


@dataclass
class MutagenesisSettings:
    """In silico saturation mutagenesis: the log-likelihood ratio (nats, above 0 where the change is likelier) of every
    single-base change of a region, over the changed base and the bases after it, on both strands."""

    checkpoint: Path
    """Checkpoint or run folder of a pretrained model."""
    genome: list[Path]
    """FASTA (plain, gzip, bgzip), GenBank or token store files."""
    region: str
    """The region as samtools reads it, chr:start-end, 1-based, both ends included."""
    out: Path
    """Beginning of the names of the files to write: PREFIX.parquet, PREFIX.npz, PREFIX.tsv, PREFIX.png."""
    format: list[str] | None = None
    """Some of parquet, npz, tsv, png (heat map and logo-like track), with commas or blanks. Default:
    parquet,npz,png."""
    store: Path | None = None
    """Where the genome's token store lies. Default: beside the first genome file; if that is read-only, in the user's
    cache."""

    context: int | None = None
    """Bases of a tile: a change sees half of it to all of it on its left. Default: the length the model was trained
    at."""
    suffix: int | None = None
    """Reference bases after a change that are scored with it. Default: a 32nd of --context, but at least 2048,
    and at most half of --context."""
    state_every: int = 256
    """Bases between the states that changes start from; the results do not depend on it beyond rounding."""
    check: int = 32
    """Changes that are scored to the tile's end too, to measure what --suffix leaves out; 0 measures nothing."""

    batch_tokens: int | None = None
    """Bases in one pass through the model; lower it when memory runs out. Default: 262144 on a GPU, 16384 on a CPU."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the matrix products; small differences of large sums of likelihoods want fp32."""
    overwrite: bool = False
    """Replace output files that exist."""
