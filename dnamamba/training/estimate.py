"""How long a run will take, and how much memory, from two passes of the model as it will run."""

import time

import torch

from dnamamba.alphabet import BASES
from dnamamba.model.language_model import LanguageModel
from dnamamba.runs.progress import clock, si
from dnamamba.training.resolve import windows_per_pass
from dnamamba.training.settings import ResolvedPretrainSettings
from dnamamba.training.throughput import peak_memory_gib


def estimate(settings: ResolvedPretrainSettings, model: LanguageModel) -> str:
    """One line: seconds a step, the whole run, bases/s, and the peak memory. Leaves gradients in the model.

    The memory is that of these passes, measured, plus AdamW's two moments of each parameter; on a CPU it is all that
    the process held, libraries and the parts of the genome that were read included.
    """
    device = torch.device("cuda" if settings.accelerator == "gpu" else "cpu")
    model.to(device)
    windows = min(windows_per_pass(settings), settings.batch_tokens // settings.length // settings.devices)
    tokens = torch.randint(0, BASES, (windows, settings.length + 1), dtype=torch.uint8, device=device)
    batch = model.objective.prepare_batch(tokens)
    seconds = 0.0
    for _ in range(2):  # the first compiles kernels
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = model.loss(batch.inputs, batch.targets)
        loss.nll_sum.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    step = seconds * settings.batch_tokens / (windows * settings.length) / settings.devices
    optimizer_gib = 2 * sum(parameter.numel() * 4 for parameter in model.parameters()) / 2**30
    memory = f"{peak_memory_gib(device) + optimizer_gib:.1f} GiB a {'device' if device.type == 'cuda' else 'process'}"
    return (
        f"{step:.3g} s a step, {clock(step * settings.max_steps)} in all, {si(settings.batch_tokens / step)}bases/s, "
        f"{memory}"
    )
