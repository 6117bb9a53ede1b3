"""How long a run will take, and how much memory, from a few passes of the model as it will run.

On a CPU a run may take days where nobody expects it: `advice` says so, and which flags make a run of ten minutes.
"""

import time
from dataclasses import replace
from typing import NamedTuple, get_args

import torch

from dnamamba.alphabet import BASES
from dnamamba.inference.device import torch_device
from dnamamba.model.chunked_backward import bytes_on_device
from dnamamba.model.config import Recompute, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import training_flops_per_token
from dnamamba.parallel.gradients import Gradients
from dnamamba.runs.progress import clock, si
from dnamamba.training.backprop.captured import Captured
from dnamamba.training.backprop.choose import WindowGradient, window_gradient
from dnamamba.training.backprop.whole import whole
from dnamamba.training.data import FixedWindows, WindowBatch
from dnamamba.training.loss_weights import LossWeights
from dnamamba.training.prepare import Prepared
from dnamamba.training.resolve import (
    ON_CPU,
    validation_count,
    validation_windows_per_pass,
    why_no_graph,
    windows_per_pass,
)
from dnamamba.training.settings import ResolvedPretrainSettings
from dnamamba.training.throughput import peak_memory_gib
from dnamamba.training.validation import evaluate
from dnamamba.training.window_parts import WindowParts

SHORT, LONG = 600.0, 3600.0
"""Seconds of the run that `advice` proposes, and of one that it is given for"""
FEW_BASES = 2_000_000
"""A run on fewer shows nothing: a smaller model is proposed"""
MEASURED_CHUNKS = 3
SLOW = 10.0
"""Seconds of a pass that is not run again: compiling kernels is no great part of it"""
WORTH_MEASURING = 1e13
"""Floating-point operations, four times the demo's: minutes on two cores. A shorter run just starts."""


class Estimate(NamedTuple):
    """What a run will take."""

    step: float
    """Seconds of an optimiser step"""
    validation: float
    """Seconds of one validation"""
    steps: int
    validations: int
    bases_per_second: float
    memory: str

    @property
    def seconds(self) -> float:
        """Of the whole run, without the Markov models"""
        return self.step * self.steps + self.validation * self.validations

    def __str__(self) -> str:
        validating = clock(self.validation * self.validations)
        return (
            f"{self.step:.3g} s a step, {si(self.bases_per_second)}bases/s, {self.memory}, {validating} to validate, "
            f"{clock(self.seconds)} in all"
        )


def estimate(settings: ResolvedPretrainSettings, model: LanguageModel, prepared: Prepared) -> Estimate:
    """From a few training passes, as the run makes them, and a validation of as many windows. The model and all random
    numbers stay as they are. Of windows that go through in chunks a few chunks are trained on, which take as long each
    as those of a whole one.

    The memory is that of these passes, measured, plus AdamW's two moments of each parameter; on a CPU it is all that
    the process held, libraries and the parts of the genome that were read included.
    """
    device = torch_device(settings.accelerator)
    model.to(device)
    windows = _windows(settings)
    length = _measured_length(settings)
    captured = None if why_no_graph(settings) else Captured(whole)
    gradient = window_gradient(_of_one_device(settings), _weights(settings), captured or whole)
    seconds = _training_pass(model, windows, length, device, settings.precision, gradient)
    if captured is not None:
        captured.free()
    step = seconds * settings.batch_tokens / (windows * length) / settings.devices
    sample = prepared.data.validation[0]
    at_once = validation_windows_per_pass(settings)
    few = sample._replace(indices=sample.indices[:at_once])
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        evaluate(model.eval(), [FixedWindows(few, at_once, 0, 1)], chunk=settings.chunk)
    validation = time.perf_counter() - began
    model.train()
    all_windows = sum(len(each.indices) for each in prepared.data.validation)
    gib = peak_memory_gib(device) + _moments_gib(model) + _borders_gib(settings, model)
    memory = f"{gib:.1f} GiB a {'device' if device.type == 'cuda' else 'process'}"
    return Estimate(
        step,
        validation * all_windows / max(len(few.indices), 1) / settings.devices,
        settings.max_steps,
        validation_count(settings),
        settings.batch_tokens / step,
        memory,
    )


def memory_of_each(settings: ResolvedPretrainSettings, model: LanguageModel) -> str:
    """For people: the peak of a step's memory under each `--recompute`, measured in training passes, with AdamW's
    moments: "none 64.4, cheap 30.4, all 13.1 GiB a device; this run takes cheap". Nothing on a CPU, where a process
    only ever grows."""
    device = torch_device(settings.accelerator)
    if device.type != "cuda":
        return ""
    model.to(device)
    chosen, found, alone = model.backbone.recompute, [], _of_one_device(settings)
    for recompute in get_args(Recompute):
        model.backbone.recompute = recompute
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            windows, length = _windows(settings), _measured_length(settings)
            gradient = window_gradient(alone, _weights(settings))
            _training_pass(model, windows, length, device, settings.precision, gradient)
            gib = peak_memory_gib(device) + _moments_gib(model) + _borders_gib(settings, model)
            found.append(f"{recompute} {gib:.1f}")
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            found.append(f"{recompute} more than there is")
    model.backbone.recompute = chosen
    return f"{', '.join(found)} GiB a device; this run takes {chosen}"


