"""How far back does a model use a copy? The public benchmark recall-bench (0.2.1) on trained models.

    pip install recall-bench==0.2.1
    python pipelines/recall_benchmark.py RUN [RUN …] --genome FASTA [--out recall] [--trials 128]

A real segment of 256 bases is repeated after d bases of held-out background. The copy advantage is the cross-entropy of
the second copy after unrelated bases less that after the first, in nats a base: 0 for a model that does not notice. The
first copy is exact, with 5 % of its bases substituted, or reverse-complemented. The background is the test split of
each run (its splits.bed), or --background BED. Points that are done are kept in FOLDER/NAME, in a file for its weights
and the background; the table and the picture are recall.csv, recall.md and recall.png.
"""

import argparse
import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import recall_bench
from torch import Tensor

from dnamamba.alphabet import decode, encode
from dnamamba.errors import InputError
from dnamamba.genome.bed import read_bed
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.inference.load import Inference, load_for_inference
from dnamamba.model.language_model import LanguageModel
from dnamamba.outputs import write_atomically
from dnamamba.pictures.figures import save_png

VARIANTS: dict[str, dict[str, Any]] = {
    "exact": {},
    "5 % substituted": {"variant": "mutate", "mut_rate": 0.05},
    "reverse complement": {"variant": "revcomp"},
}
LONGEST = 1 << 20
"""Bases of a window at most"""
Row = dict[str, Any]


def background(store: TokenStore, bed: Path) -> recall_bench.DNABackground:
    """The sequences of a BED file's intervals; where some are called test, of these alone."""
    rows = read_bed(bed, store)
    tests = [row for row in rows if row.name == "test"]
    return recall_bench.DNABackground.from_strings([decode(store.read(*row.interval)).upper() for row in tests or rows])


def kept_as(inference: Inference[LanguageModel], background: recall_bench.DNABackground) -> str:
    """The name of the file of finished points, which the benchmark takes up again: of other weights or another
    background they are others."""
    digest = hashlib.sha256(inference.provenance["weights_sha256"].encode())
    digest.update(background.seq)
    digest.update(background.off)
    return f"copy-{digest.hexdigest()[:12]}.json"


def adapter(inference: Inference[LanguageModel], name: str) -> recall_bench.CallableModel:
    """A model as the benchmark calls it."""

    def logits(ids: Tensor) -> Tensor:
        with inference.autocast():
            found = inference.model(ids).logits
        assert found is not None
        return found

    return recall_bench.CallableModel(
        logits, lambda bases: encode(bases).tolist(), max_ctx=LONGEST, name=name, device=str(inference.device)
    )


def measure(run: Path, store: TokenStore, arguments: argparse.Namespace) -> list[Row]:
    """A row a variant and distance."""
    inference = load_for_inference(run)
    held_out = background(store, arguments.background or run / "splits.bed")
    model = adapter(inference, run.name)
    out = arguments.out / run.name / kept_as(inference, held_out)
    rows = []
    for variant in arguments.variants:
        points = recall_bench.evaluate(
            model, arguments.distances, trials=arguments.trials, background=held_out, out=out, **VARIANTS[variant]
        )
        for point in points:
            if point["status"] != "ok":
                raise InputError(f"{run}: d = {point['dist']}: {point['status']}")
            figures = {key: round(point[key], 4) for key in ("copy_advantage", "ci_lo", "ci_hi")}
            rows.append({"model": run.name, "variant": variant, "distance": point["dist"], **figures, "n": point["n"]})
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row a model and variant, a column a distance."""
    distances = list(dict.fromkeys(row["distance"] for row in rows))
    lines = [
        "| model | first copy | " + " | ".join(f"{d:,}" for d in distances) + " |",
        "|---" * (len(distances) + 2) + "|",
    ]
    for model, variant in dict.fromkeys((row["model"], row["variant"]) for row in rows):
        found = {row["distance"]: row for row in rows if (row["model"], row["variant"]) == (model, variant)}
        cells = [
            f"{row['copy_advantage']:.3f} ({row['ci_lo']:.3f}–{row['ci_hi']:.3f})"
            for row in map(found.get, distances)
            if row
        ]
        lines.append(f"| {model} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel a variant, a line a model with its 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, panels = plt.subplots(
        1, len(variants), figsize=(4.5 * len(variants), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, variant in zip(panels[0], variants, strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            own = [row for row in rows if (row["model"], row["variant"]) == (model, variant)]
            value = [row["copy_advantage"] for row in own]
            low = [row["copy_advantage"] - row["ci_lo"] for row in own]
            high = [row["ci_hi"] - row["copy_advantage"] for row in own]
            panel.errorbar([row["distance"] for row in own], value, (low, high), marker="o", markersize=3, label=model)
        panel.set(title=variant, xlabel="bases between the copies")
        panel.set_xscale("log", base=2)
        panel.axhline(0, color="0.7", linewidth=0.8)
    panels[0][0].set_ylabel("copy advantage (nats a base)")
    panels[0][0].legend(fontsize=8)
    save_png(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or checkpoints with --background")
    parser.add_argument("--genome", type=Path, required=True, help="FASTA or token store")
    parser.add_argument("--background", type=Path, help="BED; default: the test split of each run")
    parser.add_argument("--distances", type=int, nargs="+", default=[256, 1024, 4096, 16384, 65536])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("recall"), help="folder")
    arguments = parser.parse_args()
    if len({run.name for run in arguments.runs}) < len(arguments.runs):
        raise InputError("two of the runs have the same name, by which the table knows them; rename a folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = open_genome(arguments.genome)
    rows = [row for run in arguments.runs for row in measure(run, store, arguments)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(arguments.out / "recall.csv", text.getvalue())
    write_atomically(arguments.out / "recall.md", table(rows))
    draw(rows, arguments.out / "recall.png")
    print(table(rows))


if __name__ == "__main__":
    main()
