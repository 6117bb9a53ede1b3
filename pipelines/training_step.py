"""Times whole training steps of a Mamba language model on one GPU, next to mamba-ssm's rates.

    python pipelines/training_step.py [--recompute none cheap all] [--d_model 128 256] [--lengths 1048576]
        [--backend auto|triton|cuda] [--out training_step.csv] [--profile] [--graph]
    python pipelines/training_step.py --pretrain GENOME [--out pretrain_step.csv]

8 layers, expand 2, 16 states, convolution of 4, vocabulary of 16, bf16 autocast, fused AdamW, inputs of exactly L
tokens: the loop that mamba-ssm 2.3.2 was measured with on an H100 80GB HBM3 (PyTorch 2.11.0+cu130, November 2026).
Medians of CUDA-event timings. "host" is the part of a time in which Python queues the work: where it is nearly the
whole, the GPU waits. --graph times the forward pass as a captured CUDA graph, too: the GPU's work alone. Each row is
run with each --recompute of pretraining (what the backward pass computes again rather than keeps), and "gpu" is what a
profile of one step adds up to.

--pretrain times `python -m dnamamba.pretrain` itself on a genome, with and without --cuda_graph: Mtoken/s of its
metrics.csv, and, by torch's profiler over 30 steps, the share of the time in which no kernel ran.
"""

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
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


def measure(row: Row, recompute: Recompute, profiled: bool, graph: bool) -> Result:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(d_model=row.d_model, n_layer=8)).cuda()
    model.backbone.recompute = recompute
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True)
    tokens = torch.randint(0, 4, (row.batch, row.length + 1), dtype=torch.uint8, device="cuda")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(inputs, targets)
        (loss.nll_sum / loss.counted).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward() -> None:
        # A captured cast of a weight must not be taken from a cache that ends with the capture.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=not torch.cuda.is_current_stream_capturing()):
            model.loss(inputs, targets)

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
    million = row.batch * row.length / 1e6
    return {
        "d_model": row.d_model,
        "batch": row.batch,
        "length": row.length,
        "recompute": recompute,
        "mtoken_per_s": million / seconds,
        "ratio": million / seconds / row.peer_step,
        "forward_mtoken_per_s": million / forward_seconds,
        "forward_ratio": million / forward_seconds / row.peer_forward,
        "forward_graph_mtoken_per_s": million / captured,
        "step_ms": seconds * 1e3,
        "step_host_ms": host * 1e3,
        "step_gpu_ms": gpu * 1e3,
        "forward_ms": forward_seconds * 1e3,
        "forward_host_ms": forward_host * 1e3,
        "peak_gib": peak,
        "peer_peak_gib": row.peer_peak,
    }


class PretrainRow(NamedTuple):
    d_model: int
    windows: int
    length: int


PRETRAIN_ROWS = (
    PretrainRow(64, 256, 1_024),
    PretrainRow(128, 256, 1_024),
    PretrainRow(128, 8, 32_768),
    PretrainRow(256, 8, 32_768),
)
EVERY, ROWS_KEPT, TRACED = 25, 3, 30
"""Steps a row of metrics.csv; the rows whose median is taken; the steps that are traced after them"""


def pretrain_name(row: PretrainRow, cuda_graph: str) -> str:
    return f"{row.d_model}-{row.windows}x{row.length}-{cuda_graph}"


def pretrain_job(row: PretrainRow, cuda_graph: str, genome: Path, folder: Path) -> dict[str, Any]:
    """For `observed_training.py`."""
    name, steps = pretrain_name(row, cuda_graph), EVERY * (1 + ROWS_KEPT) + TRACED + 1
    settings = {
        "genome": [str(genome)],
        "store": str(folder / "genome.dnamamba"),
        "out": str(folder / name),
        "model": {"preset": "7m", "n_layer": 8, "d_model": row.d_model},
        "length": row.length,
        "batch_tokens": row.windows * row.length,
        "micro_tokens": row.windows * row.length,
        "max_steps": steps,
        "log_every": EVERY,
        "validation_every": steps,
        "validation_tokens": row.length,
        "markov_order": 0,
        "accelerator": "gpu",
        "precision": "bf16",
        "cuda_graph": cuda_graph,
    }
    return {"settings": settings, "trace": [steps - TRACED - 1, TRACED, str(folder / f"{name}.json")]}


