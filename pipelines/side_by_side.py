"""Models that people have on mamba-ssm's kernels, and the same weights here, in one run on one GPU.

    python pipelines/side_by_side.py [--systems caduceus-ps …] [--out side_by_side.csv]

Needs mamba-ssm and causal-conv1d. Caduceus (`peers.py`) has the shape of the released 131k models, 16 layers of width
256, and is a folder of random weights, which both read; Mamba-2 and Mamba have 8 layers of width 128. First both
models' logits and gradients are compared in fp32: nothing is timed of one that differs. bf16 autocast, fused AdamW,
inputs of exactly L tokens; medians of CUDA-event timings; the peak is that of a training step. Our blocks of Mamba
train with `--recompute cheap`, as mamba-ssm's compute their convolution and step again in the backward pass. "As
graphs": the passes are recorded once and replayed.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from measured import conditions, write_rows
from torch import Tensor
from training_step import median_seconds

from dnamamba.alphabet import BASES, MASK
from dnamamba.inference.graphs import record
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

TOLERANCE = 2e-2
"""Of fp32 logits, relative to the largest one, and of the norm of the gradients' difference, relative to their norm.
Mamba-2's kernels multiply fp32 as TF32; the others are much nearer."""
CHECKED = 2, 2_048
"""Batch and length at which they are compared"""
IGNORED = -100


class Side(NamedTuple):
    """A model, the peer's or ours, and how it is used."""

    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    """Our tokens (batch, length) uint8 → (batch, length, its rows)"""
    rows: Tensor
    """(4,): which of these are A, C, G and T, in its embedding too"""
    table: Tensor
    """That embedding's weights"""
    loss: Callable[[Tensor, Tensor], Tensor]
    """() of inputs and targets (batch, length)"""


class Row(NamedTuple):
    system: str
    batch: int
    length: int


ROWS = (
    Row("caduceus-ps", 1, 131_072),
    Row("caduceus-ps", 8, 8_192),
    Row("caduceus-ph", 1, 131_072),
    Row("caduceus-ph", 8, 8_192),
    Row("mamba2-16", 8, 32_768),
    Row("mamba2-16", 1, 1_048_576),
    Row("mamba2-128", 8, 32_768),
    Row("mamba2-128", 1, 1_048_576),
    Row("mamba", 8, 32_768),
)


def make(system: str, folder: Path) -> tuple[Side, Side]:
    """Ours and the peer's, with the same random weights."""
    torch.manual_seed(0)
    if system.startswith("caduceus"):
        return caduceus(system == "caduceus-ps", folder, "cuda")
    from mamba_ssm import Mamba, Mamba2

    if system == "mamba":
        return causal([Mamba(128) for _ in range(8)], ModelConfig(d_model=128, n_layer=8), "cuda")
    state = int(system.removeprefix("mamba2-"))
    mixers = [Mamba2(128, d_state=state, headdim=64) for _ in range(8)]
    return causal(mixers, ModelConfig(d_model=128, n_layer=8, mixer="mamba2", d_state=state), "cuda")


def caduceus(rcps: bool, folder: Path, device: str, **sizes: int) -> tuple[Side, Side]:
    from peers import BASE_IDS, MASK_ID, Caduceus

    peer = Caduceus(rcps=rcps, **sizes).to(device)
    ids = torch.zeros(256, dtype=torch.int64, device=device)
    ids[:BASES] = rows = torch.tensor(BASE_IDS, device=device)
    ids[MASK] = MASK_ID
    return our_side(peer.ours(folder, device)), peer_side(peer, lambda tokens: peer(ids[tokens.long()]), rows)


def causal(mixers: list[nn.Module], config: ModelConfig, device: str) -> tuple[Side, Side]:
    """Ours takes the weights by their names, which are mamba-ssm's."""
    from peers import MambaLM

    peer, model = MambaLM(config.d_model, mixers).to(device), LanguageModel(config).to(device)
    model.load_state_dict(peer.state_dict())
    rows = torch.arange(BASES, device=device)
    return our_side(model), peer_side(peer, lambda tokens: peer(tokens.long()), rows)


def our_side(model: LanguageModel) -> Side:
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        sums = model.loss(inputs, targets)
        return sums.nll_sum / sums.counted

    model.backbone.recompute = "cheap"
    table = model.backbone.embedding.weight
    return Side(model, lambda tokens: model(tokens).logits, torch.arange(BASES, device=table.device), table, loss)


def peer_side(model: nn.Module, logits: Callable[[Tensor], Tensor], rows: Tensor) -> Side:
    """Its loss is the cross entropy over all rows of its vocabulary, as its users train it."""
    labels = torch.full((256,), IGNORED, device=rows.device)
    labels[:BASES] = rows

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        wanted = labels[targets.long()].flatten()
        return F.cross_entropy(logits(inputs).float().flatten(0, 1), wanted, ignore_index=IGNORED)

    table = next(value for name, value in model.named_parameters() if "embedding" in name)
    return Side(model, logits, rows, table, loss)


