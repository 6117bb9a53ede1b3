"""What `python -m dnamamba.generate` can be told. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class GenerateSettings:
    """Sequences sampled from a pretrained model, base by base, as FASTA."""

    checkpoint: Path
    """Checkpoint or run folder of a pretrained model."""
    prompt: str | None = None
    """Bases to go on from (A, C, G, T, N), at least one: a causal model has no prediction before the first base."""
    prompts: Path | None = None
    """FASTA or GenBank file with prompts, one a record, in place of --prompt."""
    length: int = 1000
    """Bases to add to each prompt."""
    samples: int = 1
    """Sequences a prompt."""
    temperature: float = 1.0
    """Above 1 more random than the model's probabilities, below 1 less; 0 takes the most probable base each time."""
    top_k: int = 4
    """Draw from so many of the most probable bases only."""
    seed: int = 0
    """Of the random numbers; the n-th sequence depends on seed and n, not on the batch it is sampled in."""
    with_prompt: bool = False
    """Write the prompt in front of what was sampled."""
    out: Path | None = None
    """FASTA file for the sequences. Default: standard output."""
    batch: int = 64
    """Sequences at a time."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the matrix products."""
    overwrite: bool = False
    """Replace --out if it exists."""
