"""What it costs one rank to train as one of many: steps on one GPU, with and without what several ranks need.

    python pipelines/one_rank.py --out one_rank.json [--ways context] [--only TEXT …] [--accelerator cpu]

A run on one device uses nothing of it. Here one rank makes all that ranks do in a step, with nobody to wait for: NCCL's
sum of the gradients and of the counts (`data`), FSDP2's gathering of weights and its scattering of gradients (`fsdp`),
the scan's summary of a part and what is exchanged at its borders (`context`). What is left is what the network costs.

The ways take turns, `--rounds` times, and each result is written as soon as it is there; a row's overhead is the
median step over that of `alone`. Steps are as in `context_parallel.py`, without CUDA graphs.
"""

import argparse
import os
import statistics
from functools import partial
from pathlib import Path

import torch
from context_parallel import Bench, Work, rate

from dnamamba.model.context_parallel import Ranks
from dnamamba.parallel.context import SequenceParts

WAYS: tuple[str, ...] = ("alone", "data", "fsdp", "context")
ON_GPU = [Work("1.4m", 8192, 32, WAYS), Work("7m", 1 << 20, 1, WAYS, "cheap"), Work("7m", 1 << 17, 2, WAYS)]
ON_CPU = [Work("demo", 2048, 4, WAYS)]


class OnePart(SequenceParts):
    """The only part of a window, treated as one of many."""

    def begin(self, device_type: str) -> None:
        self._ranks = Ranks(torch.distributed.group.WORLD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("one_rank.json"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--only", nargs="+", default=[], help="rows whose names have one of these in them")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    arguments = parser.parse_args()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    os.environ.update(alone)
    ways = tuple(dict.fromkeys(("alone", *arguments.ways)))
    bench = Bench(arguments.out, arguments.accelerator == "gpu")
    bench.parts = OnePart()
    bench.parts.begin(bench.device.type)
    for work in ON_GPU if bench.on_gpu else ON_CPU:
        row = f"{work.preset}, {work.windows} x {work.length}"
        if arguments.only and not any(text in row for text in arguments.only):
            continue
        for number in range(arguments.rounds):
            for way in ways:
                bench.keep("steps", f"{row}, {way}, round {number + 1}", partial(rate, bench, work, way))
        seconds = {
            way: statistics.median(
                bench.results["steps"][f"{row}, {way}, round {number + 1}"]["step_seconds"]
                for number in range(arguments.rounds)
            )
            for way in ways
        }
        overheads = {way: round(each / seconds["alone"] - 1, 4) for way, each in seconds.items()}
        bench.keep("overhead", row, partial(dict, overheads))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
