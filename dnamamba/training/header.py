"""What a run says of itself before it starts: everything that its numbers will depend on."""

import numpy as np

from dnamamba.genome.contigs import find_duplicates
from dnamamba.genome.packing import PackedPlan
from dnamamba.genome.region_classes import UNCLASSED
from dnamamba.genome.windows import WindowPlan
from dnamamba.inference.device import device_name, torch_device
from dnamamba.model.chunked_backward import state_bytes
from dnamamba.model.config import ModelConfig
from dnamamba.model.kernels import describe_kernels
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_count
from dnamamba.model.settings import model_name
from dnamamba.runs.lines import print_lines
from dnamamba.runs.progress import si
from dnamamba.training.prepare import Prepared, PreparedGenome
from dnamamba.training.regions import WHOLE, RegionMixture
from dnamamba.training.resolve import (
    dense_steps,
    last_copies,
    warmup_lengths,
    why_no_graph,
    windows_per_step,
)
from dnamamba.training.settings import ResolvedPretrainSettings


def print_header(
    settings: ResolvedPretrainSettings, config: ModelConfig, model: LanguageModel, prepared: Prepared
) -> None:
    """One labelled line each: genome, contigs, splits, windows, model, device and kernels, steps, run folder."""
    device = torch_device(settings.accelerator)
    lines = [
        *(line for number in range(len(prepared.genomes)) for line in _genome_lines(settings, prepared, number)),
        (
            "model",
            f"{model_name(settings.model)}: {config.n_layer} blocks x {config.d_model}, "
            f"{parameter_count(model):,} parameters",
        ),
        ("device", f"{settings.devices} x {device_name(device)}, {settings.precision}"),
        ("parallel", _parallel(settings)),
        ("kernels", describe_kernels(device)),
        ("CUDA graph", _graph(settings)),
        ("gradients", _gradients(settings, model)),
        ("steps", f"{settings.max_steps:,} of {windows_per_step(settings)} windows = {settings.batch_tokens:,} bases"),
        ("lengths", ", ".join(f"{length:,} from step {first + 1:,}" for first, length in warmup_lengths(settings))),
        ("copies", _copies(settings)),
        ("weights", _weights(settings)),
        ("run folder", str(settings.out)),
    ]
    print_lines(lines)


def _parallel(settings: ResolvedPretrainSettings) -> str:
    ways = []
    if settings.is_sharded:
        ways.append("weights, gradients and moments in parts (FSDP2)")
    if settings.context_parallel > 1:
        ways.append(f"each window over {settings.context_parallel} devices")
    return ", ".join(ways)


def _copies(settings: ResolvedPretrainSettings) -> str:
    if not settings.copies:
        return ""
    until = dense_steps(settings)
    repeats = f"repeats all through the windows of the first {until:,} steps, then " if until else ""
    last = last_copies(settings)
    then = f", none from step {last + 1:,}" if last < settings.max_steps else ""
    return f"{repeats}here and there in {settings.copies:.0%} of the windows{then}"


def _graph(settings: ResolvedPretrainSettings) -> str:
    why_not = why_no_graph(settings)
    return f"none: {why_not}" if why_not else "each micro-batch is replayed"