def _windows(settings: ResolvedPretrainSettings) -> int:
    """Windows of the full length in one training pass on one device, or on those that share them."""
    rows = settings.devices // settings.context_parallel
    return min(windows_per_pass(settings), settings.batch_tokens // settings.length // rows)


def _of_one_device(settings: ResolvedPretrainSettings) -> ResolvedPretrainSettings:
    """With the part of a chunk that one device has, where several share it."""
    return replace(settings, chunk=settings.chunk and settings.chunk // settings.context_parallel, context_parallel=1)


def _measured_length(settings: ResolvedPretrainSettings) -> int:
    """Bases of each window in a pass that is measured, a device's share: a few chunks of it where it goes through in
    chunks."""
    return min(settings.length, MEASURED_CHUNKS * (settings.chunk or settings.length)) // settings.context_parallel


def _borders_gib(settings: ResolvedPretrainSettings, model: LanguageModel) -> float:
    """Of the states between those chunks that a pass which is measured leaves out."""
    if settings.backprop != "chunked":
        return 0.0
    length = _measured_length(settings)
    borders = -(-(settings.length - length * settings.context_parallel) // (settings.chunk or settings.length))
    return bytes_on_device(borders, model.init_state(_windows(settings))) / 2**30


def _weights(settings: ResolvedPretrainSettings) -> LossWeights:
    """Random windows have no regions."""
    return LossWeights(settings.soft_mask_weight)


def _moments_gib(model: LanguageModel) -> float:
    """AdamW's two moments of each parameter."""
    return 2 * sum(parameter.numel() * 4 for parameter in model.parameters()) / 2**30


def is_worth_measuring(settings: ResolvedPretrainSettings, model: LanguageModel) -> bool:
    """Whether a run is one on a CPU that takes minutes or more."""
    bases = settings.max_steps * settings.batch_tokens
    return settings.accelerator == "cpu" and training_flops_per_token(model, settings.length) * bases > WORTH_MEASURING


def advice(settings: ResolvedPretrainSettings, model: LanguageModel, expected: Estimate) -> str:
    """For a run of more than an hour on a CPU a line with the flags of one of ten minutes, else ""."""
    if settings.accelerator != "cpu" or expected.seconds < LONG:
        return ""
    length = min(ON_CPU.length, settings.length)
    batch_tokens = ON_CPU.batch_tokens // length * length
    model_flag, bases = "", 0.0
    for smaller in ("", "250k", "demo"):
        tried = LanguageModel(preset(smaller)) if smaller else model
        if smaller and training_flops_per_token(tried, length) >= training_flops_per_token(model, length):
            continue
        passed = window_gradient(replace(settings, backprop="whole", chunk=None), _weights(settings))
        seconds = _training_pass(tried, batch_tokens // length, length, torch.device("cpu"), settings.precision, passed)
        # A validation reads as many bases as are trained on between two, and forward alone is a third of a step.
        model_flag, bases = smaller and f"--model.preset {smaller} ", SHORT / (seconds / batch_tokens * 4 / 3)
        if bases >= FEW_BASES:
            break
    steps = max(int(bases / batch_tokens), ON_CPU.validations)
    flags = f"{model_flag}--length {length} --batch_tokens {batch_tokens} --max_steps {steps}"
    return f"this run takes about {_long(expected.seconds)} on this machine; for one of ten minutes: {flags}"


def _training_pass(
    model: LanguageModel,
    windows: int,
    length: int,
    device: torch.device,
    precision: str,
    gradient: WindowGradient,
) -> float:
    """Seconds of a forward and backward pass over random windows. Leaves no gradients."""
    own = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, BASES, (windows, length + 1), dtype=torch.uint8, generator=own)
    parts = WindowParts(WindowBatch(tokens, torch.zeros(windows, dtype=torch.bool)), model.objective, device)
    seconds, scale = 0.0, torch.ones((), device=device)
    Gradients(model.parameters()).zero()
    for _ in range(3 if device.type == "cuda" else 2):  # the first compiles kernels, the second may be recorded
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            gradient(model, parts, scale)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if seconds > SLOW:
            break
    model.zero_grad(set_to_none=True)
    return seconds


def _long(seconds: float) -> str:
    """`1.4 hours`, `53 hours`, `12 days`."""
    hours = seconds / 3600
    return f"{hours:.{int(hours < 10)}f} hours" if hours < 72 else f"{hours / 24:.0f} days"
