"""The Lightning module: one optimiser step from uint8 windows."""

import math
from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_groups
from dnamamba.parallel.context import SequenceParts
from dnamamba.parallel.weights import WholeWeights
from dnamamba.runs.pace import Pace
from dnamamba.training.backprop.choose import WindowGradient
from dnamamba.training.data import WindowBatch
from dnamamba.training.loss_weights import EQUAL, LossWeights
from dnamamba.training.window_parts import WindowParts

BETAS = (0.9, 0.95)
"""AdamW's, as in the Mamba paper."""
NORM_AVERAGE_WEIGHT = 0.01
"""Of the newest step in the running mean of gradient norms."""


class PretrainModule(L.LightningModule):
    """Training by the model's objective.

    A batch is a whole optimiser step of this rank; it is cut into micro-batches here, and the loss is the sum of the
    negative log-likelihoods (nats) over all counted bases of all ranks and micro-batches, divided by their number. So
    neither devices nor micro-batches nor runs of N change what a step means.

    A step whose gradient is not finite, or far out of line, leaves weights and optimiser untouched and is remembered in
    `first_fault`, all without making the host wait for the device; whoever logs takes it
    (`dnamamba.training.callbacks`).

    Args:
        gradient: of windows that go through the model together, see `dnamamba.training.backprop.choose`.
        learning_rate: maps an optimiser step (0-based) to its rate.
        windows_per_pass: length of windows → how many go through the model together.
        chunk: positions that do at a time; the windows then stay in the host's memory. None takes whole windows.
        loss_weights: of the bases in the training loss.
        gradient_outlier: a gradient whose norm is more than so many times the running mean is a fault.
        parts: what of the windows is this rank's, where several ranks share each.
        weights: what of the model is.
    """

    votes = 0.0, 0.0
    """This rank's, to stop and to save: summed over ranks with what a step sums anyway"""
    votes_of_all: list[float] | None = None
    """Over all ranks, of the step that `STEPS_AHEAD` come after: all ranks see the same, and none waits for it"""
    step_sums: Tensor
    """(3,) fp64 on the device, over all ranks: the last step's negative log-likelihood (nats), the bases that it is the
    sum of, and the bases read (N too, padding not)."""
    gradient_norm: Tensor
    """() of the last step, before clipping."""
    norm_average: Tensor
    """() running mean of `gradient_norm` over some hundred steps without fault; NaN before the first. A buffer: part of
    the trainer's checkpoint."""
    first_fault: Tensor
    """() int64: the first step, 0-based, whose gradient was not finite or far out of line; −1 when there was none."""
    first_fault_norm: Tensor
    """() its gradient's norm."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        gradient: WindowGradient,
        learning_rate: Callable[[int], float],
        weight_decay: float,
        gradient_clip: float,
        windows_per_pass: Callable[[int], int],
        chunk: int | None = None,
        loss_weights: LossWeights = EQUAL,
        gradient_outlier: float = math.inf,
        parts: SequenceParts | None = None,
        weights: WholeWeights | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.gradient = gradient
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
        self.windows_per_pass = windows_per_pass
        self.chunk = chunk
        self.loss_weights = loss_weights
        self.gradient_outlier = gradient_outlier
        self.parts = parts or SequenceParts()
        self.weights = weights or WholeWeights()
        self.register_buffer("norm_average", torch.tensor(math.nan))

    def configure_model(self) -> None:
        self.weights.place(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.learning_rate(0), betas=BETAS, fused=True)

    def on_fit_start(self) -> None:
        self.parts.begin(self.device.type)
        self.gradients = self.weights.gradients(self.model.parameters())
        self.loss_scale = torch.tensor(self.gradients.scale, device=self.device)
        self.pace = Pace()
        self.first_fault = torch.tensor(-1, device=self.device)
        self.first_fault_norm = torch.tensor(0.0, device=self.device)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Adds a tensor up over all ranks; every rank calls this and gets the sum."""
        if self.trainer.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)  # Lightning's own reduce lets the host wait for the device first
        return values

    def transfer_batch_to_device(self, batch: WindowBatch, device: torch.device, dataloader_idx: int) -> WindowBatch:
        """Chunks are fetched from pinned memory one by one: a window may be a chromosome."""
        return super().transfer_batch_to_device(batch, device, dataloader_idx) if self.chunk is None else batch

    def training_step(self, batch: WindowBatch, batch_idx: int) -> None:
        step = self.trainer.global_step
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)

        windows = WindowParts(batch, self.model.objective, self.device, training=True)
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        self.gradients.zero()
        for together in windows.split(self.windows_per_pass(windows.length)):
            nll += self.gradient(self.model, together, self.loss_scale)
        votes = [torch.full((1,), vote, dtype=torch.float64, device=self.device) for vote in self.votes]
        sums = torch.cat((nll[None], windows.counts(self.loss_weights), *votes))
        if self.trainer.world_size > 1:
            sums = self.gradients.sum_over_ranks(sums)
        sums[1:4] /= self.parts.ranks  # a window's ranks count it all
        weight = sums[3]

        # By the bases of all ranks only now: so a step has one sum over ranks, and not another one before its passes.
        mean = torch.where(weight > 0, weight, 1.0).reciprocal().float()
        self.gradient_norm = self.gradients.clip(self.gradient_clip, mean)
        fault = self._judge_gradient(step)
        # The fused kernel skips the update where this is 1: torch's own contract with its GradScaler.
        optimizer.optimizer.found_inf = fault.float()  # type: ignore[attr-defined]
        optimizer.step()
        self.step_sums = sums[:3]
        self.votes_of_all = self.pace.step_queued(sums[4:])

    def take_fault(self) -> Tensor:
        """(3,) fp64: `first_fault`, its norm, `norm_average`; from here on another fault is the first."""
        found = torch.stack([self.first_fault.double(), self.first_fault_norm.double(), self.norm_average.double()])
        self.first_fault = torch.full_like(self.first_fault, -1)
        return found

    def _judge_gradient(self, step: int) -> Tensor:
        """() bool: whether this step's gradient must not be applied. Keeps the books of faults and the usual norm."""
        norm = self.gradient_norm
        # Against NaN, before the first step, every comparison is false.
        fault = ~torch.isfinite(norm) | (norm > self.gradient_outlier * self.norm_average)
        is_first = fault & (self.first_fault < 0)
        self.first_fault = torch.where(is_first, step, self.first_fault)
        self.first_fault_norm = torch.where(is_first, norm, self.first_fault_norm)
        moved = torch.lerp(self.norm_average, norm, NORM_AVERAGE_WEIGHT)
        average = torch.where(self.norm_average.isnan(), norm, moved)
        no_base = norm == 0
        self.norm_average = torch.where(fault | no_base, self.norm_average, average)
        return fault
