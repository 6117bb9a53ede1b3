"""Options that several verbs share, each said once. A verb's dataclass inherits from those that it takes; where its
default differs, it says the field again, with a docstring of its own. The bases listed last come first in `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnamamba.errors import InputError
from dnamamba.settings.fields import Settings, setting


@dataclass(kw_only=True)
class PretrainedModelOptions(Settings):
    """The language model that is used."""

    checkpoint: Path
    """Checkpoint or run folder of a pretrained model; or a folder of Hugging Face's MambaForCausalLM, of
    state-spaces/mamba or of Caduceus; or a bundled model's name (`dnamamba models`)."""


@dataclass(kw_only=True)
class StoreOptions(Settings):
    """Where a genome's tokens are kept."""

    store: Path | None = setting(None, on_resume="free")
    """Where the genome's token store lies. Default: next to the first genome file; if that is read-only, in the user's
    cache."""


@dataclass(kw_only=True)
class GenomeOptions(StoreOptions):
    """The genome that a verb reads."""

    genome: list[Path]
    """FASTA (plain, gzip, bgzip), GenBank or token store files; several files are one genome."""


@dataclass(kw_only=True)
class OverwriteOptions(Settings):
    """What happens to output files that exist."""

    overwrite: bool = False
    """Replace output files that exist."""


@dataclass(kw_only=True)
class BatchTokensOptions(Settings):
    """How much the model reads at once when it is used."""

    batch_tokens: int | None = setting(None, at_least=1)
    """Bases in one pass through the model; lower it when memory runs out. The result does not depend on it beyond
    rounding. Default: 262144 on a GPU, 16384 on a CPU."""


@dataclass(kw_only=True)
class MicroTokensOptions(Settings):
    """How much the model reads at once when it is trained, and what is trained when it predicts."""

    micro_tokens: int | None = setting(None, at_least=1, on_resume="free")
    """Bases in one forward pass on one device, in training at least one example; lower it when memory runs out. Longer
    sequences to predict go through in chunks of this size. The result does not depend on it beyond rounding. Default:
    262144 on a GPU, 16384 on a CPU."""


@dataclass(kw_only=True)
class BackpropOptions(Settings):
    """How gradients pass through sequences that are longer than memory allows for."""

    backprop: Literal["whole", "chunked", "truncated"] = setting("whole", absent="whole", on_resume="free")
    """whole: gradients of a whole sequence at once. chunked: chunk by chunk, from the states between them: the same
    gradients in the memory of one chunk, however long the sequence, for one more forward pass. truncated: the state is
    carried from chunk to chunk and its gradient cut, for comparison."""
    chunk: int | None = setting(None, absent=None, at_least=16, on_resume="free")
    """chunked, truncated: bases of a chunk. Default on a GPU: the largest power of two from 16384 to 262144 whose
    activations are estimated to take a quarter of its memory; on a CPU 16384; at most --micro_tokens where that is
    given."""

    def chosen_chunk(self, default: int | None, *, resumed: bool) -> int | None:
        """What is given, else the default; None where nothing goes through in chunks. `InputError` where a chunk is
        given all the same, but for that of a resumed run."""
        if self.backprop != "whole":
            return default if self.chunk is None else self.chunk
        if self.chunk is not None and not resumed:
            raise InputError("--chunk: --backprop whole has no chunks; add --backprop chunked, or leave it out")
        return None


@dataclass(kw_only=True)
class RecomputeOptions(Settings):
    """What training keeps for the backward pass."""

    recompute: Literal["none", "cheap", "all"] | None = setting(None, on_resume="free", absent=None)
    """What the backward pass computes again rather than keeps, for less memory. cheap: in Mamba's blocks all but the
    scan and what follows it, half the memory for some 5 % more time. all: whole blocks, a fifth of the memory for a
    third more time. Default: the first of none, cheap and all that fits into the GPU's memory."""


@dataclass(kw_only=True)
class ComputeOptions(Settings):
    """Where and how to compute."""

    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", on_resume="free")
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = setting("auto", on_resume="free")
    """Arithmetic of the matrix products: auto is bf16 on a GPU, fp32 on a CPU. Parameters, states and sums are always
    fp32."""


@dataclass(kw_only=True)
class ExactComputeOptions(ComputeOptions):
    """The same for verbs that take small differences of large sums."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the matrix products; small differences of large sums of likelihoods want fp32."""


@dataclass(kw_only=True)
class DevicesOptions(Settings):
    """Training on several devices."""

    devices: int | None = setting(None, at_least=1, on_resume="free")
    """Processes, each with a device of its own. Default: 1; under torchrun and srun as many as those have started."""
    strategy: Literal["ddp", "fsdp"] = setting("ddp", absent="ddp", on_resume="free")
    """How several devices hold the model. ddp: each all of it. fsdp: each a part of weights, gradients and AdamW's
    moments (FSDP2), for models that take much of a device's memory; the same losses."""

    @property
    def is_sharded(self) -> bool:
        """Whether a device holds no more than a part of the model."""
        return self.strategy == "fsdp" and (self.devices or 1) > 1


@dataclass(kw_only=True)
class OptimiserOptions(Settings):
    """What pretraining and fine-tuning share of AdamW."""

    warmup_fraction: float = setting(0.1, between=(0, 1))
    """Share of the steps in which the learning rate rises linearly; then it falls as a cosine."""
    weight_decay: float = setting(0.1, at_least=0)
    """AdamW's decay of matrices; A, D, biases and norms are never decayed."""


@dataclass(kw_only=True)
class RunOptions(Settings):
    """A run folder, which a run fills and is resumed from."""

    out: Path | None = setting(None, on_resume="free")
    """Run folder, which must not exist. Default: a new one below runs/, named by data, model, length and time."""
    resume: bool = setting(False, on_resume="free")
    """Resume the run in --out from its last checkpoint."""
    dry_run: bool = setting(False, on_resume="free")
    """Show what the run will do, and stop."""
    seed: int = setting(0, at_least=0)
    """Seed of all random numbers."""


@dataclass(kw_only=True)
class TrainingOptions(
    DevicesOptions,
    ComputeOptions,
    RecomputeOptions,
    BackpropOptions,
    MicroTokensOptions,
    OptimiserOptions,
    RunOptions,
):
    """What pretraining and fine-tuning share."""
