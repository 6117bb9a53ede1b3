"""Does more context help? Bits per base of models trained at each length, on equal tokens, at equal positions.

    python pipelines/length_quality.py --genome FASTA [--out runs/length_quality] [--minutes 9] [--full]

Each size is trained at each length: the same held-out regions, bases a step and number of bases. Windows longer than a
pass go through in chunks with exact gradients (`--backprop chunked`). All models are scored on the same bases, the
second halves of held-out regions of twice the longest length: in tiles as long as the model's own windows, of which the
last half counts, so that each base has between half a window and a whole one before it. They also read each region from
its start with their state carried along: bits by position, beyond what they were trained at.

Trainings and scores are resumed by the same command, --minutes at a time. Differences are from the shortest length of
the same size and seed; their 95 % intervals come from resampling intervals of 16,384 bases (by position: regions), and
know nothing of other seeds.
Writes results.csv, by_position.csv, results.md and results.png. --full gives each model 1 billion bases.
"""

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import Row, markdown, write_rows
from plan import SUMMARY, Plan, Run
from show_classification import gpus, run_all

from dnamamba import cli
from dnamamba.alphabet import BASES
from dnamamba.errors import InputError
from dnamamba.formats import read_card
from dnamamba.genome.contigs import select_contigs
from dnamamba.genome.splits import make_splits
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.model.language_model import LanguageModel
from dnamamba.outputs import whole_file, write_atomically
from dnamamba.pictures.figures import save_png
from dnamamba.training.data import WindowBatch
from dnamamba.training.window_parts import WindowParts

PASS = 1 << 17
"""Positions that go through a model at a time on a GPU"""
PASS_ON_CPU = 1 << 14
"""The same on a CPU, whose caches are small"""
RESAMPLED = 1 << 14
"""Bases that are resampled together"""
RESAMPLES = 2000
SCORES = "scores.npz"
"""In the folder of a training, when its model is scored."""


