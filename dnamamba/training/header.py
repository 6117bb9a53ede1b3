"""What a run says of itself before it starts: everything that its numbers will depend on."""

import torch

from dnamamba.genome.contigs import find_duplicates
from dnamamba.model.config import ModelConfig
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.language_model import MambaLM
from dnamamba.model.parameters import parameter_count
from dnamamba.training.prepare import Prepared
from dnamamba.training.progress import si
from dnamamba.training.resolve import warmup_lengths, windows_per_step
from dnamamba.training.settings import RunSettings


def print_header(settings: RunSettings, config: ModelConfig, model: MambaLM, prepared: Prepared) -> None:
    """One labelled line each: genome, contigs, splits, windows, model, device and kernels, steps, run folder."""
    data, contigs = prepared.data, prepared.contigs
    train = data.stages[-1].plan
    device = torch.device("cuda" if settings.accelerator == "gpu" else "cpu")
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        ("genome", ", ".join(map(str, settings.genome or [])) or "E. coli K-12 (bundled demo)"),
        ("contigs", f"{len(contigs.chosen)}, {_content(prepared)}"),
        ("left out", contigs.summary()),
        *(("duplicate", f"{d.kind}: {d.first} = {d.second}") for d in find_duplicates(prepared.store, contigs.chosen)),
        ("splits", _splits(prepared)),
        (
            "windows",
            f"{train.epoch_size(0):,} of {settings.length:,} bases an epoch ({train.skipped(0):,} skipped for N), "
            f"{len(data.validation_indices):,} to validate on",
        ),
        (
            "model",
            f"{settings.model.preset}: {config.n_layer} blocks x {config.d_model}, "
            f"{parameter_count(model):,} parameters",
        ),
        ("device", f"{settings.devices} x {device_name}, {settings.precision}"),
        ("kernels", describe_kernels(device)),
        ("steps", f"{settings.max_steps:,} of {windows_per_step(settings)} windows = {settings.batch_tokens:,} bases"),
        ("lengths", ", ".join(f"{length:,} from step {first + 1:,}" for first, length in warmup_lengths(settings))),
        ("run folder", str(settings.out)),
    ]
    for label, text in lines:
        if text:
            print(f"{label:>10}  {text}")


def _content(prepared: Prepared) -> str:
    chosen = prepared.contigs.chosen
    bases = sum(contig.length for contig in chosen)
    parts = [f"{si(bases)}b"]
    for name, count in (
        ("N", sum(contig.n_count for contig in chosen)),
        ("soft-masked", sum(contig.soft_masked for contig in chosen)),
    ):
        parts.append(f"{count / bases:.1%} {name}")
    if ambiguous := sum(contig.ambiguous for contig in chosen):
        parts.append(f"{ambiguous:,} ambiguous codes read as N")
    return ", ".join(parts)


def _splits(prepared: Prepared) -> str:
    parts = []
    for name in ("train", "validation", "test"):
        intervals = getattr(prepared.splits, name)
        parts.append(f"{name} {si(sum(i.length for i in intervals))}b in {len(intervals)}")
    return ", ".join(parts + [f"{name} {si(count)}b" for name, count in prepared.splits.left_out.items() if count])
