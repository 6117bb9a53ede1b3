"""What `python -m dnamamba.browse` and `python -m dnamamba.report` take. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.settings.fields import setting
from dnamamba.settings.options import BatchTokensOptions, ExactComputeOptions, GenomeOptions, OverwriteOptions


@dataclass(kw_only=True)
class BrowseSettings(ExactComputeOptions, BatchTokensOptions, OverwriteOptions, GenomeOptions):
    """A region as a genome browser shows it, in one HTML file that needs neither a server nor a network: reference,
    likelihoods of both strands, predicted bases as a sequence logo, scored variants, genes and repeats."""

    region: str
    """The region, as samtools takes it, 1-based with both ends: chr20:1,000,001-1,100,000."""
    out: Path
    """The page: a name that ends in .html."""

    likelihood: list[Path] | None = None
    """bigWig tracks that `dnamamba likelihood` wrote (PREFIX.*.bw): log-likelihoods and entropy are drawn as tracks,
    p_A, p_C, p_G and p_T as a sequence logo. Other bigWigs, such as conservation, are tracks too."""
    checkpoint: Path | None = None
    """In place of --likelihood: a pretrained model, by its folder or the name of a bundled one, which computes the
    region first, and scores the variants of --vcf if these have no scores."""
    context: int | Literal["unlimited"] | None = None
    """With --checkpoint: bases of context at most. Default: the length that the model was trained at."""

    vcf: Path | None = None
    """Variants: the VCF that `dnamamba score` or `dnamamba predict` wrote, or any other."""
    score: str | None = None
    """The INFO field that says how high and in which colour a variant is drawn. Default: DNAMAMBA_LLR."""
    annotation: Path | None = None
    """Genes: GFF3 or GTF, plain or gzip. Repeats are what the genome has in lower case."""


@dataclass(kw_only=True)
class ReportSettings(OverwriteOptions):
    """Runs on one HTML page: curves, speed, data, baselines, results by class and the command that repeats each. For
    pretrainings, fine-tunings and tables of scores, several compared."""

    runs: list[Path] = setting(positional=True)
    """Run folders of pretrainings and fine-tunings; scored variants as .vcf, .vcf.gz, .parquet, .tsv or .csv."""
    out: Path
    """The page: a name that ends in .html."""
