"""Where the weights of a run lie: whole on every rank (`WholeWeights`), or a part of each on every rank (FSDP2)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.parallel.gradients import Gradients, at_most


class WholeWeights:
    """All ranks hold all weights and step them alike; also of a run on one device."""

    def place(self, model: LanguageModel) -> None:
        """Before the optimiser is made, on every rank; a second call does nothing."""

    def gradients(self, parameters: Iterable[nn.Parameter]) -> Gradients:
        """Where the passes of a step add theirs, and how they become those of all ranks."""
        return Gradients(parameters)

    @contextmanager
    def gathered(self, model: LanguageModel) -> Iterator[None]:
        """Inside, ranks run forward passes without gradients by themselves, as many as each likes."""
        yield

    def tensors(self, model: LanguageModel) -> dict[str, Tensor] | None:
        """The whole state dict, on the first rank; None where the model itself holds it. All ranks call this."""
        return None


class ShardedWeights(WholeWeights):
    """FSDP2: each rank keeps its part of weights, gradients and AdamW's moments. A block's weights are gathered before
    its passes and let go after them; its gradients are summed where their parts belong."""

    def place(self, model: LanguageModel) -> None:
        if not isinstance(model, FSDPModule):
            for block in model.backbone.layers:
                fully_shard(block)
            fully_shard(model)

    def gradients(self, parameters: Iterable[nn.Parameter]) -> Gradients:
        return ShardedGradients(parameters)

    @contextmanager
    def gathered(self, model: LanguageModel) -> Iterator[None]:
        sharded: list[Any] = [each for each in model.modules() if isinstance(each, FSDPModule)]
        for each in sharded:
            each.set_reshard_after_forward(False, recurse=False)
            each.unshard()
        try:
            yield
        finally:
            for each in sharded:
                each.reshard()
                each.set_reshard_after_forward(each is not model, recurse=False)

    def tensors(self, model: LanguageModel) -> dict[str, Tensor] | None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


class ShardedGradients(Gradients):
    """Those of parameters that are parts: every backward pass has summed them already, as the mean over ranks."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.scale = float(torch.distributed.get_world_size())

    def zero(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def sum_over_ranks(self, sums: Tensor | None = None) -> Tensor:
        if sums is None:
            return torch.empty(0)
        sums = sums.clone()
        torch.distributed.all_reduce(sums)
        return sums

    def clip(self, most: float, scale: Tensor | float = 1.0) -> Tensor:
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        whole: Any = torch.nn.utils.get_total_norm(gradients)
        norm = whole.full_tensor() * scale
        parts = [cast(DTensor, each).to_local() for each in gradients]
        torch._foreach_mul_(parts, scale * at_most(norm, most))
        return norm
