"""What `python -m dnamamba.mutagenesis` takes. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path

from dnamamba.settings.fields import setting
from dnamamba.settings.options import (
    BatchTokensOptions,
    ExactComputeOptions,
    GenomeOptions,
    OverwriteOptions,
    PretrainedModelOptions,
)

FORMATS = ("parquet", "npz", "tsv", "png")


@dataclass(kw_only=True)
class MutagenesisSettings(
    ExactComputeOptions, BatchTokensOptions, OverwriteOptions, GenomeOptions, PretrainedModelOptions
):
    """In silico saturation mutagenesis: the log-likelihood ratio (nats, above 0 where the change is likelier) of every
    single-base change of a region, over the changed base and the bases after it, on both strands."""

    region: str
    """The region as samtools reads it, chr:start-end, 1-based, both ends included."""
    out: Path
    """Beginning of the names of the files to write: PREFIX.parquet, PREFIX.npz, PREFIX.tsv, PREFIX.png; and
    PREFIX.json, which says where they come from."""
    format: list[str] | None = None
    """Some of parquet, npz, tsv, png (heat map and logo-like track), with commas or blanks. Default:
    parquet,npz,png."""

    context: int | None = None
    """Bases of a tile: a change sees half of it to all of it on its left. Of a model that predicts masked bases: of a
    window with the change in its middle. Default: the length the model was trained at."""
    suffix: int | None = None
    """Reference bases after a change that are scored with it. Default: a 32nd of --context, but at least 2048,
    and at most half of --context."""
    state_every: int = setting(256, at_least=1)
    """Bases between the states that changes start from; the results do not depend on it beyond rounding."""
    check: int = setting(32, at_least=0)
    """Changes that are scored to the tile's end too, to measure what --suffix leaves out; 0 measures nothing."""