def regions(store: TokenStore, longest: int, scored: int, folder: Path) -> WindowPlan:
    """Held-out windows of twice the longest length, and the splits as train.bed and validation.bed. Raises `InputError`
    where the folder's models were trained on other ones."""
    contigs = select_contigs(store, None).chosen
    size = 2 * longest + 1
    fraction = -(-scored // longest) * size / sum(contig.length for contig in contigs)
    splits = make_splits(
        store, contigs, context_length=longest, validation_fraction=fraction, test_fraction=0, block_size=size
    )
    for name, intervals in (("train", splits.train), ("validation", splits.validation)):
        text = "".join(f"{interval.contig}\t{interval.start}\t{interval.end}\n" for interval in intervals)
        file = folder / f"{name}.bed"
        if file.exists() and file.read_text("utf-8") != text:
            raise InputError(f"{file}: from another genome, --lengths or --scored; choose another --out")
        write_atomically(file, text)
    return WindowPlan(store, splits.validation, 2 * longest, seed=0)


def trainings(given: argparse.Namespace, genome: Path) -> Plan:
    """On a token store: a run a seed, size and length, the shortest of each size first."""
    runs = []
    for seed, size, length in itertools.product(range(given.seeds), given.sizes, sorted(given.lengths)):
        flags: dict[str, Any] = {
            "genome": genome,
            "train": given.out / "train.bed",
            "validation": given.out / "validation.bed",
            "model.preset": size,
            "length": length,
            "batch_tokens": given.batch_tokens,
            "tokens": given.tokens,
            "learning_rate": given.learning_rate,
            "seed": seed,
            "markov_order": 0,
        }
        if length > PASS:
            flags |= {"backprop": "chunked", "chunk": PASS}
        facts = {"size": size, "length": str(length), "seed": str(seed)}
        parts = tuple(str(part) for name, value in flags.items() for part in (f"--{name}", value))
        runs.append(Run(f"{size}-{length:07d}-{seed}", ("-m", "dnamamba.pretrain"), parts, (), SUMMARY, facts))
    return Plan(given.out, tuple(runs))


@torch.no_grad()
def bits(inference: Inference[LanguageModel], tokens: np.ndarray) -> np.ndarray:
    """(windows, length + 1) uint8 → (windows, length) fp64, −log2 p of each base but the first, each window read from
    its start; NaN where the base is not known."""
    flags = torch.zeros(len(tokens), dtype=torch.bool)
    windows = WindowParts(WindowBatch(torch.from_numpy(tokens), flags), inference.model.objective, inference.device)
    state, found, at_once = None, [], _pass(inference)
    for first in range(0, windows.length, at_once):
        part = windows.chunk(first, min(first + at_once, windows.length))
        with inference.autocast():
            loss = inference.model.loss(part.inputs, part.targets, state)
        state = loss.state
        found.append(torch.where(part.targets < BASES, loss.nll.double() / math.log(2), math.nan).cpu())
    return torch.cat(found, dim=1).numpy()


def in_tiles(inference: Inference[LanguageModel], region: np.ndarray, length: int) -> np.ndarray:
    """Bits of the second half of a region, (2 · longest + 1,) tokens, each base in the last half of its tile."""
    half, longest = length // 2, (len(region) - 1) // 2
    starts = np.arange(longest - half, 2 * longest - length + 1, half)
    at_once = max(_pass(inference) // length, 1)
    parts = []
    for first in range(0, len(starts), at_once):
        tiles = np.stack([region[start : start + length + 1] for start in starts[first : first + at_once]])
        parts.append(bits(inference, tiles)[:, half:].ravel())
    return np.concatenate(parts)


def _pass(inference: Inference[LanguageModel]) -> int:
    return PASS if inference.device.type == "cuda" else min(PASS, PASS_ON_CPU)


def evaluate(run: Path, length: int, plan: WindowPlan) -> tuple[np.ndarray, np.ndarray]:
    """(intervals, 2) of the bases that all models are scored on, and (regions, octaves, 2) by position: bits and bases.
    Kept in the run's folder, with the digest of the weights that they are of."""
    weights = str(read_card(run)["provenance"]["weights_sha256"])
    if (run / SCORES).exists():
        with np.load(run / SCORES) as kept:
            if "weights" in kept and str(kept["weights"]) == weights:
                return kept["scored"], kept["octaves"]
    inference = load_for_inference(run)
    scored, octaves = [], np.zeros((plan.epoch_size(0), math.ceil(math.log2(plan.length)) + 1, 2))
    for number in range(plan.epoch_size(0)):
        region = np.array(plan.read(0, number))
        scored.append(sums(in_tiles(inference, region, length).reshape(-1, min(RESAMPLED, plan.length // 2))))
        streamed = bits(inference, region[None])[0]
        octave = np.frexp(np.arange(1, plan.length + 1))[1] - 1  # of the number of bases read
        for each in range(octaves.shape[1]):
            octaves[number, each] = sums(streamed[octave == each][None])[0]
    of_intervals = np.concatenate(scored)
    with whole_file(run / SCORES, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, scored=of_intervals, octaves=octaves, weights=weights)
    return of_intervals, octaves


def sums(values: np.ndarray) -> np.ndarray:
    """(n, k) with NaN → (n, 2): sums and counts."""
    return np.stack([np.nansum(values, axis=1), np.isfinite(values).sum(1)], axis=1)


def difference(own: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Bits per base of `own` less those of `other` on the same bases, and the ends of the 95 % interval."""
    drawn = np.random.default_rng(0).integers(0, len(own), (RESAMPLES, len(own)))
    change = own[:, 0] - other[:, 0]
    low, high = np.percentile(change[drawn].sum(1) / own[drawn, 1].sum(1), (2.5, 97.5))
    return float(change.sum() / own[:, 1].sum()), float(low), float(high)


def draw(rows: Sequence[Row], positions: Sequence[Row], path: Path) -> None:
    """Left the bits over the length of training, right by position of one size's models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for size, seed in dict.fromkeys((row["size"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["size"], row["seed"]) == (size, seed)]
        base = own[0]["bits_per_base"]
        ends = [[row["difference"] - row["low"] for row in own], [row["high"] - row["difference"] for row in own]]
        left.errorbar(
            [row["length"] for row in own],
            [base + row["difference"] for row in own],
            ends,
            marker="o",
            markersize=4,
            label=f"{size}, seed {seed}",
        )
    left.set(xlabel="bases a window in training", ylabel="bits per base, held out", title="equal bases, equal tokens")
    shown = rows[-1]["size"], rows[-1]["seed"]
    for length in dict.fromkeys(row["length"] for row in rows):
        own = [row for row in positions if (row["size"], row["seed"], row["length"]) == (*shown, length)]
        right.plot([row["position"] for row in own], [row["bits_per_base"] for row in own], label=f"{length:,}")
    right.set(xlabel="bases read before, at least", title=f"{shown[0]}: state carried along, by length of training")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_png(figure, path)


def collect(plan: Plan, held_out: WindowPlan) -> str:
    """Scores what is trained and writes all files; the table."""
    rows: list[Row] = []
    positions: list[Row] = []
    shortest: dict[tuple[str, str], np.ndarray] = {}
    positions_of_shortest: dict[tuple[str, str], np.ndarray] = {}
    for run in plan.runs:
        if not (plan.folder(run) / run.result).exists():
            print(f"not finished: {run.name}")
            continue
        size, length, seed = run.facts["size"], int(run.facts["length"]), run.facts["seed"]
        scored, octaves = evaluate(plan.folder(run), length, held_out)
        change, low, high = difference(scored, shortest.setdefault((size, seed), scored))
        facts: Row = {"size": size, "seed": seed, "length": length}
        total = scored.sum(0)
        rows.append(facts | {"bases": int(total[1]), "bits_per_base": total[0] / total[1]})
        rows[-1] |= {"difference": change, "low": low, "high": high}
        other = positions_of_shortest.setdefault((size, seed), octaves)
        for octave in np.flatnonzero(octaves[..., 1].sum(0)).tolist():
            own = octaves[:, octave]
            change, low, high = difference(own, other[:, octave])
            bits_of, bases = own.sum(0).tolist()
            place = facts | {"position": 1 << octave, "bits_per_base": bits_of / bases, "bases": int(bases)}
            positions.append(place | {"difference": change, "low": low, "high": high})
    if not rows:
        return ""
    lines = [
        [row["size"], row["seed"], f"{row['length']:,}", f"{row['bits_per_base']:.4f}", _change(row)] for row in rows
    ]
    grid = markdown(["size", "seed", "length", f"bits per base, of {rows[0]['bases']:,}", "from the shortest"], lines)
    write_rows(rows, plan.out / "results.csv")
    write_rows(positions, plan.out / "by_position.csv")
    write_atomically(plan.out / "results.md", grid)
    draw(rows, positions, plan.out / "results.png")
    return grid


def _change(row: Row) -> str:
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genome", type=Path, required=True, help="FASTA or token store")
    parser.add_argument("--out", type=Path, default=Path("runs/length_quality"), help="folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1 << power for power in range(10, 21, 2)])
    parser.add_argument("--sizes", nargs="+", default=["250k", "1.4m"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch_tokens", type=int, default=1 << 20, help="bases a step, at least the longest length")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="bases of each training")
    parser.add_argument("--learning_rate", type=float, default=0.004)
    parser.add_argument("--scored", type=int, default=4_000_000, help="held-out bases to score")
    parser.add_argument("--minutes", type=float, default=9.0, help="for the trainings of this call")
    parser.add_argument("--jobs_per_gpu", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="1 billion bases, 3 seeds")
    given = parser.parse_args(arguments)
    if given.full:
        given.tokens, given.seeds = 1_000_000_000, 3
    if any(length & (length - 1) or length < 128 for length in given.lengths):
        raise InputError("--lengths: all must be powers of two, from 128 on")
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    store = open_genome(given.genome)
    held_out = regions(store, max(given.lengths), given.scored, given.out)
    plan = trainings(given, store.path)
    slots = [gpu for gpu in gpus() for _ in range(given.jobs_per_gpu)]
    threads = max((os.cpu_count() or 1) // len(slots), 1)
    failed = run_all([plan], slots, threads, time.monotonic() + 60 * given.minutes)
    print(collect(plan, held_out))
    if failed:
        raise InputError(f"failed, see their logs: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
