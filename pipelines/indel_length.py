"""How scores of neutral variants drift with their length, and what is left of it in percentiles.

    python pipelines/indel_length.py --checkpoint DIR --genome genome.fa --out FOLDER [--context N] [--draws 100]

Random substitutions, deletions and insertions of up to 50 bases are drawn from the genome twice: 200 of each kind and
length that percentiles are made of (`dnamamba score --percentile`; those in the checkpoint's folder, if any), and
--draws others that are measured here. Leaves lengths.csv (quantiles by kind and length) and lengths.png: the score
against length before, the percentile after. Without bias the percentiles' median is 0.5 at every length, and a tenth of
them is below 0.1.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from dnamamba.analysis.variants.neutral import classes_of, neutral_scores, random_alleles
from dnamamba.analysis.variants.plan import plan_for
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference

QUANTILES = (0.1, 0.5, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--genome", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--store", type=Path, help="where the genome's token store lies")
    parser.add_argument("--context", type=int)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--no_picture", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    inference = load_for_inference(arguments.checkpoint, "auto", "fp32")
    store = open_genome([arguments.genome], arguments.store)
    plan = plan_for(inference, context=arguments.context)
    neutral = neutral_scores(inference, store, plan)
    alleles = random_alleles(store, arguments.draws, seed=1)
    scores = plan.score(inference, store, alleles, None)
    llr = (scores.forward.llr + scores.reverse.llr) / 2
    after = (scores.forward.after + scores.reverse.after) / 2
    percentile, names = neutral.percentile(alleles, llr), np.array(classes_of(alleles))
    rows = []
    for name in dict.fromkeys(names.tolist()):
        kind, longest = name.split()
        row: dict[str, object] = {"kind": kind, "longest": int(longest), "variants": int((names == name).sum())}
        for value, what in ((llr, "llr"), (after, "after"), (percentile, "percentile")):
            found = np.nanquantile(value[names == name], QUANTILES)
            row |= {f"{what}_{int(100 * q)}": float(v) for q, v in zip(QUANTILES, found, strict=True)}
        rows.append(row | {"share_below_0.1": float((percentile[names == name] < 0.1).mean())})
    with (arguments.out / "lengths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if not arguments.no_picture:
        draw(rows, arguments.out / "lengths.png", str(arguments.checkpoint))
    print(f"written to {arguments.out}")


def draw(rows: list[dict[str, object]], path: Path, title: str) -> None:
    """Medians and the middle 80 % against length: of the score, and of its percentile."""
    from matplotlib.figure import Figure

    from dnamamba.pictures.figures import save_png

    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"random variants, {title}")
    shown = {"llr": "before: log-likelihood ratio, nats", "percentile": "after: percentile"}
    for panel, (what, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        for number, kind in enumerate(("deletion", "insertion")):
            own = [row for row in rows if row["kind"] == kind]
            x = [row["longest"] for row in own]
            low, middle, high = ([row[f"{what}_{int(100 * q)}"] for row in own] for q in QUANTILES)
            panel.plot(x, middle, marker="o", color=f"C{number}", label=f"{kind}, median and middle 80 %")
            panel.fill_between(x, low, high, color=f"C{number}", alpha=0.15)
        if what == "percentile":
            for level in QUANTILES:
                panel.axhline(level, color="tab:gray", lw=0.8, ls="--")
        lengths = sorted({row["longest"] for row in rows})
        panel.set(xscale="log", xlabel="bases, at most", ylabel=label)
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    save_png(figure, path)


if __name__ == "__main__":
    main()
