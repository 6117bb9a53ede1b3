"""One sequence over several GPUs: gradients compared with one GPU's, steps a second, the longest sequence.

    torchrun --nproc-per-node 2 pipelines/context_parallel.py --out context_parallel.json
        [--parts check overhead steps shares network longest] [--only TEXT …] [--accelerator cpu]

check    losses and gradients of one sequence over all ranks, of each mixer and way to the gradient, against the same
         sequence on one; of a sequence a rank with whole weights (DDP) or parts of them (FSDP2), against all of them on
         one: in fp32 and bf16; the difference of one device's bf16 from its fp32 next to it.
overhead of a rank with as many bases as one that is by itself, all at once: of the faster median step of some rounds.
steps    Mbases/s of whole steps (counts, gradients, their sum, clipping, fused AdamW): every rank by itself, which is
         one device's rate; windows of their own with their gradients summed (`data`), whole weights (DDP) or parts of
         them (FSDP2); one window over all ranks (`context`), whole and in chunks.
shares   what of a step over all ranks NCCL's kernels (on the CPU gloo's calls) take, by torch's profiler, on each rank:
         the one that comes last to an exchange waits for nobody.
network  seconds of the collectives themselves: states, and gradients of the presets.
longest  one step on ever longer sequences over all ranks: seconds and GiB a device.

With one GPU the ranks share it, and gloo passes what they send through the host: good for `check`, and with --shorter
to compile all kernels beforehand, which takes a minute a process.

Sequences are random bases. Each result is written as soon as it is there; what --out holds is not measured again.
"""

import argparse
import faulthandler
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from measured import KeptResults
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from dnamamba.alphabet import BASES
from dnamamba.model.config import ModelConfig, preset
from dnamamba.model.context_parallel import Ranks
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.parameters import parameter_groups
from dnamamba.parallel.context import SequenceParts
from dnamamba.parallel.weights import ShardedWeights, WholeWeights
from dnamamba.training.backprop.choose import window_gradient
from dnamamba.training.data import WindowBatch
from dnamamba.training.loss_weights import EQUAL
from dnamamba.training.window_parts import WindowParts

TINY = {"n_layer": 2, "d_model": 16}


class Checked(NamedTuple):
    """A row of `check`: a model of four blocks, and how it is trained."""

    options: dict[str, Any]
    recompute: Any = None
    chunk: int | None = None
    way: str = "context"


BOTH_SIDES = {"mixer": "bimamba", "objective": "masked_base"}
CHECKED = {
    "mamba, in chunks, the last one odd": Checked({}, "cheap", 20_000),
    "DDP": Checked({}, "none", way="data"),
    "FSDP2": Checked({}, "none", way="fsdp"),
    "mamba, none": Checked({}, "none"),
    "mamba, cheap": Checked({}, "cheap"),
    "mamba, all": Checked({}, "all"),
    "mamba2": Checked({"mixer": "mamba2"}),
    "s4d": Checked({"mixer": "s4d"}),
    "bimamba": Checked(BOTH_SIDES),
    "Caduceus-PS": Checked(BOTH_SIDES | {"rc_equivariant": True}),
}


@dataclass
class Work:
    """What is trained in a row of `steps`."""

    preset: str
    length: int
    windows: int
    """A step and device, of those that are by themselves; over all devices in `context`"""
    ways: tuple[str, ...]
    recompute: str = "none"
    chunk: int | None = None

    @property
    def name(self) -> str:
        chunks = f", chunks of {self.chunk}" if self.chunk else ""
        return f"{self.preset}, {self.windows} x {self.length}{chunks}"


STEPS = [
    Work("7m", 1 << 20, 1, ("alone", "context"), "cheap"),
    Work("1.4m", 8192, 32, ("alone", "data", "fsdp")),
    Work("7m", 1 << 17, 2, ("alone", "context", "data", "fsdp")),
    Work("1.4m", 1 << 20, 1, ("alone", "context")),
    Work("7m", 1 << 23, 1, ("alone", "context"), "cheap", 1 << 19),
    Work("41m", 1 << 20, 1, ("alone", "context"), "all"),
]
SMALL = [Work("demo", 512, 2, ("alone", "data", "fsdp", "context"))]
"""On the CPU"""
ROUNDS = 3
"""Of `overhead`, in which the ways take turns"""
LONGEST = [
    [Work("7m", 1 << 25, 1, ("context",), "cheap", 1 << 21)],
    [Work("1.4m", 1 << 28, 1, ("context",), "cheap", 1 << 22)],
    [Work("7m", length << 20, 1, ("context",), "all") for length in (8, 9, 10, 11, 12)],
    [Work("1.4m", length << 20, 1, ("context",), "all") for length in (16, 20, 22, 24)],
]
"""In chunks, and whole as long as the next one should fit: a rank that is out of memory leaves the others waiting"""


