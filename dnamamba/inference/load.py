"""A trained model made ready to be asked: loaded, on its device, without gradients, in a chosen precision."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dnamamba.formats import load_checkpoint
from dnamamba.inference.device import uses_gpu
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.language_model import MambaLM

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Inference:
    """A model in evaluation mode whose parameters want no gradient."""

    model: MambaLM
    device: torch.device
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the matrix products; states, logits and likelihoods are fp32 in both."""
    provenance: dict[str, Any]
    """The checkpoint's provenance.json."""
    checkpoint: Path

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that every forward pass runs in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def trained_length(self) -> int | None:
        """Bases of context that the model was trained at; None where its provenance does not say."""
        settings = self.provenance.get("settings")
        length = settings.get("length") if isinstance(settings, dict) else None
        return length if isinstance(length, int) else None

    def header(self) -> list[tuple[str, str]]:
        """Labelled lines for the head of a job's output: checkpoint, model, device, kernels."""
        config = self.model.config
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return [
            ("checkpoint", str(self.checkpoint)),
            ("model", f"{config.n_layer} blocks x {config.d_model}, {parameters:,} parameters"),
            ("device", f"{device}, {self.precision}"),
            ("kernels", describe_kernels(self.device)),
        ]


def load_for_inference(checkpoint: Path, accelerator: Accelerator = "auto", precision: Precision = "auto") -> Inference:
    """The language model of a checkpoint or run folder (`dnamamba.formats`), on the GPU if there is one.

    `precision` "auto" is bf16 on a GPU and fp32 on a CPU. Raises `InputError` for unusable checkpoints and a GPU that
    is not there.
    """
    on_gpu = uses_gpu(accelerator)
    device = torch.device("cuda" if on_gpu else "cpu")
    model, provenance = load_checkpoint(checkpoint, device)
    model.eval().requires_grad_(False)
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    return Inference(model, device, precision, provenance, Path(checkpoint))