def _gradients(settings: ResolvedPretrainSettings, model: LanguageModel) -> str:
    """Of windows in chunks; nothing of whole ones."""
    if settings.chunk is None:
        return ""
    count = -(-settings.length // settings.chunk)
    chunks = f"{count:,} chunks of {min(settings.chunk, settings.length):,} bases a window"
    if settings.backprop == "truncated":
        return f"truncated at the ends of {chunks}"
    return f"exact, from {chunks} and {si(state_bytes(model.init_state(1)) * (count - 1))}B of states between them"


def _genome_lines(settings: ResolvedPretrainSettings, prepared: Prepared, number: int) -> list[tuple[str, str]]:
    genome = prepared.genomes[number]
    contigs, train = genome.contigs, genome.train[-1]
    files = ", ".join(map(str, genome.settings.genome))
    if settings.mixture is not None:
        files = f"{genome.name}, {genome.weight / sum(g.weight for g in prepared.genomes):.1%} of the samples: {files}"
    elif settings.genome is None:
        files = "E. coli K-12 (bundled demo)"
    return [
        ("genome", files),
        ("contigs", f"{len(contigs.chosen)}, {_content(genome)}"),
        ("left out", contigs.summary()),
        *(("duplicate", f"{d.kind}: {d.first} = {d.second}") for d in find_duplicates(genome.store, contigs.chosen)),
        ("splits", _splits(genome)),
        *(("regions", line) for line in _regions(settings, prepared, genome)),
        ("annotation", "" if genome.annotation is None else genome.annotation.summary()),
        (
            "windows",
            f"{_windows(train, settings.length)} ({train.skipped(0):,} skipped for N), "
            f"{len(prepared.data.validation[number].indices):,} "
            f"{f'of {settings.validation_length:,} ' if settings.validation_length else ''}to validate on",
        ),
        ("short", _short(train)),
    ]


def _windows(train: WindowPlan | PackedPlan | RegionMixture, length: int) -> str:
    if isinstance(train, RegionMixture):
        return f"of {length:,} bases, drawn by class of region"
    return f"{train.epoch_size(0):,} of {length:,} bases an epoch"


def _weights(settings: ResolvedPretrainSettings) -> str:
    """Of bases in the loss, where they differ."""
    parts = list(settings.region_weights or [])
    parts += [] if settings.soft_mask_weight == 1 else [f"soft-masked={settings.soft_mask_weight:g}"]
    return f"of bases in the loss: {', '.join(parts)}, others 1" if parts else ""


def _regions(settings: ResolvedPretrainSettings, prepared: Prepared, genome: PreparedGenome) -> list[str]:
    """A line a class: how much of the training split it is, and how often the run will read it."""
    train = genome.train[-1]
    if not isinstance(train, RegionMixture) or genome.regions is None:
        return []
    starts = [genome.store.contig(interval.contig).offset + interval.start for interval in genome.splits.train]
    lengths = [interval.length for interval in genome.splits.train]
    split = np.sum([train.classes.bases(s, s + n) for s, n in zip(starts, lengths, strict=True)], axis=0)
    known = dict(zip((*train.classes.names, UNCLASSED), split.tolist(), strict=True))
    read, shares = train.content(settings.length), genome.regions.shares
    weight = genome.weight / sum(each.weight for each in prepared.genomes)
    samples = settings.max_steps * windows_per_step(settings) * weight
    lines = []
    for name in (*shares, *(name for name in known if name not in shares)):
        bases = int(split.sum()) if name == WHOLE else known[name]
        if not bases:
            continue
        part = f"{name}: {si(bases)}b, {bases / split.sum():.1%} of the training split"
        if name in shares:
            share, epoch = shares[name] / sum(shares.values()), train.plans[name].epoch_size(0)
            part += f"; drawn for {share:.1%} of the windows, {samples * share / epoch:.3g} epochs of {epoch:,}"
        lines.append(part if name == WHOLE else f"{part}; {read[name]:.1%} of the bases read")
    return lines


def _short(train: WindowPlan | PackedPlan | RegionMixture) -> str:
    """What becomes of the contigs and intervals that are shorter than a window."""
    if isinstance(train, RegionMixture):
        return ""
    if isinstance(train, PackedPlan):
        bases = sum(interval.length for interval in train.sequences)
        share = bases / (train.packed_windows * (train.length + 1)) if bases else 0.0
        return (
            f"{len(train.sequences):,} short sequences in {train.packed_windows:,} of these windows, {share:.0%} full"
        )
    return f"{si(train.short_bases)}b of the training split in none: --pack takes them in" if train.short_bases else ""


def _content(genome: PreparedGenome) -> str:
    chosen = genome.contigs.chosen
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


def _splits(genome: PreparedGenome) -> str:
    parts = []
    for name in ("train", "validation", "test"):
        intervals = getattr(genome.splits, name)
        parts.append(f"{name} {si(sum(i.length for i in intervals))}b in {len(intervals)}")
    return ", ".join(parts + [f"{name} {si(count)}b" for name, count in genome.splits.left_out.items() if count])
