"""Several processes that train one model."""

import torch
from lightning.pytorch.strategies import DDPStrategy


class RanksStrategy(DDPStrategy):
    """Lightning's processes without torch's wrapper of the model, whose hooks in the backward pass a CUDA graph cannot
    hold: `PretrainModule` sums the gradients itself, in one operation a step. All begin with the first rank's weights.
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
