"""Lightning's strategies as runs use them: processes that hold whole weights (DDP), or parts of them (FSDP2)."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy

from dnamamba.parallel.agreement import refuse_disagreement
from dnamamba.parallel.processes import PATIENCE
from dnamamba.parallel.weights import ShardedWeights


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
        assert self.model is not None
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return ShardedWeights().optimizer_state(self.model, own)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        assert self.model is not None
        [optimizer], [state] = self.optimizers, checkpoint.pop("optimizer_states")
        ShardedWeights().load(self.model, optimizer, checkpoint.pop("state_dict"), state)
        return checkpoint
