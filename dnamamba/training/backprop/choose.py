"""How a run makes the gradient of its windows: what `--backprop` means."""

from collections.abc import Callable

from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.parallel.context import SequenceParts
from dnamamba.training.backprop import Gradient, micro_batch
from dnamamba.training.backprop.chunked import chunked
from dnamamba.training.backprop.chunks import Chunks
from dnamamba.training.backprop.truncated import truncated
from dnamamba.training.backprop.whole import whole
from dnamamba.training.loss_weights import LossWeights
from dnamamba.training.settings import ResolvedPretrainSettings
from dnamamba.training.window_parts import WindowParts

WindowGradient = Callable[[LanguageModel, WindowParts, Tensor], Tensor]
"""As `Gradient`, of windows that are not yet prepared"""
BY_CHUNKS = {"chunked": chunked, "truncated": truncated}


def window_gradient(
    settings: ResolvedPretrainSettings,
    weights: LossWeights,
    of_micro_batch: Gradient = whole,
    parts: SequenceParts | None = None,
) -> WindowGradient:
    """The way that the settings name, with the bases' `weights`; `of_micro_batch` is that of whole windows. With
    `parts` a rank makes the gradient of the loss of its own positions."""
    chunk, parts = settings.chunk, parts or SequenceParts()

    def of_windows(model: LanguageModel, windows: WindowParts, scale: Tensor) -> Tensor:
        with parts.joined():
            if chunk is None:
                return of_micro_batch(model, parts.of(micro_batch(windows.whole(), weights)), scale)
            return BY_CHUNKS[settings.backprop](model, Chunks(windows, chunk, weights, parts.of), scale)

    return of_windows
