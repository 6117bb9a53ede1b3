"""What `python -m dnamamba.score` takes. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.settings.fields import setting
from dnamamba.settings.options import (
    BatchTokensOptions,
    ExactComputeOptions,
    GenomeOptions,
    OverwriteOptions,
    PretrainedModelOptions,
)


@dataclass(kw_only=True)
class ScoreSettings(ExactComputeOptions, BatchTokensOptions, OverwriteOptions, GenomeOptions, PretrainedModelOptions):
    """Zero-shot scores of the variants of a VCF: log-likelihood ratios of a model trained on genomes alone."""

    genome: list[Path]
    """FASTA (plain, gzip, bgzip), GenBank or token store of the assembly that the VCF was made with."""
    vcf: Path
    """VCF of the variants: plain, gzip or bgzip, sorted or not."""
    out: Path
    """Where the scores go: .vcf or .vcf.gz (the same VCF with INFO fields added), .parquet, .tsv or .csv (a row an
    alternate allele). Next to .tsv and .csv a file of their name and .json says where they come from."""

    context: int | None = None
    """Bases of a tile: a variant sees half of it to all of it on its left. Of a model that predicts masked bases: of a
    window with the variant in its middle. Default: the length the model was trained at."""
    suffix: int | None = None
    """Reference bases after a variant that are scored with it. Default: a 32nd of --context, but at least 2048,
    and at most half of --context."""
    state_every: int | None = setting(None, at_least=1)
    """Bases between the states that are kept of a tile's pass; the scores do not depend on it beyond rounding. Default:
    an eighth of --context, but at least 64 and at most 1024. Models with attention or Hyena keep none, and read each
    allele's tile from its start; those that predict masked bases need none."""
    exact: bool = False
    """Score all bases up to the tile's end instead of --suffix."""
    check: int = setting(32, at_least=0)
    """Alleles that are scored to the tile's end too, to measure what --suffix leaves out; 0 measures nothing."""
    embedding_distance: bool = False
    """Add the mean distance of the two alleles' embeddings over the bases after the variant: twice the time."""
    flank: int | None = setting(None, at_least=0)
    """Of a model that predicts masked bases: reference bases on each side of an insertion, deletion or change of
    several bases that are scored with it, as pseudo-log-likelihoods (Brandes et al. 2023). Single-base changes are
    scored at the base alone. Default: 16."""
    mask_every: int | Literal["alone"] | None = setting(None, at_least=2)
    """Of a model that predicts masked bases, for these variants: mask every K-th of the bases to score in one pass, so
    that K passes serve all; or alone, one base a pass. Default: alone."""
    percentile: bool = False
    """Add the share of random variants of the same kind and length, up to 50 bases, that are less likely: insertions
    and deletions of all lengths compare by it. The random ones are drawn from the genome and scored once, and kept in
    the checkpoint's folder."""
    shard: str | None = None
    """I/N: score the I-th of N shares of the alleles, into OUT.parts, and write no file yet: for several jobs. The same
    command without --shard writes the file, computes what is still missing, and removes OUT.parts."""
    max_mismatches: float = setting(0.01, between=(0, 1))
    """Share of the records whose REF may differ from the genome; with more it stops."""
