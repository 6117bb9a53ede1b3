"""What `python -m dnamamba.generate` takes. Torch-free, so that `--help` is instant."""

from dataclasses import dataclass
from pathlib import Path

from dnamamba.settings.fields import setting
from dnamamba.settings.options import ExactComputeOptions, OverwriteOptions, PretrainedModelOptions


@dataclass(kw_only=True)
class GenerateSettings(ExactComputeOptions, OverwriteOptions, PretrainedModelOptions):
    """Sequences sampled from a pretrained model, base by base, as FASTA."""

    prompt: str | None = None
    """Bases to continue from (A, C, G, T, U, N), at least one: a causal model predicts no first base."""
    prompts: Path | None = None
    """FASTA or GenBank file with prompts, one a record, in place of --prompt."""
    length: int = setting(1000, at_least=1)
    """Bases to add to each prompt."""
    samples: int = setting(1, at_least=1)
    """Sequences a prompt."""
    temperature: float = 1.0
    """Above 1 more random than the model's probabilities, below 1 less; 0 takes the most probable base each time."""
    top_k: int = setting(4, at_least=1, at_most=4)
    """Draw from so many of the most probable bases only."""
    seed: int = setting(0, at_least=0)
    """Of the random numbers; the n-th sequence depends on seed and n, not on the batch it is sampled in."""
    with_prompt: bool = False
    """Write the prompt in front of what was sampled."""
    out: Path | None = None
    """FASTA file for the sequences. Default: standard output."""
    batch: int = setting(64, at_least=1)
    """Sequences at a time."""
