"""Times whole training steps of every mixer's language model on one GPU, next to the rates of its peers.

    python pipelines/mixer_rates.py [--systems transformer mamba2 …] [--lengths 32768 …] [--out rates.csv] [--profile]
    python pipelines/mixer_rates.py --workflow pipelines/mixers.yaml --out rates.csv

bf16 autocast, fused AdamW, next-base loss, inputs of exactly L tokens. Each row is the loop that a peer was measured
with: Transformer++ (RoPE, PyTorch's flash attention, SwiGLU) on an H200, HyenaDNA and mamba-ssm's Mamba-2 on an H100
(PyTorch 2.11.0+cu130, November 2026). A ratio counts only on the same kind of GPU. Medians of CUDA-event timings;
"host" is the part of a step in which Python queues the work. First each model's loss and gradients in bf16 are compared
with those in fp32 at a shorter length: nothing is timed of a model that differs. --workflow times the models of a
workflow with `systems` instead, 262 144 bases a step of its length.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from measured import conditions, write_rows
from torch.profiler import ProfilerActivity, profile
from training_step import NAN, median_seconds

from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_groups

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 2e-3, 5e-2
"""Of bf16 against fp32: the loss in nats, and the relative norm of all gradients' difference."""
CHECKED = 2, 1_500
"""Batch and length at which they are compared."""
STEP_TOKENS = 262_144
"""Of a model of a workflow."""


class Row(NamedTuple):
    system: str
    options: dict[str, Any]
    """Of the model; d_model is 128 where it is not among them"""
    batch: int
    length: int
    peer: float = NAN
    """Mtoken/s of the peer's whole step"""
    peer_peak: float = NAN
    """GiB"""
    gpu: str = ""
    """On which the peer was measured"""
    compiled: bool = False


TRANSFORMER = {"mixer": "transformer", "n_layer": 16}
HYENA = {"mixer": "hyenadna", "n_layer": 16}
MAMBA2 = {"mixer": "mamba2", "n_layer": 8}
WIDE_STATE = {**MAMBA2, "d_state": 128}
ROWS = (
    Row("mamba2", MAMBA2, 8, 32_768, 3.80, NAN, "H100"),
    Row("mamba2", MAMBA2, 1, 1_048_576, 3.43, 26.7, "H100"),
    Row("mamba2-128", WIDE_STATE, 8, 32_768, 2.90, NAN, "H100"),
    Row("mamba2-128", WIDE_STATE, 1, 1_048_576, 2.66, 32.8, "H100"),
    Row("transformer", TRANSFORMER, 512, 512, 4.14, NAN, "H200"),
    Row("transformer", TRANSFORMER, 256, 1_024, 3.90, NAN, "H200"),
    Row("transformer", TRANSFORMER, 128, 2_048, 3.49, NAN, "H200"),
    Row("transformer", TRANSFORMER, 64, 4_096, 2.87, NAN, "H200"),
    Row("transformer", TRANSFORMER, 32, 8_192, 2.14, NAN, "H200"),
    Row("transformer", TRANSFORMER, 16, 16_384, 1.42, NAN, "H200"),
    Row("transformer", TRANSFORMER, 8, 32_768, 0.79, NAN, "H200"),
    Row("transformer", TRANSFORMER, 2, 131_072, 0.23, NAN, "H200"),
    Row("transformer", TRANSFORMER, 256, 1_024, 5.43, NAN, "H200", compiled=True),
    Row("transformer", TRANSFORMER, 32, 8_192, 2.49, NAN, "H200", compiled=True),
    Row("hyenadna", HYENA, 8, 32_768, 1.68, 17.8, "H100"),
    Row("hyenadna", HYENA, 1, 131_072, 1.31, 12.6, "H100"),
    Row("s4d", {"mixer": "s4d", "n_layer": 8}, 8, 32_768),
    Row("h3", {"mixer": "h3", "n_layer": 8}, 8, 32_768),
    Row("mamba", {"n_layer": 8}, 8, 32_768, 3.27, 6.1, "H200"),
)


def make_model(options: dict[str, Any], length: int) -> LanguageModel:
    torch.manual_seed(0)
    extra = {"filter_length": length} if options.get("mixer") == "hyenadna" else {}
    return LanguageModel(ModelConfig(**{"d_model": 128} | options | extra)).cuda()


