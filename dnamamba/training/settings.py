"""Everything a pretraining run can be told, with its unit and default. Torch-free, so that `--help` is instant.

The attribute docstrings are the command line's help. `None` means "choose for me"; `resolve` in
`dnamamba.training.resolve` fills those in, and the run folder's config.yaml holds what was chosen.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dnamamba.model.settings import ModelSettings


@dataclass
class PretrainSettings:
    """Next-base pretraining of a Mamba language model on reference genomes."""

    genome: list[Path] | None = None
    """FASTA (plain, gzip, bgzip), GenBank or token store files, one or many. Default: the bundled E. coli."""
    mixture: Path | None = None
    """YAML file with several genomes and their weights, in place of --genome and the flags of its splits."""
    contigs: list[str] | None = None
    """Contigs to use: names or shell patterns (chr2 chr1?). Default: the primary contigs."""
    train: list[str] | None = None
    """Training split: BED files or contig patterns. Default: blocks of every contig."""
    validation: list[str] | None = None
    """Validation split: BED files or contig patterns. Default: blocks of every contig."""
    test: list[str] | None = None
    """Test split, never read here but kept apart: BED files or contig patterns."""
    exclude: list[Path] | None = None
    """BED files of intervals that no split may touch."""
    annotation: Path | None = None
    """GFF3 or GTF file of the genome, plain or gzipped: the last validation is also scored inside and outside exons."""
    store: Path | None = None
    """Where the token store lies. Default: beside the first genome file; if that is read-only, in the user's cache."""
    verify: bool = False
    """Check every block of the token store against its checksum before training."""
    max_n_fraction: float = 0.1
    """Skip windows with more than this fraction of N."""
    pack: bool = False
    """Train on contigs and intervals shorter than --length too, several in a row of that length."""
    reverse_complement: bool = True
    """Show each training window as its reverse complement half of the time."""

    model: ModelSettings = field(default_factory=ModelSettings)
    """The model."""

    length: int | None = None
    """Context: bases a window. Default: 8192 (1024 for the demo)."""
    batch_tokens: int | None = None
    """Bases an optimiser step, over all devices; a multiple of --length. Default: 262144 (4096 for the demo)."""
    micro_tokens: int | None = None
    """Bases in one forward pass on one device; lower it when memory runs out. The result does not depend on it beyond
    rounding. Default: 262144 on a GPU, 16384 on a CPU, and at least one window."""
    length_warmup: float = 0.0
    """Share of the steps spent on shorter windows, which double from 1024 up to --length, bases a step constant."""
    soft_mask_weight: float = 1.0
    """Weight of soft-masked (lower-case, repeat) bases in the training loss; validation always counts all alike."""
    tokens: int | None = None
    """Bases to train on, in place of --max_steps."""
    max_steps: int | None = None
    """Optimiser steps. Default: 10000 (600 for the demo: under 3 minutes on 2 cores)."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 0.008 as in the Mamba paper."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises linearly; then it falls as a cosine."""
    final_learning_rate: float = 0.01
    """Learning rate at the last step, as a fraction of the peak."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; A, D, biases and norms are never decayed."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient."""

    validation_every: int | None = None
    """Steps between validations. Default: a tenth of --max_steps (a fifth for the demo)."""
    validation_tokens: int = 2_000_000
    """Bases of the validation split to score each time (windows spread evenly over it); 0 scores all of it."""
    patience: int = 0
    """Stop after this many validations without a new best; 0 never does."""
    markov_order: int = 10
    """Highest order of the Markov models that the summary compares with; 0 leaves them out."""
    log_every: int | None = None
    """Steps between rows of metrics.csv. Default: a hundredth of --max_steps, between 1 and 50."""

    save_every: int | None = None
    """Steps between checkpoints, besides those after each validation. Default: only those and --save_minutes."""
    save_minutes: float = 10.0
    """Minutes after which a checkpoint is written at the next row of metrics.csv."""
    keep: int = 2
    """Checkpoints to keep, besides the best by validation."""
    on_fault: Literal["stop", "skip"] = "stop"
    """What to do after a step whose gradient is not finite or an outlier; such a step is never applied."""
    gradient_outlier: float = 100.0
    """A gradient whose norm exceeds the running mean so many times is an outlier."""

    out: Path | None = None
    """Run folder, which must not exist. Default: runs/GENOME-PRESET-LENGTH-TIME."""
    dry_run: bool = False
    """Show sizes, splits, bases an epoch, and the time and memory that the run will take; then stop."""
    profile: bool = False
    """Trace a few steps into profile.json in the run folder (for chrome://tracing or Perfetto)."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint."""
    seed: int = 0
    """Seed of the initial weights and of the order of windows."""
    devices: int | None = None
    """Processes, each with a device of its own. Default: 1; under torchrun and srun as many as those have started."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products: bf16 on a GPU, fp32 on a CPU; parameters and states are always fp32."""
    num_workers: int = 0
    """Loader processes a device. 0 is the fastest unless the store lies on a slow disk."""


@dataclass
class RunSettings(PretrainSettings):
    """The same with every default filled in: what `dnamamba.training.resolve.resolve` gives and config.yaml holds."""

    length: int = 0
    batch_tokens: int = 0
    micro_tokens: int = 0
    max_steps: int = 0
    learning_rate: float = 0.0
    validation_every: int = 0
    log_every: int = 0
    devices: int = 1
    out: Path = Path()