def batch_of(model: LanguageModel, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (batch, length) uint8 by our model's objective."""
    tokens = torch.randint(0, BASES, (batch, length + 1), dtype=torch.uint8, device=model.lm_head.weight.device)
    prepared = model.objective.prepare_batch(tokens, training=True)
    return prepared.inputs.contiguous(), prepared.targets.contiguous()


def check(ours: Side, peer: Side, batch: int = CHECKED[0], length: int = CHECKED[1]) -> tuple[float, float]:
    """Differences, in fp32, of the bases' logits and of the embedding's gradients, to which all layers contribute."""
    inputs, targets = batch_of(ours.model, batch, length)
    counted = targets < BASES
    found = []
    for side in (ours, peer):
        logits = side.logits(inputs)[..., side.rows].float()
        loss = F.cross_entropy(logits[counted], targets[counted].long())
        found.append((logits.detach(), torch.autograd.grad(loss, side.table)[0][side.rows]))
    (logits, gradients), (their_logits, their_gradients) = found
    return (
        ((logits - their_logits).abs().max() / their_logits.abs().max()).item(),
        ((gradients - their_gradients).norm() / their_gradients.norm()).item(),
    )


def measure(side: Side, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Mtoken/s of a forward pass and of a training step, the step's peak in GiB, and Mtoken/s of both once their
    passes are recorded as CUDA graphs: the GPU's work without Python's."""
    parameters = list(side.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    million = inputs.numel() / 1e6

    def rate(function: Callable[[], None]) -> float:
        return million / median_seconds(function, 5)[0]

    # Casts of weights are cached within a pass, but not in a recording, which would keep them as they were.
    def forward(cached: bool = True) -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, cache_enabled=cached):
            side.logits(inputs)

    def gradients(cached: bool = True) -> None:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=cached):
            loss = side.loss(inputs, targets)
        loss.backward()

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    result = {"forward": rate(forward)}
    step()
    torch.cuda.reset_peak_memory_stats()
    result["step"] = rate(step)
    result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    try:
        result["forward_graph"] = rate(record(lambda: forward(cached=False)))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        replay = record(lambda: gradients(cached=False))

        def recorded_step() -> None:
            optimizer.zero_grad(set_to_none=False)
            replay()
            optimizer.step()

        result["step_graph"] = rate(recorded_step)
    except RuntimeError as error:
        print(f"not recorded: {str(error).partition(chr(10))[0]}", flush=True)
    return result


def compare(row: Row, folder: Path) -> dict[str, Any]:
    """Both sides of a row, one after the other, each alone on the GPU."""
    result: dict[str, Any] = row._asdict()
    for index, name in enumerate(("ours", "peer")):
        sides = make(row.system, folder)
        inputs, targets = batch_of(sides[0].model, row.batch, row.length)
        side = sides[index]
        del sides
        gc.collect()
        torch.cuda.empty_cache()
        try:
            found = measure(side, inputs, targets)
            result |= {f"{name}_{key}": value for key, value in found.items()}
        except torch.cuda.OutOfMemoryError:
            print(f"{row.system} {row.batch} x {row.length}: {name} is out of memory", flush=True)
        del side, inputs, targets
    return result


COLUMNS = (
    "system", "batch", "length", "logits_error", "gradients_error", "ours_forward", "peer_forward", "forward_ratio",
    "ours_step", "peer_step", "step_ratio", "ours_peak_gib", "peer_peak_gib",
    "ours_forward_graph", "peer_forward_graph", "ours_step_graph", "peer_step_graph",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=sorted({row.system for row in ROWS}), help="only these")
    parser.add_argument("--out", type=Path, help="CSV file to write, after each row")
    arguments = parser.parse_args()
    try:
        import peers  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"needs mamba-ssm and causal-conv1d for torch {torch.__version__}: {error}") from error
    where = conditions()
    print(", ".join(where.values()))
    results: list[dict[str, Any]] = []
    errors: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            if arguments.systems and row.system not in arguments.systems:
                continue
            if row.system not in errors:
                errors[row.system] = check(*make(row.system, Path(folder)))
                print(f"{row.system}: fp32 logits %.1e, gradients %.1e" % errors[row.system], flush=True)
            if not max(errors[row.system]) <= TOLERANCE:
                continue
            result = dict.fromkeys(COLUMNS, float("nan")) | compare(row, Path(folder))
            result["logits_error"], result["gradients_error"] = errors[row.system]
            for kind in ("forward", "step"):
                result[f"{kind}_ratio"] = result[f"ours_{kind}"] / result[f"peer_{kind}"]
            results.append(result | where)
            print(
                "{system:12} {batch} x {length:9,d}"
                "  forward {ours_forward:6.2f} against {peer_forward:6.2f} Mtoken/s, {forward_ratio:.2f}x;"
                "  step {ours_step:5.2f} against {peer_step:5.2f}, {step_ratio:.2f}x;"
                "  peak {ours_peak_gib:.1f} and {peer_peak_gib:.1f} GiB;"
                "  as graphs {ours_forward_graph:.2f} against {peer_forward_graph:.2f},"
                " {ours_step_graph:.2f} against {peer_step_graph:.2f}".format(**result),
                flush=True,
            )
            if arguments.out:
                write_rows(results, arguments.out)
    if wrong := [system for system, found in errors.items() if not max(found) <= TOLERANCE]:
        raise SystemExit(f"not the same models, not timed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