def workflow_rows(workflow: Path) -> list[Row]:
    """A row for each of the workflow's systems."""
    config = yaml.safe_load(workflow.read_text("utf-8"))
    rows = []
    for name, own in config["systems"].items():
        flags = config["pretrain"] | own
        options = {key.removeprefix("model."): value for key, value in flags.items() if key.startswith("model.")}
        options |= {key: value == "true" for key, value in options.items() if value in ("true", "false")}
        options = asdict(preset(options.pop("preset"), **options))
        rows.append(Row(name, options, STEP_TOKENS // flags["length"], flags["length"]))
    return rows


def check(options: dict[str, Any]) -> tuple[float, float]:
    """Differences of loss and gradients between bf16 and fp32."""
    batch, length = CHECKED
    model = make_model(options, length)
    tokens = torch.randint(0, 4, (batch, length + 1), dtype=torch.uint8, device="cuda")
    found = []
    for half in (True, False):
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            sums = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss = sums.nll_sum / sums.counted
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss.item(), torch.cat([gradient.flatten().double() for gradient in gradients])))
    (loss, gradient), (exact_loss, exact) = found
    return abs(loss - exact_loss), ((gradient - exact).norm() / exact.norm()).item()


def measure(row: Row, profiled: bool) -> dict[str, float | int | str]:
    model = make_model(row.options, row.length)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, fused=True)
    tokens = torch.randint(0, 4, (row.batch, row.length + 1), dtype=torch.uint8, device="cuda")
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss_of = torch.compile(model.loss) if row.compiled else model.loss

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(inputs, targets)
        (loss.nll_sum / loss.counted).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    torch.cuda.reset_peak_memory_stats()
    seconds, host = median_seconds(step, 5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    if profiled:
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
        print(trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=24, max_name_column_width=200))
    million = row.batch * row.length / 1e6
    return {
        "system": row.system,
        "compiled": int(row.compiled),
        "batch": row.batch,
        "length": row.length,
        "mtoken_per_s": million / seconds,
        "peer_mtoken_per_s": row.peer,
        "ratio": million / seconds / row.peer,
        "peer_gpu": row.gpu,
        "step_ms": seconds * 1e3,
        "host_ms": host * 1e3,
        "peak_gib": peak,
        "peer_peak_gib": row.peer_peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflow", type=Path, help="time the systems of this YAML file")
    parser.add_argument("--systems", nargs="+", help="only these")
    parser.add_argument("--lengths", type=int, nargs="+", help="only rows of these lengths")
    parser.add_argument("--eager", action="store_true", help="leave out the rows under torch.compile")
    parser.add_argument("--profile", action="store_true", help="print the kernels' shares of each step")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    where = conditions()
    print(", ".join(where.values()))
    results, errors = [], {}
    for row in ROWS if arguments.workflow is None else workflow_rows(arguments.workflow):
        if arguments.systems and row.system not in arguments.systems:
            continue
        if (arguments.lengths and row.length not in arguments.lengths) or (arguments.eager and row.compiled):
            continue
        if row.system not in errors:
            errors[row.system] = check(row.options)
            print(f"{row.system:12} bf16 against fp32: loss %.1e nats, gradients %.1e" % errors[row.system], flush=True)
        if not _is_right(errors[row.system]):
            continue
        began = time.perf_counter()
        result = measure(row, arguments.profile)
        torch.cuda.empty_cache()
        results.append(result | where)
        same = "" if row.gpu in where["gpu"] else f" (on another GPU, {row.gpu})"
        print(
            f"{row.system:12}{' compiled' if row.compiled else '':9} {row.batch:4d} x {row.length:9,d}"
            f"  {result['mtoken_per_s']:6.2f} Mtoken/s, peer {row.peer:5.2f}, ratio {result['ratio']:4.2f}{same}"
            f"  host {result['host_ms']:3.0f}/{result['step_ms']:4.0f} ms"
            f"  peak {result['peak_gib']:5.1f} GiB ({row.peer_peak})  [{time.perf_counter() - began:.0f} s]",
            flush=True,
        )
        if arguments.out:
            write_rows(results, arguments.out)
    if wrong := [system for system, error in errors.items() if not _is_right(error)]:
        raise SystemExit(f"wrong results, not timed: {', '.join(wrong)}")


def _is_right(errors: tuple[float, float]) -> bool:
    return errors[0] <= LOSS_TOLERANCE and errors[1] <= GRADIENT_TOLERANCE


if __name__ == "__main__":
    main()