def pretrain_result(row: PretrainRow, cuda_graph: str, folder: Path) -> Result:
    """Of what the job has written. The first row of metrics.csv, in which kernels are compiled, does not count."""
    name = pretrain_name(row, cuda_graph)
    with (folder / name / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))[1 : 1 + ROWS_KEPT]
    idle = json.loads((folder / f"{name}.json").read_text())
    return {
        **row._asdict(),
        "cuda_graph": cuda_graph,
        "mtoken_per_s": statistics.median(float(each["tokens_per_second"]) for each in rows) / 1e6,
        "data_wait_fraction": statistics.median(float(each["data_wait_fraction"]) for each in rows),
        "peak_gib": float(rows[-1]["peak_memory_gib"]),
        "traced_mtoken_per_s": TRACED * row.windows * row.length / idle["seconds"] / 1e6,
        "idle_fraction": idle["idle"],
        "waiting_fraction": idle["waits"],
        "kernels_a_step": idle["kernels"] / TRACED,
    }


def pretrain_results(genome: Path) -> list[Result]:
    """All runs one after the other in one process, which makes the token store once."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [(row, cuda_graph) for row in PRETRAIN_ROWS for cuda_graph in ("on", "off")]
        jobs = [pretrain_job(row, cuda_graph, genome.absolute(), folder) for row, cuda_graph in runs]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        worker = Path(__file__).parent / "observed_training.py"
        subprocess.run([sys.executable, str(worker), str(folder / "jobs.json")], check=True)
        for row, cuda_graph in runs:
            results.append(result := pretrain_result(row, cuda_graph, folder))
            print(
                f"d_model {row.d_model:4d}  {row.windows:4d} x {row.length:7,d}  graph {cuda_graph:3s}"
                f"  {result['mtoken_per_s']:6.2f} Mtoken/s  peak {result['peak_gib']:5.1f} GiB"
                f"  idle {result['idle_fraction']:5.1%}, in gaps over 10 us {result['waiting_fraction']:5.1%},"
                f" of {result['kernels_a_step']:.0f} kernels a step; traced {result['traced_mtoken_per_s']:6.2f}"
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="of the scan: auto, triton or cuda")
    parser.add_argument("--out", help="CSV file to write")
    parser.add_argument("--profile", action="store_true", help="print the kernels' shares of each step")
    parser.add_argument("--graph", action="store_true", help="time the forward pass as a CUDA graph, too")
    parser.add_argument("--lengths", type=int, nargs="+", help="only rows of these lengths")
    parser.add_argument("--d_model", type=int, nargs="+", help="only rows of these widths")
    parser.add_argument("--recompute", nargs="+", choices=get_args(Recompute), default=["cheap"])
    parser.add_argument("--pretrain", type=Path, help="time whole pretraining runs on this genome instead")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {backends.describe('cuda')}", flush=True)
    results = pretrain_results(arguments.pretrain) if arguments.pretrain else step_results(arguments)
    if arguments.out:
        with open(arguments.out, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(results[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(results)


def step_results(arguments: argparse.Namespace) -> list[Result]:
    results = []
    with backends.preferred("scan", arguments.backend):
        for row, recompute in itertools.product(ROWS, arguments.recompute):
            if row.length not in (arguments.lengths or [row.length]):
                continue
            if row.d_model not in (arguments.d_model or [row.d_model]):
                continue
            began = time.perf_counter()
            result = measure(row, recompute, arguments.profile, arguments.graph)
            results.append(result)
            print(
                f"d_model {row.d_model:4d}  {row.batch:4d} x {row.length:9,d}  {recompute:5s}"
                f"  step {result['mtoken_per_s']:6.2f} Mtoken/s"
                f" ({result['ratio']:4.2f}x mamba-ssm)  forward {result['forward_mtoken_per_s']:6.1f}"
                f" ({result['forward_ratio']:4.2f}x), as a graph {result['forward_graph_mtoken_per_s']:5.1f}"
                f"  host {result['step_host_ms']:3.0f}/{result['step_ms']:4.0f} (gpu {result['step_gpu_ms']:4.0f})"
                f" {result['forward_host_ms']:3.0f}/{result['forward_ms']:3.0f} ms"
                f"  peak {result['peak_gib']:5.1f} GiB ({row.peer_peak})"
                f"  [{time.perf_counter() - began:.0f} s]",
                flush=True,
            )
            torch.cuda.empty_cache()
    return results


if __name__ == "__main__":
    main()
