"""How a run makes the gradient of its windows: what `--backprop` means."""

from collections.abc import Callable

from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.training.backprop import Gradient, micro_batch
from dnamamba.training.backprop.chunked import chunked
from dnamamba.training.backprop.chunks import Chunks
from dnamamba.training.backprop.truncated import truncated
from dnamamba.training.backprop.whole import whole
from dnamamba.training.settings import ResolvedPretrainSettings
from dnamamba.training.window_parts import WindowParts

WindowGradient = Callable[[LanguageModel, WindowParts, Tensor], Tensor]
"""As `Gradient`, of windows that are not yet prepared"""
BY_CHUNKS = {"chunked": chunked, "truncated": truncated}


def window_gradient(settings: ResolvedPretrainSettings, of_micro_batch: Gradient = whole) -> WindowGradient:
    """The way that the settings name; `of_micro_batch` is that of whole windows."""
    weight, chunk = settings.soft_mask_weight, settings.chunk
    if chunk is None:
        return lambda model, windows, scale: of_micro_batch(model, micro_batch(windows.whole(), weight), scale)
    by_chunks = BY_CHUNKS[settings.backprop]
    return lambda model, windows, scale: by_chunks(model, Chunks(windows, chunk, weight), scale)
