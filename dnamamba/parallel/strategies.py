"""Lightning's strategies as runs use them: processes that hold whole weights (DDP), or parts of them (FSDP2)."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dnamamba.parallel.agreement import refuse_disagreement
from dnamamba.parallel.processes import PATIENCE


class _AgreedStrategy(ParallelStrategy):
    """Before anything else all ranks compare their `settings`."""

    settings: dict[str, Any]
    """By dotted names, as `refuse_disagreement` takes them"""

    def setup_environment(self) -> None:
        super().setup_environment()
        refuse_disagreement(self.settings)

    def setup(self, trainer: L.Trainer) -> None:
        """Without Lightning's own agreement on SIGTERM, in which the host waits for the device at every step:
        `RunControl` takes the signals, and ranks vote in what a step sums anyway."""
        super().setup(trainer)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


class RanksStrategy(_AgreedStrategy, DDPStrategy):
    """Lightning's processes without torch's wrapper of the model, whose hooks in the backward pass a CUDA graph cannot
    hold: `PretrainModule` sums the gradients itself, in one operation a step. All begin with the first rank's weights.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(timeout=PATIENCE)
        self.settings = settings

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


class ShardedStrategy(_AgreedStrategy, ModelParallelStrategy):
    """FSDP2 over all ranks. What it saves is what one rank saves, in one file, and it loads that: runs continue on any
    number of ranks, with whole weights or parts of them."""

    def __init__(self, settings: dict[str, Any], devices: int) -> None:
        super().__init__(devices, 1, save_distributed_checkpoint=False, timeout=PATIENCE)
        self.settings = settings

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """By numbers, as torch's own: those of the parameters in the order of the groups."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_optimizer_state_dict(self.model, optimizer, options=options)
        if not self.is_global_zero:
            return {}
        return _renamed(found, {name: number for number, name in enumerate(self._names(optimizer))})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        assert self.model is not None
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states"), strict=True):
            named = _renamed(state, dict(enumerate(self._names(optimizer))))
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint

    def _names(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Of the optimiser's parameters, by their numbers in its state."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _renamed(state: Any, names: dict[Any, Any]) -> dict[str, Any]:
    """An optimiser's state with other names of its parameters."""
    groups = [group | {"params": [names[each] for each in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[each]: values for each, values in state["state"].items()}, "param_groups": groups}
