"""Are a genome's own copies predicted better? Bits per base by what of a window has come before.

    python pipelines/repeat_bits.py RUN [RUN …] --genome FASTA [--out repeats] [--split test] [--length 16384]

The bases of held-out windows are classed by the 16 bases before them, where these have stood earlier in the window:
`tandem` up to 63 bases before, `near` up to 1,023, `far` beyond; `inverted` where their reverse complement has; else
`unique`. The nearest occurrence counts. In `tandem` are microsatellites and minisatellites; in `near` and `far`
segmental duplications and members of one family of transposons. All runs read the same windows, those of the first
run's split. Intervals are of the difference from the first run, 95 %, from resampling windows.

Writes repeats.csv and repeats.md.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measured import Row, markdown, write_rows

from dnamamba.alphabet import BASES, TOKEN_BITS
from dnamamba.errors import InputError
from dnamamba.genome.bed import read_bed
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.inference.load import load_for_inference
from dnamamba.outputs import write_atomically
from dnamamba.training.data import EvaluationSet, FixedWindows, evenly_spread
from dnamamba.training.window_parts import WindowParts

WORD = 16
"""Bases that must have stood before"""
CLASSES = ("unique", "inverted", "tandem", "near", "far")
NEAR, FAR = 64, 1024
"""Least distances of the last two"""
RESAMPLES = 2000


def classes(window: np.ndarray) -> np.ndarray:
    """(length + 1,) tokens → (length,) int8: the number in `CLASSES` of each base but the first."""
    bases = window & TOKEN_BITS
    length = len(bases) - 1
    found = np.zeros(length, np.int8)
    if length < WORD + 1:
        return found
    digits = np.minimum(bases[:-1], BASES - 1).astype(np.uint64)
    words = np.lib.stride_tricks.sliding_window_view(digits, WORD)
    powers = np.uint64(BASES) ** np.arange(WORD, dtype=np.uint64)
    forward = (words * powers[::-1]).sum(1, dtype=np.uint64)
    inverse = ((np.uint64(BASES - 1) - words) * powers).sum(1, dtype=np.uint64)
    known = np.lib.stride_tricks.sliding_window_view(bases[:-1] < BASES, WORD).all(1)
    forward[~known] = np.uint64(BASES**WORD) + np.flatnonzero(~known).astype(np.uint64)  # equal to no other
    # A word's number is where it begins; the base after it is the target of that number + WORD − 1.
    order = np.argsort(forward, kind="stable")
    same = forward[order[1:]] == forward[order[:-1]]
    distance = np.zeros(len(forward), np.int64)
    distance[order[1:][same]] = (order[1:] - order[:-1])[same]
    first_of, first = np.unique(forward, return_index=True)
    slot = np.minimum(np.searchsorted(first_of, inverse), len(first_of) - 1)
    inverted = (first_of[slot] == inverse) & (first[slot] + WORD <= np.arange(len(forward)))
    kind = np.where(inverted, 1, 0)
    kind = np.where(distance > 0, 2 + (distance >= NEAR) + (distance >= FAR), kind)
    found[WORD - 1 :] = np.where(known, kind, 0)
    return found


@torch.no_grad()
def sums(run: Path, plan: WindowPlan, indices: np.ndarray) -> np.ndarray:
    """(windows, classes, 2): −ln p in bits, and counted bases, of each window and class."""
    inference = load_for_inference(run)
    rows = []
    windows = FixedWindows(EvaluationSet("", plan, indices), max((1 << 17) // plan.length, 1), 0, 1)
    for number in range(len(windows)):
        batch = windows[number]
        prepared = WindowParts(batch, inference.model.objective, inference.device).whole()
        with inference.autocast():
            nll = inference.model.loss(prepared.inputs, prepared.targets).nll.double().cpu().numpy() / math.log(2)
        counted = (prepared.targets < BASES).cpu().numpy()
        for row, tokens in enumerate(batch.tokens.numpy()):
            labels, of_row = classes(tokens)[counted[row]], nll[row][counted[row]]
            bits = np.bincount(labels, of_row, len(CLASSES))
            rows.append(np.stack([bits, np.bincount(labels, minlength=len(CLASSES))], axis=1))
    return np.stack(rows)


def compare(name: str, own: np.ndarray, first: np.ndarray) -> list[Row]:
    """A row a class and one of all bases; `own` and `first` as of `sums`."""
    drawn = np.random.default_rng(0).integers(0, len(own), (RESAMPLES, len(own)))
    rows = []
    for number, label in [*enumerate(CLASSES), (slice(None), "all")]:
        bits = own[:, number, 0].reshape(len(own), -1).sum(1)
        others = first[:, number, 0].reshape(len(own), -1).sum(1)
        bases = own[:, number, 1].reshape(len(own), -1).sum(1)
        if not bases.sum():
            continue
        resampled = (bits - others)[drawn].sum(1) / np.maximum(bases[drawn].sum(1), 1)
        low, high = np.percentile(resampled, (2.5, 97.5))
        row: Row = {"model": name, "class": label, "bases": int(bases.sum()), "bits_per_base": bits.sum() / bases.sum()}
        rows.append(row | {"difference": (bits - others).sum() / bases.sum(), "low": low, "high": high})
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a model, a column a class."""
    labels = list(dict.fromkeys(row["class"] for row in rows))
    bases = {row["class"]: row["bases"] for row in rows}
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        found = {row["class"]: row for row in rows if row["model"] == model}
        cells = []
        for label in labels:
            row = found[label]
            change = (
                f" ({row['difference']:+.4f}: {row['low']:+.4f} to {row['high']:+.4f})" if row["difference"] else ""
            )
            cells.append(f"{row['bits_per_base']:.4f}{change}")
        lines.append([model, *cells])
    return markdown(["bits per base", *(f"{label}, {bases[label]:,}" for label in labels)], lines)


def held_out(run: Path, store: TokenStore, split: str, length: int) -> WindowPlan:
    """Windows of a split of a run."""
    bed = run / "splits.bed"
    intervals = tuple(row.interval for row in read_bed(bed, store) if row.name == split)
    if not intervals:
        raise InputError(f"{bed}: it has no interval called {split}; choose another --split")
    return WindowPlan(store, intervals, length, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders; the others are compared with the first")
    parser.add_argument("--genome", type=Path, required=True, help="FASTA or token store")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--length", type=int, default=16_384, help="bases a window")
    parser.add_argument("--windows", type=int, default=0, help="so many, evenly spread; default: all")
    parser.add_argument("--out", type=Path, default=Path("repeats"), help="folder")
    arguments = parser.parse_args()
    store = open_genome(arguments.genome)
    plan = held_out(arguments.runs[0], store, arguments.split, arguments.length)
    indices = evenly_spread(plan.epoch_size(0), arguments.windows)
    rows: list[Row] = []
    first = None
    for run in arguments.runs:
        own = sums(run, plan, indices)
        first = own if first is None else first
        rows += compare(run.name, own, first)
    write_rows(rows, arguments.out / "repeats.csv")
    write_atomically(arguments.out / "repeats.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
