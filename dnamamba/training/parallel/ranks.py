"""Several processes that train one model."""

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy


class RanksStrategy(DDPStrategy):
    """Lightning's processes without torch's wrapper of the model, whose hooks in the backward pass a CUDA graph cannot
    hold: `PretrainModule` sums the gradients itself, in one operation a step. All begin with the first rank's weights.
    """

    def setup(self, trainer: L.Trainer) -> None:
        super().setup(trainer)
        # Lightning's own agreement on SIGTERM, in which the host waits for the device at every step: `RunControl` takes
        # the signals, and agrees now and then.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
