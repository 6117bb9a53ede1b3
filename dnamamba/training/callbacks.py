"""What happens between optimiser steps: progress, metrics, validation, checkpoints, signals, faults."""

import math
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.model.parameters import training_flops_per_token
from dnamamba.runs.folder import RunFolder
from dnamamba.runs.pace import STEPS_AHEAD, event_on
from dnamamba.runs.progress import TrainingProgress
from dnamamba.training.checkpoints import CheckpointKeeper
from dnamamba.training.data import PretrainData, WindowBatch
from dnamamba.training.module import PretrainModule
from dnamamba.training.throughput import peak_bf16_flops, peak_memory_gib
from dnamamba.training.validation import bits_per_base, evaluate
from dnamamba.training.validation_windows import WindowTable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, a scheduler's end, and SLURM's warning before pre-emption: save, then stop."""


class _Row(NamedTuple):
    """What a row of metrics.csv is made of."""

    step: int
    length: int
    """Of the windows"""
    wait: float
    """Seconds for batches"""
    taken_at: float
    """By the clock of `time.perf_counter`"""
    values: Tensor
    """(7,) fp64 on the host: `PretrainModule.step_sums` since the last row, the gradient's norm, `take_fault`"""
    ready: torch.cuda.Event | None
    """When they are there"""


