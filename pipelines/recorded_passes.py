"""Small forward passes of trained models on a GPU, queued by the host and replayed as CUDA graphs: time and memory.

    python pipelines/recorded_passes.py [--parts passes score] [--out FOLDER] [--repeats 20]

`passes`: models by preset, and of both sides (Caduceus-Ph and -PS, 16 blocks of width 256), random weights, by batch ×
length: milliseconds of a pass either way, and of the one that is recorded; the bits compared; and the memory that a
recording takes. Here large passes are recorded, too, and after few of a shape.
`score`: variants a second of `score` at short contexts, with recordings and without, and the share of that time in
which the GPU works, by torch's profiler. Writes passes.csv and score.csv.
"""

import argparse
import gc
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from measured import Row, conditions, median_ms, write_rows
from torch.profiler import ProfilerActivity, profile
from variant_benchmarks import plan_of, random_variants, timed

from dnamamba.analysis.variants.scores import ScorePlan
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference import recorded_passes
from dnamamba.inference.device import Precision
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.inference.recorded_passes import record_no_passes, record_passes
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.language_model import LanguageModel

BOTH_SIDES = {"objective": "masked_base", "mixer": "bimamba", "d_model": 256, "n_layer": 16}
MODELS = {
    "1.4m": preset("1.4m"),
    "7m": preset("7m"),
    "caduceus-ph": ModelConfig(**BOTH_SIDES),
    "caduceus-ps": ModelConfig(**BOTH_SIDES, rc_equivariant=True),
}
SHAPES = ((1, 512), (16, 512), (128, 512), (1, 2048), (16, 2048), (64, 2048), (8, 8192), (16, 8192), (32, 8192))
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
SEEN_BEFORE = 3
"""Passes of a shape before its recording, here"""
SCORED = {"contexts": (512, 2048), "variants": 1000, "every": 300}


def loaded(name: str, precision: Precision) -> Inference:
    """A model of random weights, as verbs load it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(LanguageModel(MODELS[name]), Path(folder) / "model", {})
        return load_for_inference(Path(folder) / "model", "gpu", precision)


@contextmanager
def queued(inference: Inference) -> Iterator[None]:
    """Without recordings, those that are there being freed."""
    record_no_passes(inference.model.backbone)
    gc.collect()
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        record_passes(inference.model)


@torch.inference_mode()
def passes(name: str, precision: Precision, repeats: int) -> list[Row]:
    """A row a shape."""
    inference = loaded(name, precision)
    backbone, rows = inference.model.backbone, []
    batches = [torch.randint(0, 4, shape, dtype=torch.uint8, device="cuda") for shape in SHAPES]
    rule = {"LARGEST": 1 << 40, "ALL": 1 << 40, "SEEN_BEFORE": SEEN_BEFORE}
    with inference.autocast(), patch.multiple(recorded_passes, **rule):
        with queued(inference):
            expected = [backbone(tokens)[0] for tokens in batches]
            slow = [median_ms(lambda tokens=tokens: backbone(tokens), repeats) for tokens in batches]
        for shape, tokens, hidden, milliseconds in zip(SHAPES, batches, expected, slow, strict=True):
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            for _ in range(SEEN_BEFORE):
                backbone(tokens)
            torch.cuda.synchronize()
            began = time.perf_counter()
            found = backbone(tokens)[0]
            torch.cuda.synchronize()
            recording = 1e3 * (time.perf_counter() - began)
            same = torch.equal(found, hidden)
            del found
            torch.cuda.empty_cache()
            memory = torch.cuda.memory_reserved() - before
            fast = median_ms(lambda tokens=tokens: backbone(tokens), repeats)
            row = {"model": name, "precision": precision, "batch": shape[0], "length": shape[1]}
            row |= {"queued_ms": round(milliseconds, 3), "replayed_ms": round(fast, 3), "same_bits": same}
            rows.append(row | {"recording_ms": round(recording, 1), "more_memory_mib": memory >> 20})
            print(*rows[-1].values(), flush=True)
    return rows


def busy(inference: Inference, *arguments: object) -> float:
    """The share of the time of `timed` in which kernels run."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        _, seconds = timed(inference, *arguments)  # type: ignore[arg-type]
    return sum(each.self_device_time_total for each in trace.key_averages()) / 1e6 / seconds


def score(name: str, precision: Precision) -> list[Row]:
    """A row a context."""
    inference, rows = loaded(name, precision), []
    with tempfile.TemporaryDirectory() as folder:
        count = SCORED["variants"]
        store, alleles = random_variants(Path(folder), count * SCORED["every"], count)
        for context in SCORED["contexts"]:
            given = Namespace(context=context, suffix=None, state_every=1024, batch_tokens=None, variants=count)
            plan = plan_of(given, inference)
            assert isinstance(plan, ScorePlan)
            plan = replace(plan, check=0)
            row: Row = {"model": name, "precision": precision, "context": context, "variants": count}
            with queued(inference):
                timed(inference, store, alleles, plan)  # kernels get compiled
                expected, seconds = timed(inference, store, alleles, plan)
                row |= {"queued_per_s": round(count / seconds), "queued_busy": busy(inference, store, alleles, plan)}
            found, seconds = timed(inference, store, alleles, plan)
            row |= {"replayed_per_s": round(count / seconds), "replayed_busy": busy(inference, store, alleles, plan)}
            row["same_bits"] = np.array_equal(expected.forward.llr, found.forward.llr, equal_nan=True)
            rows.append(row)
            print(*row.values(), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["passes", "score"], default=["passes", "score"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("recorded_passes"), help="folder to write to")
    parser.add_argument("--repeats", type=int, default=20, help="timed passes of each")
    given = parser.parse_args()
    where = conditions()
    print(*(f"{key} {value}" for key, value in where.items()), sep=" · ", flush=True)
    for part in given.parts:
        rows: list[Row] = []
        for name in given.models:
            if part == "score" and MODELS[name].objective != "next_base":
                continue
            for precision in PRECISIONS:
                found = passes(name, precision, given.repeats) if part == "passes" else score(name, precision)
                rows += [{**row, **where} for row in found]
                write_rows(rows, given.out / f"{part}.csv")


if __name__ == "__main__":
    main()