class Bench(KeptResults):
    """The ranks, their device and the results, which the first rank writes."""

    def __init__(
        self, out: Path, on_gpu: bool, only: Sequence[str] = (), seconds: float = 3.0, divisor: int = 1
    ) -> None:
        """The options are those of the command."""
        self.rank = int(os.environ["RANK"])
        super().__init__(out, is_writer=self.rank == 0)
        self.on_gpu = on_gpu
        self.only, self.seconds, self.divisor = only, seconds, divisor
        shared = on_gpu and torch.cuda.device_count() < int(os.environ["WORLD_SIZE"])
        self.device = (
            torch.device("cuda", 0 if shared else int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
        )
        self.memory = math.inf
        if on_gpu:
            torch.cuda.set_device(self.device)
            self.memory = torch.cuda.get_device_properties(self.device).total_memory
        torch.distributed.init_process_group(
            "nccl" if on_gpu and not shared else "gloo",
            timeout=timedelta(seconds=90),
            device_id=self.device if on_gpu and not shared else None,
        )
        self.ranks = torch.distributed.get_world_size()
        self.parts = SequenceParts(self.ranks)
        self.parts.begin(self.device.type)
        name = torch.cuda.get_device_name() if on_gpu else "CPU"
        self.results["machine"] = {"devices": f"{self.ranks} x {name}", "torch": torch.__version__}

    def keep(self, part: str, name: str, measure: Callable[[], dict[str, Any]]) -> bool:
        """All ranks call this. An error is one of all of them, or torchrun ends them."""
        if self.only and not any(text in name for text in self.only):
            return True
        is_right = super().keep(part, name, measure)
        if self.on_gpu:
            torch.cuda.empty_cache()
        return is_right

    def shorter(self, work: Work) -> Work:
        """Of lengths divided as the command says."""
        chunk = work.chunk and work.chunk // self.divisor
        return replace(work, length=work.length // self.divisor, chunk=chunk)

    def windows(self, model: LanguageModel, length: int, count: int = 1, seed: int = 0) -> WindowParts:
        own = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, BASES, (count, length + 1), dtype=torch.uint8, generator=own)
        batch = WindowBatch(tokens, torch.zeros(count, dtype=torch.bool), keys=torch.arange(count))
        if self.on_gpu:
            batch = WindowBatch._make(None if each is None else each.pin_memory() for each in batch)
        return WindowParts(batch, model.objective, self.device, training=True)

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


class Trainer:
    """A model, its optimiser, and steps as `dnamamba.training.module.PretrainModule` makes them."""

    def __init__(
        self,
        bench: Bench,
        config: ModelConfig,
        recompute: Any,
        chunk: int | None,
        way: str,
        precision: str = "bf16",
        clip: float = 1.0,
    ) -> None:
        torch.manual_seed(0)
        self.bench, self.way, self.precision = bench, way, precision
        self.model = LanguageModel(config).to(bench.device)
        self.model.backbone.recompute = recompute
        weights = ShardedWeights() if way == "fsdp" else WholeWeights()
        weights.place(self.model)
        self.gradients = weights.gradients(self.model.parameters())
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.1), lr=1e-4, fused=True)
        self.scale = torch.tensor(self.gradients.scale, device=bench.device)
        self.clip = clip
        settings: Any = SimpleNamespace(chunk=chunk, backprop="chunked")
        self.gradient = window_gradient(settings, EQUAL, parts=bench.parts if way == "context" else None)

    def backward(self, windows: WindowParts) -> torch.Tensor:
        """Bits a base () over all ranks' windows; the gradients of their mean are in the parameters."""
        together = self.way != "alone"
        self.gradients.zero()
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            nll = self.gradient(self.model, windows, self.scale).double()
        sums = torch.cat((nll[None], windows.counts()))
        if together:
            sums = self.gradients.sum_over_ranks(sums)
        counted = sums[1] / (self.bench.ranks if self.way == "context" else 1)
        self.norm = self.gradients.clip(self.clip, counted.reciprocal().float())
        return sums[0] / counted / math.log(2)

    def step(self, windows: WindowParts) -> torch.Tensor:
        bits = self.backward(windows)
        self.optimizer.step()
        return bits


def check(bench: Bench) -> None:
    for name, case in CHECKED.items():
        bench.keep("check", name, partial(compare, bench, case))


