"""Times whole training steps of a Mamba language model on one GPU, next to mamba-ssm's rates.

    python pipelines/training_step.py [--recompute none cheap all] [--d_model 128 256] [--lengths 1048576]
        [--backend auto|triton|cuda] [--out training_step.csv] [--profile] [--graph] [--peer]

8 layers, expand 2, 16 states, convolution of 4, vocabulary of 16, bf16 autocast, fused AdamW, inputs of exactly L
tokens: the loop that mamba-ssm 2.3.2 was measured with on an H100 80GB HBM3 (PyTorch 2.11.0+cu130, November 2026).
Medians of CUDA-event timings. "host" is the part of a time in which Python queues the work: where it is nearly the
whole, the GPU waits. --graph times the forward pass as a captured CUDA graph, too: the GPU's work alone. Each row is
run with each --recompute of pretraining (what the backward pass computes again rather than keeps), and "gpu" is what a
profile of one step adds up to. --peer times mamba-ssm in the same loop and process, where it can be imported, in place
of those older rates. `pretrain_step.py` times `python -m dnamamba.pretrain` itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F
from measured import conditions, write_rows
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dnamamba.inference.graphs import record
from dnamamba.model.config import ModelConfig, Recompute
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_groups
from dnamamba_kernels import backends


class Row(NamedTuple):
    d_model: int
    batch: int
    length: int
    peer_step: float
    """mamba-ssm, Mtoken/s, whole step; NaN where it runs out of memory"""
    peer_forward: float
    peer_peak: float
    """GiB"""


Result = dict[str, float | int | str]
NAN = float("nan")
ROWS = (
    Row(64, 256, 1_024, NAN, NAN, NAN),
    Row(128, 256, 1_024, 2.83, 17.9, 6.4),
    Row(128, 8, 32_768, 3.19, 15.3, 6.4),
    Row(128, 2, 131_072, 2.66, 14.6, 6.4),
    Row(128, 1, 1_048_576, 2.55, 9.4, 24.6),
    Row(256, 256, 1_024, 1.47, 9.5, 12.2),
    Row(256, 8, 32_768, 1.72, 8.0, 12.2),
    Row(256, 2, 131_072, 1.62, 7.7, 12.2),
    Row(256, 1, 1_048_576, 1.35, 7.6, 47.6),
    Row(512, 8, 32_768, 0.90, 3.9, 23.8),
    Row(512, 1, 262_144, 0.83, 3.7, 23.8),
    Row(512, 1, 1_048_576, NAN, NAN, NAN),
)


def median_seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of a call, and those that the host takes to queue its work."""
    function()
    times, host = [], []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began = time.perf_counter()
        start.record()
        function()
        end.record()
        host.append(time.perf_counter() - began)
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times), statistics.median(host)


def graph_seconds(function: Callable[[], None], repeats: int) -> float:
    """Seconds of a call that is captured once and replayed."""
    function()
    torch.cuda.synchronize()
    return median_seconds(record(function), repeats)[0]


class Times(NamedTuple):
    """Of one model; seconds, and GiB."""

    step: float
    step_host: float
    step_gpu: float
    forward: float
    forward_host: float
    captured: float
    peak: float


Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, inputs, targets (batch, length) uint8) → the mean (), in nats"""


def our_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    assert isinstance(model, LanguageModel)
    loss = model.loss(inputs, targets)
    return loss.nll_sum / loss.counted


def peer_model(d_model: int) -> nn.Module:
    """A language model of mamba-ssm's blocks. Raises `ImportError` where it is not there."""
    from mamba_ssm import Mamba
    from peers import MambaLM

    return MambaLM(d_model, [Mamba(d_model) for _ in range(8)])


def peer_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = model(inputs.int())
    return F.cross_entropy(logits.float().flatten(0, 1), targets.long().flatten())


def times_of(model: nn.Module, loss: Loss, row: Row, profiled: bool, graph: bool) -> Times:
    model.cuda()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True)
    tokens = torch.randint(0, 4, (row.batch, row.length + 1), dtype=torch.uint8, device="cuda")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            mean = loss(model, inputs, targets)
        mean.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward() -> None:
        # A captured cast of a weight must not be taken from a cache that ends with the capture.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not torch.cuda.is_current_stream_capturing()):
            loss(model, inputs, targets)

    step()
    torch.cuda.reset_peak_memory_stats()
    seconds, host = median_seconds(step, 5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    forward_seconds, forward_host = median_seconds(forward, 5)
    captured = graph_seconds(forward, 5) if graph else NAN
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    gpu = sum(each.self_device_time_total for each in trace.key_averages()) / 1e6
    if profiled:
        print(trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=16, max_name_column_width=60))
    return Times(seconds, host, gpu, forward_seconds, forward_host, captured, peak)


