"""How much context does a trained model use? Bits per base of the same held-out bases, by the bases it may read before.

    python pipelines/context_bits.py MODEL [MODEL ...] --genome FASTA --regions BED [--lengths 256 1024 4096 16384]

MODEL is a run folder, checkpoint or bundled model; --regions are intervals that none of them was trained on. Windows of
twice the longest length are spread over them; their second halves are scored as in `length_quality.py`: in tiles of
each length, of which the last half counts, so that each base has between half a tile and a whole one before it.

Differences are from the shortest length of the same model, and from the next shorter one; their 95 % intervals come
from resampling windows. What is scored is kept in --out with the digest of the weights, and not scored again.
Writes results.csv, results.md and results.png.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from length_quality import difference, in_tiles, sums
from measured import Row, markdown, write_rows

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.formats import read_card
from dnamamba.genome.bed import read_intervals
from dnamamba.genome.store import open_genome
from dnamamba.genome.windows import WindowPlan
from dnamamba.inference.load import load_for_inference
from dnamamba.outputs import whole_file, write_atomically
from dnamamba.pictures.figures import save_png
from dnamamba.training.data import evenly_spread


def score(model: Path, length: int, windows: Sequence[np.ndarray], kept: Path) -> np.ndarray:
    """(windows, 2): bits and bases of the second half of each window, read in tiles of `length`."""
    card = read_card(model)
    facts = f"{card['provenance']['weights_sha256']} {length} {len(windows)} {sum(int(w.sum()) for w in windows)}"
    if kept.exists():
        with np.load(kept) as file:
            if str(file["facts"]) == facts:
                scored: np.ndarray = file["scored"]
                return scored
    inference = load_for_inference(model)
    scored = np.concatenate([sums(in_tiles(inference, window, length)[None]) for window in windows])
    kept.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(kept, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, scored=scored, facts=facts)
    return scored


def rows_of(name: str, scored: dict[int, np.ndarray]) -> list[Row]:
    """A row a length, ascending."""
    rows: list[Row] = []
    lengths = sorted(scored)
    for length, before in zip(lengths, [lengths[0], *lengths], strict=False):
        own = scored[length]
        row: Row = {"model": name, "length": length, "bases": int(own[:, 1].sum()), "windows": len(own)}
        row["bits_per_base"] = own[:, 0].sum() / own[:, 1].sum()
        for label, other in (("from_shortest", scored[lengths[0]]), ("from_before", scored[before])):
            change, low, high = difference(own, other)
            row |= {label: change, f"{label}_low": low, f"{label}_high": high}
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""

    def change(row: Row, label: str) -> str:
        return f"{row[label]:+.4f} [{row[f'{label}_low']:+.4f}, {row[f'{label}_high']:+.4f}]"

    head = ["model", "length", "bases", "bits per base", "from the shortest", "from the next shorter"]
    lines = [[row["model"], f"{row['length']:,}", f"{row['bases']:,}", f"{row['bits_per_base']:.4f}"] for row in rows]
    changes = [[change(row, "from_shortest"), change(row, "from_before")] for row in rows]
    return markdown(head, [[*line, *own] for line, own in zip(lines, changes, strict=True)])


def draw(rows: Sequence[Row], path: Path) -> None:
    """What context takes off the bits, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        own = [row for row in rows if row["model"] == model]
        values = np.array([[row["from_shortest" + end] for end in ("", "_low", "_high")] for row in own])
        ends = np.abs(values[:, 1:] - values[:, :1]).T
        label = f"{model}: {own[0]['bits_per_base']:.3f} bits at {own[0]['length']:,}"
        beside = [row["length"] * 1.06**number for row in own]  # so that intervals do not hide each other
        axes.errorbar(beside, values[:, 0], ends, marker="o", markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bases a tile, of which the last half counts", ylabel="bits per base, from the shortest")
    axes.set_title("the same bases with more context; 95 % intervals")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    save_png(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--genome", type=Path, required=True, help="FASTA or token store")
    parser.add_argument("--regions", type=Path, required=True, help="BED of held-out intervals")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--windows", type=int, default=32, help="of twice the longest length, evenly spread")
    parser.add_argument("--out", type=Path, default=Path("runs/context_bits"), help="folder")
    given = parser.parse_args(arguments)
    longest = max(given.lengths)
    if any(length & (length - 1) or length < 2 for length in given.lengths):
        raise InputError("--lengths: all must be powers of two")
    if len({model.name for model in given.models}) < len(given.models):
        raise InputError("models: their folders need names of their own")
    store = open_genome(given.genome)
    plan = WindowPlan(store, tuple(read_intervals(given.regions, store)), 2 * longest, seed=0)
    chosen = evenly_spread(plan.epoch_size(0), given.windows)
    windows = [np.array(plan.read(0, number)) for number in chosen.tolist()]
    rows: list[Row] = []
    for model in given.models:
        scored = {}
        for length in sorted(given.lengths):
            began = time.monotonic()
            scored[length] = score(model, length, windows, given.out / model.name / f"{length}.npz")
            print(f"{model.name}  {length:,}  {time.monotonic() - began:.0f} s", flush=True)
        rows += rows_of(model.name, scored)
        write_rows(rows, given.out / "results.csv")
        write_atomically(given.out / "results.md", table(rows))
    draw(rows, given.out / "results.png")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(cli.run(main))
