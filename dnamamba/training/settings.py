"""Everything a pretraining run can be given, with its unit and default. Torch-free, so that `--help` is instant.

The attribute docstrings are the command line's help. `None` means "choose for me"; `resolve` in
`dnamamba.training.resolve` fills those in, and the run folder's config.yaml holds what was chosen. Free on resume is
what alters no window that a step sees (`max_steps` would under `length_warmup`, and is refused then).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.model.settings import ModelSettings
from dnamamba.settings.fields import setting
from dnamamba.settings.options import StoreOptions, TrainingOptions


@dataclass(kw_only=True)
class PretrainSettings(TrainingOptions, StoreOptions):
    """Pretraining of a language model on reference genomes: to predict the next base, or masked bases."""

    genome: list[Path] | None = setting(None, on_resume="files")
    """FASTA (plain, gzip, bgzip), GenBank or token store files, one or many. Default: the bundled E. coli."""
    mixture: Path | None = setting(None, on_resume="files")
    """YAML file with several genomes and their weights, in place of --genome and the flags of its splits."""
    contigs: list[str] | None = None
    """Contigs to use: names or shell patterns (chr2 chr1?). Default: the primary contigs."""
    train: list[str] | None = setting(None, on_resume="files")
    """Training split: BED files or contig patterns. Default: blocks of every contig."""
    validation: list[str] | None = setting(None, on_resume="files")
    """Validation split: BED files or contig patterns. Default: blocks of every contig."""
    test: list[str] | None = setting(None, on_resume="files")
    """Test split, never read here but kept apart: BED files or contig patterns."""
    exclude: list[Path] | None = setting(None, on_resume="files")
    """BED files of intervals that no split may touch."""
    annotation: Path | None = setting(None, on_resume="free")
    """GFF3 or GTF file of the genome, plain or gzipped: the last validation is also scored inside and outside exons."""
    regions: list[Path] | None = setting(None, absent=None, on_resume="files")
    """Classes of regions: BED files that name them in column 4 (CDS, enhancer, repeat), or GTF and GFF3 files of genes,
    which give CDS, splice, 5UTR, 3UTR, exon, promoter, repeat, intron and intergenic. Validation reports each."""
    region_shares: list[str] | None = setting(None, absent=None)
    """With --regions, classes to show in so many of the training windows: CDS=2 splice=1 genome=1 (genome: the whole
    training split). Default: all classes alike but repeat, intron and intergenic."""
    region_weights: list[str] | None = setting(None, absent=None)
    """With --regions, weights of classes of bases in the training loss: repeat=0.1 intron=0.5. Default: 1."""
    verify: bool = setting(False, on_resume="free")
    """Check every block of the token store against its checksum before training."""
    max_n_fraction: float = setting(0.1, between=(0, 1))
    """Skip windows with more than this fraction of N."""
    pack: bool = False
    """Train on contigs and intervals shorter than --length too, several in one window of that length."""
    reverse_complement: bool = True
    """Show each training window as its reverse complement half of the time."""
    copies: float = setting(0.0, absent=0.0, between=(0, 1))
    """Share of the training windows with planted copies: segments repeated farther on, as they are or
    reverse-complemented, exact or with substitutions. From them a model with attention learns to use its context."""
    copies_warmup: float = setting(0.1, absent=0.1, between=(0, 1))
    """With --copies, share of the steps, the first, whose windows are repeats from end to end: there looking back is
    learned."""
    copies_cooldown: float = setting(0.0, absent=0.0, between=(0, 1))
    """With --copies, share of the steps, the last, without planted copies: the model ends on the genome as it is."""

    model: ModelSettings = setting(factory=ModelSettings, on_resume=("activation_checkpointing",))
    """The model."""

    length: int | None = setting(None, at_least=128)
    """Context: bases a window, up to a whole contig (its length less 1; see --backprop and --validation_length).
    Default: 8192 (1024 for the demo and on a CPU)."""
    batch_tokens: int | None = None
    """Bases an optimiser step, over all devices; a multiple of --length. Default: 262144 (8192 on a CPU,
    4096 for the demo)."""
    length_warmup: float = setting(0.0, between=(0, 1))
    """Share of the steps spent on shorter windows, which double from 1024 up to --length, bases a step constant."""
    soft_mask_weight: float = setting(1.0, at_least=0)
    """Weight of soft-masked (lower-case, repeat) bases in the training loss; validation always counts all alike."""
    tokens: int | None = setting(None, at_least=1, on_resume="free")
    """Bases to train on, in place of --max_steps."""
    max_steps: int | None = setting(None, at_least=1, on_resume="free")
    """Optimiser steps. Default: 10000 (2000 on a CPU: half an hour on 2 cores; 600 for the demo: under 3 minutes). When
    a run is resumed, another number rescales the rest of the learning-rate schedule."""
    learning_rate: float | None = setting(None, above=0, at_most=sys.float_info.max)
    """Peak learning rate. Default: 0.008 as in the Mamba paper."""
    final_learning_rate: float = setting(0.01, between=(0, 1))
    """Learning rate at the last step, as a fraction of the peak."""
    gradient_clip: float = setting(1.0, above=0)
    """Largest norm of the whole gradient."""

    validation_every: int | None = setting(None, at_least=1, on_resume="free")
    """Steps between validations. Default: a tenth of --max_steps (a fifth for the demo)."""
    validation_tokens: int | None = setting(None, at_least=0, on_resume="free")
    """Bases of the validation split to score each time (windows spread evenly over it); 0 scores all of it. Default:
    2000000, but no more than the run trains on between two validations."""
    validation_length: int | None = setting(None, absent=None, at_least=128)
    """Bases of a window of the validation split, where that has no interval of --length. Default: --length."""
    patience: int = setting(0, at_least=0, on_resume="free")
    """Stop after this many validations without a new best; 0 never does."""
    markov_order: int = setting(10, at_least=0, at_most=12, on_resume="free")
    """Highest order of the Markov models that the summary compares with; 0 leaves them out."""
    log_every: int | None = setting(None, at_least=1, on_resume="free")
    """Steps between rows of metrics.csv. Default: a hundredth of --max_steps, between 1 and 50."""

    save_every: int | None = setting(None, at_least=1, on_resume="free")
    """Steps between checkpoints, apart from those after each validation. Default: only those and --save_minutes."""
    save_minutes: float = setting(10.0, above=0, on_resume="free")
    """Minutes after which a checkpoint is written at the next row of metrics.csv."""
    keep: int = setting(2, at_least=1, on_resume="free")
    """Checkpoints to keep, apart from the best by validation."""
    on_fault: Literal["stop", "skip"] = setting("stop", on_resume="free")
    """What to do after a step whose gradient is not finite or an outlier; such a step is never applied."""
    gradient_outlier: float = setting(100.0, above=0, on_resume="free")
    """A gradient whose norm exceeds the running mean so many times is an outlier."""

    cuda_graph: Literal["auto", "on", "off"] = setting("auto", absent="auto", on_resume="free")
    """Record the passes of a micro-batch once as a CUDA graph and replay it, so that a GPU never waits for Python; the
    same losses as without. auto: where nothing stands against it, which the head of a run says; on: refuses there."""
    dry_run: bool = setting(False, on_resume="free")
    """Show sizes, splits, bases an epoch, and the time and memory that the run will take; then stop."""
    profile: bool = setting(False, on_resume="free")
    """Trace a few steps into profile.json in the run folder (for chrome://tracing or Perfetto)."""
    context_parallel: int = setting(1, absent=1, at_least=1, on_resume="free")
    """Devices that share each training window, a part of its positions each, with the losses and gradients of one
    device; divides --devices. For windows longer than a device's memory allows for, or faster steps of few of them."""
    num_workers: int = setting(0, at_least=0, on_resume="free")
    """Loader processes a device. 0 is the fastest unless the store lies on a slow disk."""


@dataclass(kw_only=True)
class ResolvedPretrainSettings(PretrainSettings):
    """The same with every default filled in: what `dnamamba.training.resolve.resolve` gives and config.yaml holds."""

    length: int = 0
    batch_tokens: int = 0
    micro_tokens: int = 0
    max_steps: int = 0
    learning_rate: float = 0.0
    validation_every: int = 0
    validation_tokens: int = 0
    log_every: int = 0
    devices: int = 1
    out: Path = Path()