def with_peer(row: Row) -> Row:
    """mamba-ssm's figures in this process."""
    torch.manual_seed(0)
    million = row.batch * row.length / 1e6
    try:
        found = times_of(peer_model(row.d_model), peer_loss, row, profiled=False, graph=False)
    except torch.OutOfMemoryError:
        return row._replace(peer_step=NAN, peer_forward=NAN, peer_peak=NAN)
    return row._replace(peer_step=million / found.step, peer_forward=million / found.forward, peer_peak=found.peak)


def measure(row: Row, recompute: Recompute, profiled: bool, graph: bool) -> Result:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=row.d_model, n_layer=8))
    model.backbone.recompute = recompute
    found = times_of(model, our_loss, row, profiled, graph)
    million = row.batch * row.length / 1e6
    return {
        "d_model": row.d_model,
        "batch": row.batch,
        "length": row.length,
        "recompute": recompute,
        "mtoken_per_s": million / found.step,
        "peer_mtoken_per_s": row.peer_step,
        "ratio": million / found.step / row.peer_step,
        "forward_mtoken_per_s": million / found.forward,
        "peer_forward_mtoken_per_s": row.peer_forward,
        "forward_ratio": million / found.forward / row.peer_forward,
        "forward_graph_mtoken_per_s": million / found.captured,
        "step_ms": found.step * 1e3,
        "step_host_ms": found.step_host * 1e3,
        "step_gpu_ms": found.step_gpu * 1e3,
        "forward_ms": found.forward * 1e3,
        "forward_host_ms": found.forward_host * 1e3,
        "peak_gib": found.peak,
        "peer_peak_gib": row.peer_peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="of the scan: auto, triton or cuda")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    parser.add_argument("--profile", action="store_true", help="print the kernels' shares of each step")
    parser.add_argument("--graph", action="store_true", help="time the forward pass as a CUDA graph, too")
    parser.add_argument("--lengths", type=int, nargs="+", help="only rows of these lengths")
    parser.add_argument("--d_model", type=int, nargs="+", help="only rows of these widths")
    parser.add_argument("--recompute", nargs="+", choices=get_args(Recompute), default=["cheap"])
    parser.add_argument("--peer", action="store_true", help="time mamba-ssm, too")
    arguments = parser.parse_args()
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    results: list[dict[str, Any]] = []
    for result in step_results(arguments):
        results.append({**result, **where})
        if arguments.out:
            write_rows(results, arguments.out)


def step_results(arguments: argparse.Namespace) -> Iterator[Result]:
    rows = [
        row
        for row in ROWS
        if row.length in (arguments.lengths or [row.length]) and row.d_model in (arguments.d_model or [row.d_model])
    ]
    with backends.preferred("scan", arguments.backend):
        for row in rows:
            if arguments.peer:
                row = with_peer(row)
                torch.cuda.empty_cache()
            for recompute in arguments.recompute:
                began = time.perf_counter()
                result = measure(row, recompute, arguments.profile, arguments.graph)
                print(
                    f"d_model {row.d_model:4d}  {row.batch:4d} x {row.length:9,d}  {recompute:5s}"
                    f"  step {result['mtoken_per_s']:6.2f} Mtoken/s"
                    f" ({result['ratio']:4.2f}x mamba-ssm)  forward {result['forward_mtoken_per_s']:6.1f}"
                    f" ({result['forward_ratio']:4.2f}x), as a graph {result['forward_graph_mtoken_per_s']:5.1f}"
                    f"  host {result['step_host_ms']:3.0f}/{result['step_ms']:4.0f} (gpu {result['step_gpu_ms']:4.0f})"
                    f" {result['forward_host_ms']:3.0f}/{result['forward_ms']:3.0f} ms"
                    f"  peak {result['peak_gib']:5.1f} GiB ({row.peer_peak:.1f})"
                    f"  [{time.perf_counter() - began:.0f} s]",
                    flush=True,
                )
                torch.cuda.empty_cache()
                yield result


if __name__ == "__main__":
    main()
