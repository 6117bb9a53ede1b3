"""Time and memory of pretraining on many GPUs, from what one GPU has measured: the tables of `docs/scaling.md`.

    python pipelines/scaling_plan.py [--bases 29e9]

A step's batch is given in bases. Its windows go to rows of GPUs; where there are more GPUs than windows, each window
goes over several (`--context_parallel`). Of a GPU with P positions a step, in seconds:

    t = P · layers · (scan · channels · states / 16 + stream · d_model + 6 · weights of a layer / matrices)
      + passes · layers · context(ranks)          two exchanges forward and three backward: latency, and states
      + sum(devices)                              of gradients (DDP), or weights twice and gradients (FSDP2)

`MEASURED` are steps of one H200 that the coefficients have to give to 20 %; a test checks it. Nothing overlaps here:
communication is added, so times are upper bounds of that part. Not in it: the host, reading, validation, checkpoints,
and whatever else uses the network.
"""

import argparse
import math
from dataclasses import dataclass
from typing import NamedTuple

from dnamamba.model.config import ModelConfig, preset

SCAN = 36.8e-12
"""Seconds a position, layer and channel of 16 states: forward, adjoints, gradients"""
STREAM = 24.7e-12
"""Seconds a position, layer and unit of width: norm, convolution, gate, additions, concatenation"""
MATRICES = 510e12
"""Operations a second of the matrix products, in bf16"""
AGAIN = {"none": 1.0, "cheap": 1.08, "all": 1.36}
"""Time of a step by what its backward pass computes again"""
KEPT = {"none": 8.2, "cheap": 3.3, "all": 1.05}
"""KiB that a layer keeps a position and 256 of d_model, in bf16"""
BLOCK = 24
"""Bytes a position and channel of one block's gradients while they are computed"""
SLICE = 1 << 27
"""Positions times channels of it at a time, on one GPU; a part of a sequence over several is not cut"""
GIB = 2.0**30


class Machine(NamedTuple):
    """GPUs of 141 GB, eight to a node; a GPU's own share of each link, what collectives reach of it."""

    memory: float = 130 * GIB
    """Bytes that a step may take"""
    nvlink: float = 360e9
    """Bytes a second: 80 % of 450 GB/s"""
    network: float = 40e9
    """80 % of InfiniBand's 400 Gbit/s"""
    node: int = 8
    latency_in: float = 25e-6
    """Seconds of a small collective within a node"""
    latency_out: float = 60e-6

    def link(self, ranks: int) -> tuple[float, float]:
        """Seconds of latency, and bytes a second, of a collective of so many neighbouring ranks."""
        if ranks <= self.node:
            return self.latency_in, self.nvlink
        return self.latency_out + self.latency_in * math.log2(ranks / self.node), self.network


H200 = Machine()


