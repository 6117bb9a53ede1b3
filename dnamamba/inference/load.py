"""A trained model made ready to use: loaded, on its device, without gradients, in a chosen precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from dnamamba.formats import load_checkpoint
from dnamamba.formats.checkpoint import load_classifier
from dnamamba.inference.device import Accelerator, Compute, Precision, choose_compute
from dnamamba.inference.recorded_passes import record_passes
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.language_model import LanguageModel

AnyModel = TypeVar("AnyModel", LanguageModel, SequenceClassifier)


@dataclass(frozen=True)
class Inference(Generic[AnyModel]):
    """A model in evaluation mode whose parameters want no gradient."""

    model: AnyModel
    compute: Compute
    provenance: dict[str, Any]
    """The checkpoint's provenance.json."""
    checkpoint: Path

    @property
    def device(self) -> torch.device:
        return self.compute.device

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Arithmetic of the matrix products; states, logits and likelihoods are fp32 in both."""
        return self.compute.precision

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that every forward pass runs in."""
        return self.compute.autocast()

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


def load_for_inference(
    checkpoint: Path, accelerator: Accelerator = "auto", precision: Precision = "auto"
) -> Inference[LanguageModel]:
    """The language model of a checkpoint or run folder (`dnamamba.formats`), on the GPU if there is one.

    `precision` "auto" is bf16 on a GPU and fp32 on a CPU. Raises `InputError` for unusable checkpoints and a GPU that
    is not there.
    """
    return _load(load_checkpoint, checkpoint, choose_compute(accelerator, precision))


def load_classifier_for_inference(
    checkpoint: Path,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    micro_tokens: int | None = None,
) -> Inference[SequenceClassifier]:
    """The same of a fine-tuned classifier; `micro_tokens` bases go through it at a time (`choose_compute`)."""
    return _load(load_classifier, checkpoint, choose_compute(accelerator, precision, micro_tokens))


def _load(
    load: Callable[[Path, torch.device], tuple[AnyModel, dict[str, Any]]], checkpoint: Path, compute: Compute
) -> Inference[AnyModel]:
    model, provenance = load(checkpoint, compute.device)
    model.eval().requires_grad_(False)
    if compute.device.type == "cuda":
        record_passes(model)
    return Inference(model, compute, provenance, Path(checkpoint))
