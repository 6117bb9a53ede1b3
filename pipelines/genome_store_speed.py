"""Measures the token store and the windows on real genomes, each build in a process of its own.

    python pipelines/genome_store_speed.py chr20.fa.gz
    python pipelines/genome_store_speed.py *.fa.gz --bases 3100000000 --scratch scratch

With --bases the genomes are written again and again, contigs renamed, into one gzipped FASTA of that many bases, which
is then measured instead. Nothing is left in the scratch folder. Prints one line a figure, with its target.
"""

import argparse
import gzip
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.reader import SourceFile, read_genome
from dnamamba.genome.splits import make_splits
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("genome", nargs="+", type=Path, help="FASTA files, each measured by itself")
    parser.add_argument("--bases", type=int, default=0, help="join copies of them to a genome of so many bases")
    parser.add_argument("--scratch", type=Path, help="folder for the stores (default: the system's temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        genomes = arguments.genome
        if arguments.bases:
            genomes = [concatenate(genomes, arguments.bases, Path(folder) / "joined.fa.gz")]
        for number, genome in enumerate(genomes):
            measure(genome, Path(folder) / f"{number}.dnamamba")


def concatenate(genomes: list[Path], bases: int, joined: Path) -> Path:
    """The genomes, over and over, as one gzipped FASTA of at least `bases` bases with unique contig names."""
    letters = np.frombuffer(b"ACGTN", np.uint8)
    written = copy = 0
    with gzip.open(joined, "wb", compresslevel=1) as file:
        while written < bases:
            copy += 1
            for number, genome in enumerate(genomes):
                for item in read_genome(genome):
                    if isinstance(item, SourceFile) or written >= bases:
                        continue
                    if item.first:
                        file.write(f"\n>copy{copy}_{number}_{item.name}\n".encode())
                        continue
                    upper = letters[item.tokens & 0x7F]
                    text = np.where(item.tokens & 0x80, upper | 0x20, upper)
                    whole = len(text) // 60 * 60
                    lines = np.pad(text[:whole].reshape(-1, 60), ((0, 0), (0, 1)), constant_values=ord("\n"))
                    file.write(lines.tobytes() + text[whole:].tobytes() + b"\n")
                    written += len(text)
    return joined


def build(genome: Path, store: Path, answer: "multiprocessing.queues.SimpleQueue[tuple[float, float]]") -> None:
    start = time.perf_counter()
    open_genome(genome, store=store)
    seconds = time.perf_counter() - start
    # Not getrusage: its maximum is inherited from the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    answer.put((seconds, int(peak.split()[1]) / 1024))


def measure(genome: Path, folder: Path) -> None:
    """Prints the figures of one genome file."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    builder = context.Process(target=build, args=(genome, folder, answer))
    builder.start()
    builder.join()
    if builder.exitcode:
        raise SystemExit(f"building the store of {genome} failed")
    seconds, memory = answer.get()
    store, reopen = timed(lambda: open_genome(genome, store=folder), repeats=5)
    print(f"{genome.name}: {len(store.contigs)} contigs, {store.bases / 1e6:.1f} Mb")
    print(f"  build   {seconds:9.2f} s    (target: chr20 < 5 s, 3.1 Gb < 360 s)")
    print(f"  memory  {memory:9.0f} MiB  (target < 1024 MiB, of the building process)")
    print(f"  reopen  {reopen * 1e3:9.2f} ms   (target < 50 ms)")
    _, verify = timed(store.verify, repeats=1)
    print(f"  verify  {verify:9.2f} s")
    windows(store)


def windows(store: TokenStore) -> None:
    """Prints the time of a 1 Mb window, then the rate of batches of 2^18 bases at several lengths; warm page cache."""
    longest = max(store.contigs, key=lambda contig: contig.length)
    size = min(longest.length, 1_000_000)
    starts = np.random.default_rng(0).integers(0, longest.length - size + 1, 200).tolist()
    copy = np.empty(size, np.uint8)

    def read_all() -> None:
        for start in starts:
            copy[:] = store.read(longest.name, start, start + size)

    _, window = timed(read_all, repeats=2)
    print(f"  window  {window / len(starts) * 1e3:9.3f} ms   (target < 0.5 ms; {size:,} bases, copied)")
    contigs = select_contigs(store)
    for length in (128, 1024, 8192, 131_072, 1_048_576):
        if longest.length < 16 * length:
            continue
        splits = make_splits(store, contigs, context_length=length)
        start = time.perf_counter()
        plan = WindowPlan(store, splits.train, length, seed=0, reverse_complement=True, random_phase=True)
        planned = time.perf_counter() - start
        rows = max(2**18 // length, 1)
        batches = [np.arange(k * rows, (k + 1) * rows) % plan.epoch_size(0) for k in range(40)]
        _, seconds = timed(partial(read_batches, plan, batches), repeats=2)
        rate = len(batches) * rows * length / seconds / 1e6
        print(
            f"  batches {rate:9.0f} Mtoken/s at length {length:,} (target > 20), "
            f"{plan.epoch_size(0):,} windows planned in {planned * 1e3:.1f} ms"
        )


def read_batches(plan: WindowPlan, batches: list[np.ndarray]) -> None:
    for batch in batches:
        plan.batch(0, batch)


def timed(function: Callable[[], Result], repeats: int) -> tuple[Result, float]:
    """(result, seconds of the fastest run)."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return result, best


if __name__ == "__main__":
    main()