@dataclass(frozen=True)
class Plan:
    """One run: a model, windows, a batch, GPUs."""

    model: ModelConfig
    length: int
    batch: int
    """Bases a step"""
    gpus: int
    recompute: str = "none"
    sharded: bool = False
    """FSDP2 in place of DDP"""
    machine: Machine = H200

    @property
    def context(self) -> int:
        """GPUs a window."""
        return max(1, self.gpus * self.length // self.batch)

    @property
    def positions(self) -> int:
        """Of a GPU in a step"""
        return self.batch // self.gpus

    @property
    def at_once(self) -> int:
        """Positions of a GPU in a pass: of one window, or 256 Ki"""
        return min(self.positions, max(self.length // self.context, 1 << 18))

    @property
    def layer_weights(self) -> int:
        m = self.model
        width, channels = m.d_model, m.channels
        return 3 * width * channels + channels * (2 * m.rank + 2 * m.d_state + m.d_conv + m.d_state + 3) + width

    @property
    def parameters(self) -> int:
        return self.model.n_layer * self.layer_weights + (self.model.vocabulary_size + 1) * self.model.d_model

    @property
    def compute_seconds(self) -> float:
        """Of a step's passes."""
        m = self.model
        layer = SCAN * m.channels * m.d_state / 16 + STREAM * m.d_model + 6 * self.layer_weights / MATRICES
        return AGAIN[self.recompute] * self.positions * m.n_layer * layer

    @property
    def context_seconds(self) -> float:
        """Of the states between the ranks of a window: of the scan in fp32, of the convolution in bf16, and the ΣΔ of
        the scan, each gathered from all of them, forward and backward; that of the convolution twice there."""
        if self.context == 1:
            return 0.0
        latency, bandwidth = self.machine.link(self.context)
        m, windows = self.model, max(self.at_once * self.context // self.length, 1)
        scan, conv = windows * m.channels * 4 * (m.d_state + 1), windows * m.channels * 2 * (m.d_conv - 1)
        passes = math.ceil(self.positions / self.at_once)
        forward = 2 if self.recompute == "all" else 1
        size = forward * (scan + conv) + scan + 2 * conv
        return passes * m.n_layer * ((2 * forward + 3) * latency + (self.context - 1) * size / bandwidth)

    @property
    def sum_seconds(self) -> float:
        """Of gradients, once a step; with FSDP2 of weights twice and gradients once a pass."""
        if self.gpus == 1:
            return 0.0
        latency, bandwidth = self.machine.link(self.gpus)
        size = 4 * self.parameters * (self.gpus - 1) / self.gpus / bandwidth
        if not self.sharded:
            return 2 * (latency + size)
        passes = math.ceil(self.positions / self.at_once)
        return 3 * passes * (self.model.n_layer * latency + size)

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute_seconds + self.context_seconds + self.sum_seconds

    @property
    def efficiency(self) -> float:
        return self.compute_seconds / self.seconds

    @property
    def mbases_per_second(self) -> float:
        return self.batch / self.seconds / 1e6

    @property
    def memory(self) -> float:
        """Bytes a GPU: weights, gradients and two moments; what a pass keeps; one block's gradients."""
        m = self.model
        held = 16 * self.parameters / (self.gpus if self.sharded else 1)
        kept = 1024 * KEPT[self.recompute] * m.d_model / 256 * m.n_layer
        block = self.at_once * m.channels if self.context > 1 else min(self.at_once * m.channels, SLICE)
        return held + self.at_once * kept + BLOCK * block

    def fitting(self) -> "Plan | None":
        """With the fastest way that fits into memory, whole weights before parts of them; None where none does."""
        ways = [
            Plan(self.model, self.length, self.batch, self.gpus, recompute, sharded, self.machine)
            for sharded in (False, True)
            for recompute in AGAIN
        ]
        able = [way for way in ways if way.memory <= self.machine.memory]
        return min(able, key=lambda way: way.seconds) if able else None


MODELS = {
    "7m": preset("7m"),
    "41m": preset("41m"),
    "1B": ModelConfig(n_layer=36, d_model=2048),
}
BATCH = {"7m": 1 << 22, "41m": 1 << 22, "1B": 1 << 24}
"""Bases a step"""
LENGTHS = (1 << 17, 1 << 20)
GPUS = (8, 64, 512)
MEASURED = (
    (ModelConfig(n_layer=8, d_model=256), 1 << 20, 1 << 20, "none", 4.24, 66.5),
    (ModelConfig(n_layer=8, d_model=256), 1 << 20, 1 << 20, "cheap", 3.83, 30.4),
    (ModelConfig(n_layer=8, d_model=256), 1 << 20, 1 << 20, "all", 3.07, 11.8),
    (ModelConfig(n_layer=8, d_model=128), 1 << 15, 1 << 18, "none", 7.72, 8.7),
    (ModelConfig(n_layer=8, d_model=128), 1 << 15, 1 << 18, "cheap", 7.18, 4.7),
    (ModelConfig(n_layer=8, d_model=128), 1 << 15, 1 << 18, "all", 5.84, 2.2),
)
"""Steps of one H200 (2026-11-29): model, length, bases a step, recompute, Mbases/s, peak GiB"""


def table(bases: float) -> list[str]:
    """Markdown."""
    lines = [
        "| model | length | GPUs | of them a window | kept | weights | Mbases/s | efficiency | GiB a GPU | hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, model in MODELS.items():
        for length in LENGTHS:
            for gpus in GPUS:
                plan = Plan(model, length, BATCH[name], gpus).fitting()
                start = f"| {name} | {length:,} | {gpus} |"
                if plan is None:
                    lines.append(f"{start} does not fit: `--backprop chunked` | | | | | | |")
                    continue
                hours = bases / plan.mbases_per_second / 3600e6
                cells = (
                    f"{plan.context}",
                    plan.recompute,
                    "parts" if plan.sharded else "whole",
                    f"{plan.mbases_per_second:,.1f}",
                    f"{plan.efficiency:.2f}",
                    f"{plan.memory / GIB:.0f}",
                    f"{hours:.3g}",
                )
                lines.append(f"{start} {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=float, default=29e9, help="to train on; hg38 has 2.9e9 that are no N")
    print("\n".join(table(parser.parse_args().bases)))


if __name__ == "__main__":
    main()