def compare(bench: Bench, case: Checked) -> dict[str, Any]:
    """Of one step's loss and gradients, over all ranks against one."""
    sizes = {"d_model": 256, "n_layer": 4} if bench.on_gpu else TINY
    config, length, chunk = ModelConfig(**sizes, **case.options), 65_537 if bench.on_gpu else 301, case.chunk
    if chunk is not None and not bench.on_gpu:
        chunk = 120
    found = {}
    for precision in ("fp32", "bf16") if bench.on_gpu else ("fp32",):
        for way in ("alone", case.way):
            trainer = Trainer(bench, config, case.recompute, chunk, way, precision, clip=math.inf)
            windows = bench.windows(trainer.model, length, 1 if case.way == "context" else bench.ranks)
            if way in ("data", "fsdp"):
                windows = list(windows.split(1))[bench.rank]
            bits = trainer.backward(windows).item()
            gradients = [cast(Any, p.grad) for p in trainer.model.parameters()]
            whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
            found[precision, way] = bits, [gradient.double().cpu() for gradient in whole]
    result: dict[str, Any] = {}
    for precision in dict.fromkeys(key[0] for key in found):
        result[precision] = difference(found[precision, case.way], found[precision, "alone"])
    if bench.on_gpu:
        result["bf16 against fp32, one device"] = difference(found["bf16", "alone"], found["fp32", "alone"])
    return result


def difference(one: Any, other: Any) -> dict[str, float]:
    """Relative, of two losses and their gradients: of all together, and the largest of a parameter."""
    (bits, mine), (expected, theirs) = one, other
    norms = [((a - b).norm().item(), b.norm().item()) for a, b in zip(mine, theirs, strict=True)]
    whole = (sum(a**2 for a, _ in norms) / sum(b**2 for _, b in norms)) ** 0.5
    return {"loss": abs(bits / expected - 1), "gradient": whole, "largest": max(a / max(b, 1e-30) for a, b in norms)}


def steps(bench: Bench) -> None:
    for work in map(bench.shorter, STEPS if bench.on_gpu else SMALL):
        for way in work.ways:
            bench.keep("steps", f"{work.name}, {way}", partial(rate, bench, work, way))


def overhead(bench: Bench) -> None:
    """With as many bases for each rank as for one that is by itself. On the CPU the processor's seconds count, of all
    threads: the ranks share cores, and what waits takes none."""
    ways, config, names = ("alone", "data", "fsdp", "context"), preset("7m" if bench.on_gpu else "demo"), {}
    work = bench.shorter(Work("7m", 1 << 17, 2, ways) if bench.on_gpu else Work("demo", 2048, 4, ways))
    for number in range(ROUNDS):
        for way in ways:
            longer = work.length * (bench.ranks if way == "context" else 1)
            name = names[number, way] = f"{bench.ranks} ranks, {way}, round {number + 1}"
            bench.keep("overhead", name, partial(rate, bench, replace(work, length=longer), way, config))
    known = bench.results["overhead"]
    clock = "step_seconds" if bench.on_gpu else "processor_seconds"
    seconds = {way: min(known[names[number, way]][clock] for number in range(ROUNDS)) for way in ways}
    found = {way: round(seconds[way] / seconds["alone"] - 1, 4) for way in ways}
    bench.keep("overhead", f"{bench.ranks} ranks", partial(dict, found))


