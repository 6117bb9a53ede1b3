"""Everything a fine-tuning run can be given, with its unit and default. Torch-free, so that `--help` is instant.

The attribute docstrings are the command line's help. `None` means "choose for me"; `dnamamba.finetuning.resolve` fills
those in, and the run folder's config.yaml holds what was chosen.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dnamamba.model.settings import ModelSettings
from dnamamba.settings.fields import setting
from dnamamba.settings.options import ComputeOptions, MicroTokensOptions, OverwriteOptions, TrainingOptions


@dataclass(kw_only=True)
class FinetuneSettings(TrainingOptions):
    """Trains a classifier (or a regression) on top of a pretrained model, or from scratch to compare with."""

    task: Literal["species", "sequences", "variants"] = "sequences"
    """species: which genome a window comes from. sequences: labelled sequences in files. variants: labelled variants of
    a genome."""

    data: Path | None = setting(None, on_resume="files")
    """sequences: folder with train, test and perhaps dev (or validation) as CSV, TSV, Parquet or FASTA files, or as
    SPLIT/CLASS/*.txt: the layouts of GUE, Genomic Benchmarks and the Nucleotide Transformer tasks as published."""
    sequence_column: str | None = None
    """sequences: the column of the sequence in CSV, TSV and Parquet. Default: sequence or seq."""
    label_columns: list[str] | None = None
    """sequences: the column of the label (default: label), or several: multi-label if they hold 0 and 1."""
    subset: str | None = None
    """sequences: keep only rows whose column `task` has this value (the Nucleotide Transformer's joint Parquet)."""
    kind: Literal["auto", "multiclass", "multilabel", "regression"] = "auto"
    """What the labels are. auto: classes (two or more), or multi-label with several --label_columns. One column may
    hold several labels joined by `;` with multilabel."""
    dev_fraction: float = setting(0.1, inside=(0, 1))
    """sequences: share of train to select on where there is no dev split; never taken from test."""
    refuse_overlap: bool = setting(False, on_resume="free")
    """Refuse data with the same sequence (or its reverse complement) in train and test; without it they are counted."""

    species: Path | None = setting(None, on_resume="files")
    """species: TSV with the columns name and fasta (paths joined by commas, relative to the TSV), and perhaps contigs
    (names or shell patterns) and train, validation, test (BED files)."""
    intervals_by_name: bool = False
    """species: records of one name are the same locus in all species. They are split by name, equally in all, and
    joined with their neighbours up to --length; splits that the TSV gives are kept, and refused if they part a
    locus."""
    examples: int | None = setting(None, at_least=1)
    """species: windows an epoch. Default: 16384, fewer where they would exceed 33 Mbases, at least 256."""
    fixed_windows: bool = False
    """species: show the same windows in every epoch, rather than new ones: can a model memorise them at least?"""
    evaluation_examples: int | None = setting(None, at_least=1)
    """species: windows of each species in dev and in test. Default: as many as there are positions a quarter of
    --length apart, at most 1024, and at most 16 (dev) and 64 (test) Mbases in all."""

    variants: Path | None = setting(None, on_resume="files")
    """variants: VCF, whose INFO fields are columns, or TSV or CSV with contig (or chrom), pos (1-based; or start,
    0-based), ref and alt. --label_columns names the label. A column split (train, dev, test) is followed."""
    genome: list[Path] | None = setting(None, on_resume="files")
    """variants: FASTA or token store of their assembly."""
    split_by: str | None = None
    """variants: column whose values are whole in train, dev or test, such as gene, or contig. Default: gene if there is
    such a column, else contig."""
    effect_column: str | None = None
    """variants: column of the effect; results are given for missense variants alone too. Default: effect or consequence
    if there is such a column."""
    effects: list[str] | None = None
    """variants: train and test on variants of these effects alone."""

    annotation: Path | None = setting(None, absent=None, on_resume="files")
    """variants: GFF3 or GTF of the genome's genes. Boosted trees on effect, amino acids, splice sites and the like are
    trained too, chosen on dev, and reported alone and together with the model."""

    checkpoint: str | None = setting(None, on_resume="files")
    """Pretrained checkpoint or run folder to start from, as of the other verbs; `none` starts from random weights of
    --model.preset."""
    model: ModelSettings = setting(factory=ModelSettings, on_resume=("activation_checkpointing",))
    """The model to train from scratch; of a pretrained one none of these can be chosen."""
    mode: Literal["full", "probe"] = "full"
    """full: train all weights. probe: the pretrained model stays frozen and only the linear head is trained."""
    pooling: Literal["last", "mean"] | None = None
    """What the head sees: the state after the last base (of a causal model), or the mean over all bases. Default: last;
    mean of a model that sees both sides."""
    conjoin: list[str] | None = None
    """Use of the other strand. no: none. test: the mean of both strands' features when predicting. always: in training
    too. concatenate: the head sees both strands side by side, so the model looks from either end and knows which strand
    was given. Of several the best on dev with the first seed is taken. Default: test; no with --reverse_complement
    false, and of reverse-complement-equivariant models, whose features are the same for both strands."""
    reverse_complement: bool | None = None
    """Show each training example as its reverse complement half of the time (never in dev and test). Default: true;
    false where both strands are seen in training (always, concatenate)."""

    length: int | None = setting(None, at_least=1)
    """species: bases a window (default 1024). variants: bases of the reference around the variant (default 1024).
    sequences: longer ones are cut to this many bases around their middle
    (default: never)."""
    length_warmup: float = setting(0.0, between=(0, 1))
    """species: share of the steps spent on shorter windows, which double from 1024 up to --length."""
    epochs: int = setting(10, at_least=1)
    """Passes over the training examples; dev is scored after each, and the best is kept."""
    steps: int | None = setting(None, at_least=1)
    """Optimiser steps, in place of --epochs."""
    batch_size: int = setting(64, at_least=1)
    """Examples an optimiser step."""
    learning_rate: list[float] | None = setting(None, inside=(0, 1))
    """Peak learning rate; of several the best on dev with the first seed is taken. Default: 0.001 (probe: 0.01)."""
    gradient_clip: float = setting(1.0, at_least=0)
    """Largest norm of the whole gradient."""
    patience: int = setting(0, at_least=0)
    """Stop a seed after this many epochs without a new best on dev; 0 never does."""
    seeds: int = setting(1, at_least=1, on_resume="free")
    """Trainings with different seeds (head, order, strands; from scratch all weights): results are their mean and
    standard deviation. A resumed run may have more or fewer until the test split was read."""
    seed: int = setting(0, at_least=0)
    """The first of them."""

    kmer: int | None = setting(None, at_least=0, at_most=8)
    """Length of k-mers of the regression trained as a baseline, on the same data; 0 leaves it out. Default: 6 for
    species, 5 for sequences, none for variants. A regression on GC, N and length alone is always there for classes."""

    resume: bool = setting(False, on_resume="free")
    """Resume the run in --out: finished seeds stay, an unfinished one continues from its last epoch."""
    dry_run: bool = setting(False, on_resume="free")
    """Show the data, its classes, splits and overlaps, and the model; then stop."""


@dataclass(kw_only=True)
class ResolvedFinetuneSettings(FinetuneSettings):
    """The same with every default filled in: what `dnamamba.finetuning.resolve.resolve` gives and config.yaml holds."""

    checkpoint: str = "none"
    pooling: Literal["last", "mean"] = "last"
    conjoin: list[str] = field(default_factory=list)
    micro_tokens: int = 0
    learning_rate: list[float] = field(default_factory=list)
    kmer: int = 0
    devices: int = 1
    out: Path = Path()


@dataclass(kw_only=True)
class PredictSettings(ComputeOptions, MicroTokensOptions, OverwriteOptions):
    """Predicts with a fine-tuned model: the probability of each class for sequences or variants."""

    checkpoint: Path | None = None
    """Fine-tuned checkpoint, or the run folder of a fine-tuning (its best seed on dev)."""
    input: list[Path] | None = None
    """FASTA, CSV, TSV or Parquet files of sequences, one or many; or BED files of intervals on --genome, whose column 6
    is the strand."""
    vcf: Path | None = None
    """VCF of the variants that a classifier of variants is applied to, in place of --input: plain, gzip or bgzip."""
    genome: list[Path] | None = None
    """The genome of the BED files or the VCF: FASTA or token store."""
    annotation: Path | None = None
    """With --vcf and the run folder of a finetune with --annotation: GFF3 or GTF of the genome's genes. Adds the trees'
    probability, the effect, and the three features that count most."""
    sequence_column: str | None = None
    """The column of the sequence in CSV, TSV and Parquet. Default: sequence or seq."""
    window: int | None = setting(None, at_least=1)
    """Cut each sequence into windows of this many bases, the last one shorter. Default: whole, however long. With
    --vcf: bases of the reference around each variant. Default: as in training."""
    max_mismatches: float = setting(0.01, between=(0, 1))
    """With --vcf: share of the records whose REF may differ from the genome; with more it stops."""
    out: Path | None = None
    """Table to write: .csv, .tsv or .parquet. With --vcf also .vcf or .vcf.gz: the same VCF with INFO fields added.
    Next to .csv and .tsv a file of their name and .json says where they come from."""
