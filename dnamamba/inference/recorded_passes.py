"""Small forward passes of a shape that comes again, recorded as CUDA graphs: what the host would take longer to queue
than the GPU to compute is replayed, with the same bits.

Every verb's passes go through a backbone that was loaded for inference, so they are recorded there.
"""

import copy
import threading
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dnamamba.inference.graphs import Record, Recording, copied, record
from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import Backbone, LanguageModel, ModelState
from dnamamba.model.mixers import mixer_class

SEEN_BEFORE = 100
"""Passes of a shape before it is recorded: making a recording takes as long as some 20 passes (0.2 to 0.4 s on an
H200), a replay saves up to half of one, and the last pass may have been"""
LARGEST = 1 << 24
"""Positions times hidden width of a pass: the GPU is the limit of larger ones. Of one of 16 BiMamba blocks of that size
the host takes longer than an H200, of twice the size no more"""
ALL = 2 * LARGEST
"""The same of all recordings together: it bounds the memory of their results"""
MOST = 16
"""Recordings"""
UNUSED = 200
"""Passes without a recording before it may give way to another: to make one takes as long as many passes"""
MOST_SHAPES = 1024
"""Shapes whose passes are counted"""

Hidden = tuple[Tensor, ModelState]
"""As of `Backbone.forward`"""


class RecordedPasses:
    """A backbone's `forward`, to the bit. What it returns is the caller's own.

    A pass is replayed where no gradients are wanted and a few of its shape have been before. All recordings share the
    memory that a pass takes in between.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, record: Record = record) -> None:
        self._backbone = weakref.ref(backbone)  # which holds this in turn: no cycle keeps a GPU's memory
        self.config, self.record = config, record
        # Such a mixer makes the host wait for where segments begin, or the padding that no base may see.
        self.cuts_on_host = any(mixer_class(name).packs_on_host(config) for name in config.mixers)
        self._lock = threading.Lock()
        self._gives_up = False
        self._passes = 0
        self._seen: dict[Any, int] = {}
        self._used: dict[Any, int] = {}
        self._recordings: dict[Any, Recording] = {}
        self._pool: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordedPasses":
        return RecordedPasses(copy.deepcopy(self.backbone, memo), self.config, self.record)

    @property
    def backbone(self) -> Backbone:
        found = self._backbone()
        assert found is not None
        return found

    def __call__(self, tokens: Tensor, state: ModelState | None = None, sequence_ids: Tensor | None = None) -> Hidden:
        inputs = tokens, state, sequence_ids
        if self._elements(inputs) > LARGEST or not self._may_be_recorded(tokens, sequence_ids):
            return self._forward(*inputs)
        with self._lock:
            self._passes += 1
            key = _key(inputs)
            recording = self._recordings.get(key)
            if recording is None:
                if not (self._is_frequent(key) and self._can_hold(inputs)):
                    return self._forward(*inputs)
                try:
                    recording = self._make(key, inputs)
                except RuntimeError as error:  # above all where there is no memory left for it
                    self._gives_up = True
                    self._recordings.clear()  # they would hold their memory for nothing
                    warnings.warn(f"from now on passes go without CUDA graphs: {error}", stacklevel=2)
            if recording is None:  # here, where the error no longer holds what the attempt took
                return self._forward(*inputs)
            self._used[key] = self._passes
            found: Hidden = copied(recording.replay(inputs))
            return found

    def _forward(self, *inputs: Any) -> Hidden:
        return type(self.backbone).forward(self.backbone, *inputs)

    def _may_be_recorded(self, tokens: Tensor, sequence_ids: Tensor | None) -> bool:
        if self._gives_up or torch.is_grad_enabled():
            return False
        if self.cuts_on_host and not (sequence_ids is None and self.backbone.is_causal):
            return False
        # Replays on one stream follow one another: they write to the same memory.
        streams = torch.cuda.current_stream, torch.cuda.default_stream
        return not tokens.is_cuda or len({stream(tokens.device) for stream in streams}) == 1

    def _is_frequent(self, key: Any) -> bool:
        if len(self._seen) >= MOST_SHAPES:
            self._seen.clear()
        self._seen[key] = self._seen.get(key, 0) + 1
        return self._seen[key] > SEEN_BEFORE

    def _elements(self, inputs: tuple[Any, ...]) -> int:
        return inputs[0].numel() * self.config.d_model * (1 + self.config.rc_equivariant)

    def _can_hold(self, inputs: tuple[Any, ...]) -> bool:
        """Gives up recordings that have long not been used, where they take too much, if those are enough."""
        sizes = {key: self._elements(recording.inputs) for key, recording in self._recordings.items()}
        free = ALL - self._elements(inputs) - sum(sizes.values())
        given_up: list[Any] = []
        for key in sorted(sizes, key=self._used.__getitem__):
            if free >= 0 and len(sizes) - len(given_up) < MOST:
                break
            if self._passes - self._used[key] < UNUSED:
                return False
            given_up.append(key)
            free += sizes[key]
        for key in given_up:
            del self._recordings[key]
        return True

    def _make(self, key: Any, inputs: tuple[Any, ...]) -> Recording:
        if not self._recordings:
            self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._recordings[key] = found = Recording(self._forward, inputs, self.record, self._pool)
        return found


def _key(inputs: tuple[Any, ...]) -> Any:
    """What a recording depends on besides the values of tensors."""
    leaves = [(each.shape, each.dtype) if isinstance(each, Tensor) else each for each in tree_leaves(inputs)]
    device = inputs[0].device
    autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    return (*leaves, device, *autocast, torch.is_inference_mode_enabled())


def record_passes(model: LanguageModel | SequenceClassifier, record: Record = record) -> None:
    """From now on, passes through the backbone of a language model or classifier without gradients may be replayed.
    Hooks of its modules take no part in a replay, and its weights may change in place alone."""
    model.backbone.forward = RecordedPasses(model.backbone, model.config, record)  # type: ignore[method-assign]


def record_no_passes(backbone: Backbone) -> None:
    """Takes `record_passes` back, and frees what was recorded."""
    backbone.__dict__.pop("forward", None)