def rate(bench: Bench, work: Work, way: str, config: ModelConfig | None = None) -> dict[str, Any]:
    """Of the median step of some seconds of them; all ranks take as many."""
    config = config or preset(work.preset, **({} if bench.on_gpu else TINY))
    trainer = Trainer(bench, config, work.recompute, work.chunk, way)
    windows = bench.windows(trainer.model, work.length, work.windows, seed=0 if way == "context" else bench.rank)
    seconds: list[float] = []
    processor: list[float] = []
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    count = 3
    while len(seconds) < count:
        torch.distributed.barrier()
        began, of_processor = time.perf_counter(), time.process_time()
        trainer.step(windows)
        bench.synchronise()
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - of_processor)
        if len(seconds) == 2:  # the first compiles kernels
            count = max(3, min(30, 2 + int(bench.seconds / seconds[1])))
            agreed = torch.tensor(count, device=bench.device)
            torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN)
            count = int(agreed)
    ordered = sorted(seconds[2:] if count > 3 else seconds[1:])
    middle = ordered[len(ordered) // 2]
    bases = work.length * work.windows * (bench.ranks if way in ("data", "fsdp") else 1)
    return {
        "mbases_per_second": round(bases / middle / 1e6, 4),
        "step_seconds": middle,
        "fastest": ordered[0],
        "slowest": ordered[-1],
        "processor_seconds": sorted(processor[2:])[(count - 2) // 2],
        "steps": len(ordered),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if bench.on_gpu else None,
    }


def shares(bench: Bench) -> None:
    """Of the rows of `steps` that are over all ranks."""
    for work in map(bench.shorter, STEPS if bench.on_gpu else SMALL):
        if "context" in work.ways:
            bench.keep("shares", f"{work.name}, context", partial(share, bench, work))


def share(bench: Bench, work: Work) -> dict[str, Any]:
    """Of the third step, each number by rank; `recorded` is the step's with the profiler at work."""
    config = preset(work.preset, **({} if bench.on_gpu else TINY))
    trainer = Trainer(bench, config, work.recompute, work.chunk, "context")
    windows = bench.windows(trainer.model, work.length, work.windows)
    for _ in range(2):
        trainer.step(windows)
        bench.synchronise()
    with profile(activities=[ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]) as profiler:
        torch.distributed.barrier()
        bench.synchronise()
        began = time.perf_counter()
        trainer.step(windows)
        bench.synchronise()
        seconds = time.perf_counter() - began
    sent = [each.time_range.elapsed_us() for each in profiler.events() if re.match("ncclDev|ncclK|gloo:", each.name)]
    found: list[Any] = [None] * bench.ranks
    torch.distributed.all_gather_object(
        found, (seconds, sum(sent) / 1e6, sorted(sent)[len(sent) // 2] / 1e6, len(sent))
    )
    names = "recorded", "exchanges_seconds", "median_exchange", "exchanges"
    return {name: [each[number] for each in found] for number, name in enumerate(names)}


def network(bench: Bench) -> None:
    """Medians of collectives one after the other, each to its end."""
    config = preset("7m")
    state = config.channels * 4 * (config.d_state + 1)
    parts = Ranks(torch.distributed.group.WORLD)
    kinds: dict[str, tuple[int, Callable[[torch.Tensor], Any]]] = {"gather of states, 7m": (state, parts.gather)}
    for name in ("1.4m", "7m", "41m") if bench.on_gpu else ("demo",):
        size = sum(each.numel() for each in LanguageModel(preset(name)).parameters()) * 4
        kinds[f"sum of gradients, {name}"] = size, torch.distributed.all_reduce
    for name, (size, collective) in kinds.items():
        bench.keep("network", name, partial(exchange, bench, size, collective))


def exchange(bench: Bench, size: int, collective: Callable[[torch.Tensor], Any]) -> dict[str, Any]:
    """One of so many bytes a rank: seconds to its end, and of each of many that are queued at once."""
    values = torch.zeros(size // 4, device=bench.device)
    alone, count = [], 50
    for _ in range(count):
        torch.distributed.barrier()
        bench.synchronise()
        began = time.perf_counter()
        collective(values)
        bench.synchronise()
        alone.append(time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(count):
        collective(values)
    bench.synchronise()
    queued = (time.perf_counter() - began) / count
    return {"bytes": size, "seconds": sorted(alone)[count // 2], "queued": queued, "gb_per_second": size / queued / 1e9}


def longest(bench: Bench) -> None:
    small = [[Work("demo", 1024, 1, ("context",), "all")], [Work("demo", 2048, 1, ("context",), "cheap", 300)]]
    for ever_longer in LONGEST if bench.on_gpu else small:
        bytes_a_base = 0.0
        for work in map(bench.shorter, ever_longer):
            name = f"{work.name}, {work.recompute}"
            if bytes_a_base * work.length > 0.97 * bench.memory or not bench.keep(
                "longest", name, partial(once, bench, work)
            ):
                break
            found = bench.results["longest"].get(name, {})
            bytes_a_base = (found.get("peak_gib") or 0.0) * 2**30 / work.length


def once(bench: Bench, work: Work) -> dict[str, Any]:
    """One step."""
    trainer = Trainer(
        bench, preset(work.preset, **({} if bench.on_gpu else TINY)), work.recompute, work.chunk, "context"
    )
    windows = bench.windows(trainer.model, work.length)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    bits = trainer.step(windows).item()
    bench.synchronise()
    seconds = time.perf_counter() - began
    peak = None
    if bench.on_gpu:
        most = torch.tensor(torch.cuda.max_memory_allocated(), device=bench.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        peak = most.item() / 2**30
    return {"seconds": seconds, "peak_gib": peak, "bits": bits}


PARTS = {"check": check, "overhead": overhead, "steps": steps, "shares": shares, "network": network, "longest": longest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("context_parallel.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose names have one of these in them")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a row of `steps`")
    parser.add_argument("--shorter", type=int, default=1, help="divides lengths, to compile kernels beforehand")
    parser.add_argument("--stacks", type=float, default=0.0, help="print all threads' stacks every so many seconds")
    arguments = parser.parse_args()
    if arguments.stacks:
        faulthandler.dump_traceback_later(arguments.stacks, repeat=True)
    on_gpu = arguments.accelerator == "gpu"
    bench = Bench(arguments.out, on_gpu, arguments.only, arguments.seconds, arguments.shorter)
    for part in arguments.parts:
        PARTS[part](bench)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