class RunControl(L.Callback):
    """Runs after every step, in this order: metrics, validation, checkpoint, stop.

    A row of metrics.csv is written when the step after it has been queued, so that the device never waits for it; with
    a validation, a checkpoint or a stop it is written at once.

    `validation_bits_per_base` is the last one, `bits_by_genome` its parts in a mixture, `best_bits_per_base` the
    lowest; `stopped_by` names the signal that ended the run early.
    """

    def __init__(
        self,
        folder: RunFolder,
        keeper: CheckpointKeeper,
        *,
        steps: int,
        log_every: int,
        validation_every: int,
        save_every: int | None,
        save_minutes: float,
        on_fault: str,
        patience: int,
        validation_chunk: int | None = None,
    ) -> None:
        self.folder, self.keeper = folder, keeper
        self.steps = steps
        self.log_every, self.validation_every = log_every, validation_every
        self.save_every, self.save_minutes = save_every, save_minutes
        self.on_fault = on_fault
        self.patience = patience
        self.validation_chunk = validation_chunk
        self.validations_since_best = 0
        self.validation_bits_per_base = math.nan
        self.bits_by_genome: dict[str, float] = {}
        self.best_bits_per_base = math.inf
        self.best_step: int | None = None
        self.step = 0
        self.tokens, self.seconds = 0, 0.0
        self.stopped_by: signal.Signals | None = None
        self._restored_sums, self._restored_seconds = [0.0, 0.0, 0.0], 0.0
        self._handlers: dict[signal.Signals, Any] = {}
        self._window_table: WindowTable | None = None

    @property
    def bases_read(self) -> int:
        """Bases of the training windows so far, those since the last row of metrics.csv included."""
        return self.tokens + (int(self._sums[2]) if hasattr(self, "_sums") else 0)

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations in a row brought no new best."""
        return 0 < self.patience <= self.validations_since_best

    # What a resumed run needs to know of its past; Lightning puts it into the trainer's checkpoint.
    def state_dict(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "validation_bits_per_base": self.validation_bits_per_base,
            "bits_by_genome": self.bits_by_genome,
            "best_bits_per_base": self.best_bits_per_base,
            "best_step": self.best_step,
            "validations_since_best": self.validations_since_best,
            # The row of metrics.csv that is being gathered.
            "sums": self._sums.tolist(),
            "seconds_since_row": time.perf_counter() - self._mark,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "tokens" not in state:
            raise InputError(
                f"{self.folder.path}: begun by an earlier dnamamba, whose runs cannot be resumed; begin a new run"
            )
        state = dict(state)
        self._restored_sums = state.pop("sums")
        self._restored_seconds = state.pop("seconds_since_row")
        self.__dict__.update(state)

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.keeper.fix_links(self.best_step)  # here: a run that was killed at its very end does not train again

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.step = first = trainer.global_step
        self.keeper.saved_step = first if first else None
        self._last_save = self._step_ended = time.perf_counter()
        self._mark = self._last_save - self._restored_seconds
        self._wait = 0.0
        self._row: _Row | None = None
        self._sums = torch.tensor(self._restored_sums, dtype=torch.float64, device=module.device)
        data: PretrainData = trainer.datamodule  # type: ignore[attr-defined]
        self._progress = TrainingProgress(
            self.steps,
            first,
            trainer.is_global_zero,
            validation_every=self.validation_every,
            validation_steps=data.validation_bases / (3 * data.bases_a_step),  # forward alone is a third of a step
        )
        if trainer.is_global_zero:
            self.folder.start_metrics(first)
        for number in STOP_SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.stopped_by = signal.Signals(number)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, PretrainModule)
        self._wait += time.perf_counter() - self._step_ended
        module.votes = float(self.stopped_by is not None), float(trainer.is_global_zero and self._save_is_overdue)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: WindowBatch, batch_idx: int
    ) -> None:
        assert isinstance(module, PretrainModule)
        self.step = step = trainer.global_step
        final = step >= self.steps
        self._sums += module.step_sums
        due_validation = final or step % self.validation_every == 0
        earlier, self._row = self._row, None
        if final or due_validation or step % self.log_every == 0:
            self._row = self._take_row(module, step, length=batch.tokens.shape[1] - 1)
        if earlier is not None:
            self._log(trainer, module, earlier)  # while the device, which has its step behind it, does this one
        stop, overdue = self._decided(trainer, module)
        due_save = self.save_every is not None and step % self.save_every == 0
        due_save = due_save or (step % self.log_every == 0 and overdue)
        if self._row is not None and (due_validation or due_save or stop):
            self._log(trainer, module, self._row, due_validation)
            self._row = None
        if (due_save or stop) and self.keeper.saved_step != step:
            self._refuse_faults(trainer, module.take_fault().tolist())
            self._save(trainer, module, step, best=False)
        if stop and self.stopped_by is None:
            # Another rank got the signal: no rank may take this for the end of the run.
            self.stopped_by = signal.SIGTERM
        if stop or self.out_of_patience:
            trainer.should_stop = True
        self._step_ended = time.perf_counter()

    def _take_row(self, module: PretrainModule, step: int, length: int) -> _Row:
        """What there is after `step`, as it is there when the device gets to it: the host does not wait."""
        values = torch.cat((self._sums, module.gradient_norm.double()[None], module.take_fault()))
        on_host = values.to("cpu", non_blocking=True)
        row = _Row(step, length, self._wait, time.perf_counter(), on_host, event_on(module.device))
        self._sums.zero_()
        self._wait = 0.0
        return row

    @property
    def _save_is_overdue(self) -> bool:
        return time.perf_counter() - self._last_save > 60 * self.save_minutes

    def _decided(self, trainer: L.Trainer, module: PretrainModule) -> tuple[bool, bool]:
        """Whether to stop, and to save: of several ranks if any voted so some steps ago, rank 0 alone on saving. Its
        votes from before the last checkpoint count no more."""
        if trainer.world_size == 1:
            return self.stopped_by is not None, self._save_is_overdue
        stop, save = module.votes_of_all or (0.0, 0.0)
        return stop > 0, save > 0 and self.step - STEPS_AHEAD > (self.keeper.saved_step or 0)

    def _refuse_faults(self, trainer: L.Trainer, found: Sequence[float]) -> None:
        """Of `PretrainModule.take_fault`."""
        fault, norm, usual = int(found[0]), *found[1:]
        if fault < 0:
            return
        data: PretrainData = trainer.datamodule  # type: ignore[attr-defined]
        windows = ", ".join(f"{w.contig}:{w.start}-{w.end}" for w in data.step_dataset.windows(fault)[:4])
        what = "is not finite" if not math.isfinite(norm) else f"has norm {norm:.3g}, usual is {usual:.3g}"
        message = (
            f"step {fault + 1}: the gradient {what}; windows of this step (0-based half-open): {windows}, …; "
            "that step was not applied"
        )
        if self.on_fault == "stop":
            raise InputError(
                f"{message}; begin a new run with a lower --learning_rate, or continue without such steps by "
                "--resume --on_fault skip"
            )
        self._progress.say(f"warning: {message}")

    def _log(self, trainer: L.Trainer, module: PretrainModule, taken: _Row, validate: bool = False) -> None:
        now = taken.taken_at
        if taken.ready is not None:
            taken.ready.synchronize()
            now = time.perf_counter()  # the end of the row's step on the device, so the clock is honest
        nll, counted, read, gradient_norm, *fault = taken.values.tolist()
        self._refuse_faults(trainer, fault)
        step, elapsed = taken.step, now - self._mark
        self._mark = now
        self.seconds += elapsed
        self.tokens += int(read)
        tokens_per_second = read / elapsed if elapsed and read else None
        row: dict[str, float | int | None] = {
            "step": step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "learning_rate": module.learning_rate(step - 1),
            "train_bits_per_base": bits_per_base(nll, counted),
            "gradient_norm": gradient_norm,
            "tokens_per_second": tokens_per_second,
            "peak_fraction": self._peak_fraction(trainer, module, tokens_per_second, taken.length),
            "data_wait_fraction": min(taken.wait / elapsed, 1.0) if elapsed else None,
            "peak_memory_gib": peak_memory_gib(module.device),
        }
        improved, validated_in = False, None
        if validate:
            data: PretrainData = trainer.datamodule  # type: ignore[attr-defined]
            module.eval()
            with module.weights.gathered(module.model):
                scores = evaluate(
                    module.model,
                    data.validation_windows(),
                    chunk=self.validation_chunk,
                    context=trainer.precision_plugin.val_step_context,
                    sum_over_ranks=module.sum_over_ranks,
                )
            module.train()
            overall = scores.classes[0]
            bits = overall.bits_per_base
            self.bits_by_genome = {each.name: each.bits_per_base for each in scores.classes if each.group == "genome"}
            if trainer.is_global_zero:
                self.folder.write_validation(score.row(step) for score in scores.classes)
                self._window_table = self._window_table or WindowTable(data.validation)
                self.folder.write_windows(self._window_table.rows(scores.windows, step))
            improved = bits < self.best_bits_per_base
            self.validations_since_best = 0 if improved else self.validations_since_best + 1
            self.validation_bits_per_base = bits
            if improved:
                self.best_bits_per_base, self.best_step = bits, step
            row |= {"validation_bits_per_base": bits, "validation_perplexity": overall.perplexity}
            validated_in = time.perf_counter() - now
        if trainer.is_global_zero:
            self.folder.add_metrics(row)
            numbers = {name: value for name, value in row.items() if name != "step" and value is not None}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=step)
        self._progress.update(step, row, self.validation_bits_per_base, validated_in)
        if validate:
            self._mark = time.perf_counter()
            if self.keeper.saved_step != step:
                self._save(trainer, module, step, best=improved)

    def _peak_fraction(
        self, trainer: L.Trainer, module: PretrainModule, tokens_per_second: float | None, length: int
    ) -> float | None:
        peak = peak_bf16_flops(module.device) if trainer.precision == "bf16-mixed" else None
        if peak is None or tokens_per_second is None:
            return None
        flops = training_flops_per_token(module.model, length)
        return tokens_per_second * flops / (peak * trainer.world_size)

    def _save(self, trainer: L.Trainer, module: PretrainModule, step: int, best: bool) -> None:
        bits = self.validation_bits_per_base
        metrics = {"validation_bits_per_base": None if math.isnan(bits) else bits}
        self.keeper.save(trainer, module, step, self.bases_read, metrics, best)
        self._last_save = time.perf_counter()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
        if hasattr(self, "_progress"):
            self._progress.close()
