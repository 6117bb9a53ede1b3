"""Where the weights of a run lie: whole on every rank (`WholeWeights`), or a part of each on every rank (FSDP2)."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dnamamba.model.classifier import SequenceClassifier
from dnamamba.model.language_model import LanguageModel
from dnamamba.parallel.gradients import Gradients, at_most

Model = LanguageModel | SequenceClassifier
Optimizer = torch.optim.Optimizer


class WholeWeights:
    """All ranks hold all weights and step them alike; also of a run on one device."""

    def place(self, model: Model) -> None:
        """Before the optimiser is made, on every rank; a second call does nothing."""

    def gradients(self, parameters: Iterable[nn.Parameter]) -> Gradients:
        """Where the passes of a step add theirs, and how they become those of all ranks."""
        return Gradients(parameters)

    @contextmanager
    def gathered(self, model: Model) -> Iterator[None]:
        """Inside, ranks run forward passes without gradients by themselves, as many as each likes."""
        yield

    def tensors(self, model: Model) -> dict[str, Tensor] | None:
        """The whole state dict, on the first rank; None where the model itself holds it. All ranks call this."""
        return None

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's whole `state_dict`, on the first rank: the same whatever the number of ranks. All call
        this. `model` may hold the model."""
        return optimizer.state_dict()

    def load(
        self, model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], optimizer_state: dict[str, Any]
    ) -> None:
        """What `tensors` and `optimizer_state` gave on any number of ranks; every rank has it all."""
        model.load_state_dict(tensors)
        optimizer.load_state_dict(optimizer_state)


class ShardedWeights(WholeWeights):
    """FSDP2: each rank keeps its part of weights, gradients and AdamW's moments. A block's weights are gathered before
    its passes and let go after them; its gradients are summed where their parts belong."""

    def place(self, model: Model) -> None:
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of views in place: nothing here changes any
        if not isinstance(model.backbone.layers[0], FSDPModule):
            for each in (*model.backbone.layers, *_tops(model)):
                fully_shard(each)

    def gradients(self, parameters: Iterable[nn.Parameter]) -> Gradients:
        return ShardedGradients(parameters)

    @contextmanager
    def gathered(self, model: Model) -> Iterator[None]:
        tops = _tops(model)
        sharded: list[Any] = [each for each in model.modules() if isinstance(each, FSDPModule)]
        for each in sharded:
            each.set_reshard_after_forward(False, recurse=False)
            each.unshard()
        try:
            yield
        finally:
            for each in sharded:
                each.reshard()
                each.set_reshard_after_forward(all(each is not top for top in tops), recurse=False)

    def tensors(self, model: Model) -> dict[str, Tensor] | None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))

    def optimizer_state(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_optimizer_state_dict(model, optimizer, options=options)
        if torch.distributed.get_rank():
            return {}
        return _renamed(found, {name: number for number, name in enumerate(_names(model, optimizer))})

    def load(
        self, model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], optimizer_state: dict[str, Any]
    ) -> None:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, cast(dict[str, Any], tensors), options=options)
        named = _renamed(optimizer_state, dict(enumerate(_names(model, optimizer))))
        set_optimizer_state_dict(model, optimizer, named, options=options)


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


def is_finite(model: nn.Module) -> bool:
    """Of all that this rank holds of a model's parameters."""
    own = (each.to_local() if isinstance(each, DTensor) else each for each in model.parameters())
    return all(bool(each.isfinite().all()) for each in own)


def _tops(model: Model) -> list[nn.Module]:
    """What is sharded apart from the blocks: modules that are called, and hold all other parameters."""
    return [model] if isinstance(model, LanguageModel) else [model.backbone, model.head]


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Of the optimiser's parameters, by their numbers in its state: torch's own goes by these."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: Any, names: dict[Any, Any]) -> dict[str, Any]:
    """An optimiser's state with other names of its parameters."""
    groups = [group | {"params": [names[each] for each in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[each]: values for each, values in state["state"].items()}, "param_groups": groups}
