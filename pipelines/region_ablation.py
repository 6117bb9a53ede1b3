"""What sampling and weights by region class, several species, length and both sides give: an ablation at equal budget.

    python pipelines/region_ablation.py prepare --data DNAMAMBA_TEST_DATA --out runs/regions/splits
    python pipelines/show_classification.py pipelines/region_ablation.yaml --minutes 8 --jobs_per_gpu 6
    python pipelines/region_ablation.py score --data DNAMAMBA_TEST_DATA --runs runs/regions [--sets brca1 clinvar bard1]
    python pipelines/region_ablation.py table --data DNAMAMBA_TEST_DATA --runs runs/regions
    python pipelines/region_ablation.py differences --data DNAMAMBA_TEST_DATA --runs runs/regions [--against whole]

Each command may be stopped and started again: what is finished stays.

`prepare` writes the classes of human chr20 as BED (`chr20_regions.py`): each run's validation_by_class.csv has the bits
of the three bases of codons and of introns' ends. Of the other genomes in --data it makes a mixture with chr20: compact
ones with their open reading frames of 100 codons as CDS, fly, worm and aligned vertebrates as they are; chicken's
aligned blocks become one record.

`score` runs `variant_benchmarks.py` on each finished run, zero shot and a linear probe by gene. None of the variants
lies on chr20, but ClinVar's records there, which are left out; all models read 512 bases. `table` writes results.csv,
a row a run, and results.md and, of scored runs, results.png, which join the seeds of a system. `differences` writes
differences.csv: how much higher each run's AUROC is than that of --against with the same seed, with its 95 % interval
from resampling the same positions, genes or segments for both.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from annotated_variants import write_gtf
from chr20_regions import CHROMOSOME, VALIDATION, chr20_regions
from make_human_splits import group, read_records, sequences_of, split_groups, write_records
from measured import write_rows
from variant_benchmarks import scores_of
from variant_sets import SETS, chosen

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.finetuning.tasks.variant_report import gained
from dnamamba.genome.genes import open_reading_frames
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.outputs import write_atomically

CHR20 = "human_chr20_GRCh37.fa.gz"
COMPACT = {
    "yeast": "yeast_sacCer3.fa.gz",
    "ecoli": "ecoli_K12_MG1655.fa.gz",
    "ustilago": "ustilago_maydis.fa.gz",
    "plasmodium": "plasmodium_falciparum_3D7.fa.gz",
}
WHOLE = {
    "fly": "fly_chr2R_dm3.fa.gz",
    "worm": "worm_chrX_ce2.fa.gz",
    "chicken": "galGal3_aligned_to_hg19_chr4.fa.gz",
    **{name: f"vertebrate8_chr16/{name}.fa.gz" for name in ("rheMac3", "mm10", "rn6", "bosTau8", "canFam3", "monDom5")},
}
BLOCKS = ("chicken",)
HUMAN_SHARE = 0.7
MARGIN, HELD_OUT = 131_072, (0.04, 0.15)
"""Bases between groups of disease genes; shares of the groups in validation and test"""
MEASURES = [
    ("brca1", "LOF against the rest"),
    ("brca1", "LOF against the rest, Missense"),
    ("brca1", "nonsense against synonymous"),
    ("brca1", "splice site against intron"),
    ("clinvar", "pathogenic against benign"),
    ("clinvar", "pathogenic against benign, missense"),
    ("clinvar", "pathogenic against benign, splice_region"),
    ("clinvar", "pathogenic against benign, utr"),
    ("clinvar", "nonsense against synonymous"),
    ("clinvar", "splice site against intron"),
    ("bard1", "abnormal against normal, SNV"),
    ("bard1", "abnormal against normal, missense_variant"),
    ("bard1", "abnormal against normal, splicing_variant"),
    ("bard1", "abnormal against normal, deletions of 3"),
    ("bard1", "nonsense against synonymous"),
    ("bard1", "splice site against intron"),
]
PARTS = ("auroc", "auroc_low", "auroc_high", "auprc")
SCORES = {"-llr": "zero shot", "probe": "probe"}
CLASSES = ("codon1", "codon2", "codon3", "donor", "acceptor", "exon", "promoter", "intron", "intergenic", "repeat")


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    {"prepare": prepare, "score": score, "table": table, "differences": differences}[options.what](options)


# What is trained on.


def prepare(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "chr20.regions.bed", chr20_regions(options.data / "annotation"))
    write_atomically(options.out / "chr20.validation.bed", f"{CHROMOSOME}\t0\t{VALIDATION}\n")
    genomes = options.data / "genomes"
    others: dict[str, dict[str, Any]] = {}
    for name, file in (COMPACT | WHOLE).items():
        path = genomes / file
        if not path.is_file():
            print(f"{name}: no {path}; left out")
            continue
        others[name] = {"genome": str(joined(path, options.out / f"{name}.fa") if name in BLOCKS else path.absolute())}
        if name in COMPACT:
            bed = options.out / f"{name}.orfs.bed"
            if not bed.exists():
                write_atomically(bed, orfs(path, options.out))
            others[name] |= {"regions": bed.name, "region_shares": ["CDS"]}
    human = {
        "genome": str((genomes / CHR20).absolute()),
        "validation": "chr20.validation.bed",
        "regions": "chr20.regions.bed",
        "region_shares": ["CDS", "splice", "exon", "promoter"],
        "weight": HUMAN_SHARE,
    }
    share = (1 - HUMAN_SHARE) / max(len(others), 1)
    mixture = {"chr20": human} | {name: each | {"weight": share} for name, each in others.items()}
    write_atomically(options.out / "species.yaml", yaml.safe_dump(mixture, sort_keys=False))
    half = {"weight": HUMAN_SHARE / 2}
    more = {"chr20": human | half, "genes": disease_genes(options.data, options.out) | half}
    write_atomically(options.out / "genes.yaml", yaml.safe_dump(more | mixture | more, sort_keys=False))


def disease_genes(data: Path, out: Path) -> dict[str, Any]:
    """The LRG records of `make_human_splits`: what they train on, with the classes of their transcripts."""
    genomes = data / "genomes"
    fasta = (genomes / "human_LRG_disease_genes_GRCh37.fa.gz").absolute()
    annotation = write_gtf(data, out / "genes.gtf")
    split_of = split_groups(group(read_records(genomes / "human_LRG_intervals_GRCh37.bed"), MARGIN), *HELD_OUT)
    found: dict[str, Any] = {"genome": str(fasta), "contigs": "LRG_*"}
    store = open_genome([fasta])
    for split in ("train", "validation", "test"):
        own = [each for each in store.contigs if split_of.get(each.name.partition("|")[0]) == split]
        write_atomically(out / f"genes.{split}.bed", "".join(f"{each.name}\t0\t{each.length}\n" for each in own))
        found[split] = f"genes.{split}.bed"
    return found | {"regions": annotation.name, "region_shares": ["CDS", "splice", "5UTR", "3UTR", "promoter"]}


def joined(path: Path, out: Path) -> Path:
    """Aligned blocks, shorter than windows and with names that come twice, as one record: an N between two of them."""
    write_records(out, {out.stem: [sequence for _, sequence in sequences_of(path)]})
    return out.absolute()


def orfs(path: Path, folder: Path) -> str:
    store = open_genome([path], folder / f"{path.name}.dnamamba")
    genes = [gene for c in store.contigs for gene in open_reading_frames(store, Interval(c.name, 0, c.length))]
    return "".join(f"{gene.contig}\t{gene.start}\t{gene.end}\tCDS\n" for gene in genes)


# What is measured.


def score(options: argparse.Namespace) -> None:
    """The variants of each finished run; GPUs and CPUs may take turns, as scores are kept."""
    for run in finished(options.runs):
        program, out = str(Path(__file__).with_name("variant_benchmarks.py")), options.runs / "scores" / run.name
        command = [sys.executable, program, options.only, "--checkpoint", str(run), "--data", str(options.data)]
        command += ["--out", str(out), "--context", str(options.context), "--probe", str(options.context)]
        command += ["--without", CHROMOSOME, "--sets", *options.sets]
        print(run.name, flush=True)
        subprocess.run(command, check=True)


def finished(runs: Path) -> list[Path]:
    found = sorted(path.parent for path in runs.glob("*/summary.json"))
    if not found:
        raise InputError(f"{runs}: no finished run in it")
    return found


def table(options: argparse.Namespace) -> None:
    """The table and the picture."""
    rows = []
    for run in finished(options.runs):
        row: dict[str, Any] = {"run": run.name, "tokens": json.loads((run / "summary.json").read_text())["tokens"]}
        with (run / "validation_by_class.csv").open() as file:
            validation = list(csv.DictReader(file))
        last = [each for each in validation if each["step"] == validation[-1]["step"]]
        row |= {f"bits {each['class']}": float(each["bits_per_base"]) for each in last if each["group"] == "region"}
        results = options.runs / "scores" / run.name / "results.csv"
        if results.is_file():
            with results.open() as file:
                for each in csv.DictReader(file):
                    key = each["set"], each["contrast"]
                    if key in MEASURES and each["score"] in SCORES and each["auroc"]:
                        name = f"{each['set']}: {each['contrast']}, {SCORES[each['score']]}"
                        row |= {f"{name}, {part}": float(each[part]) for part in PARTS}
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (options.runs / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    systems = by_system(rows)
    write_atomically(options.runs / "results.md", markdown(systems))
    written = f"written to {options.runs / 'results.csv'}, results.md"
    if any(name.endswith("auroc") for row in systems for name in row):
        draw(systems, options.runs / "results.png")
        written += " and results.png"
    print(written)


def differences(options: argparse.Namespace) -> None:
    """A row a run, measure and kind of score."""
    rows: list[dict[str, Any]] = []
    runs = finished(options.runs)
    for name in options.sets:
        variants = chosen(SETS[name](options.data), None, [CHROMOSOME])
        contrasts = [each for each in variants.contrasts if (name, each.name) in MEASURES]
        for run in runs:
            system, _, seed = run.name.rpartition("-")
            paths = [scores_of(options.runs / "scores" / f"{each}-{seed}", name) for each in (options.against, system)]
            if system == options.against or not all(path.is_file() for path in paths):
                continue
            with np.load(paths[0]) as before, np.load(paths[1]) as after:
                scores = {"zero shot": (-before["llr"], -after["llr"])}
                if "probe" in before.files and "probe" in after.files:
                    scores["probe"] = before["probe"], after["probe"]
            for contrast in contrasts:
                for kind, pair in scores.items():
                    used = contrast.used & np.isfinite(pair[0]) & np.isfinite(pair[1])
                    values = (contrast.positive[used], *(each[used] for each in pair), variants.group[used])
                    row = {"run": run.name, "against": options.against, "set": name, "contrast": contrast.name}
                    rows.append(row | {"score": kind} | {key: round(v, 4) for key, v in gained(*values).items()})
    if not rows:
        raise InputError(f"{options.runs}: no scored runs of {options.against} and another system with the same seed")
    write_rows(rows, options.runs / "differences.csv")
    print(f"written to {options.runs / 'differences.csv'}")


def by_system(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ in the seed, the number at their names' ends, as one row: means, and the widest interval."""
    found = []
    for system in dict.fromkeys(row["run"].rpartition("-")[0] for row in rows):
        own = [row for row in rows if row["run"].rpartition("-")[0] == system]
        row: dict[str, Any] = {"run": f"{system} ({len(own)})"}
        for name in dict.fromkeys(name for each in own for name in each if name != "run"):
            values = [each[name] for each in own if name in each]
            of_seeds = min if name.endswith("_low") else max if name.endswith("_high") else mean
            row[name] = of_seeds(values)
        found.append(row)
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """AUROC with interval and AUPRC, zero shot and probe, a line a measure and a column a system."""
    runs = [row["run"] for row in rows]
    lines = ["| measure | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for name in CLASSES:
        if any(f"bits {name}" in row for row in rows):
            cells = [f"{row[f'bits {name}']:.4f}" if f"bits {name}" in row else "" for row in rows]
            lines.append(f"| bits a base, {name} | " + " | ".join(cells) + " |")
    for data, contrast in MEASURES:
        for kind in SCORES.values():
            key = f"{data}: {contrast}, {kind}"
            if any(f"{key}, auroc" in row for row in rows):
                lines.append(f"| {key} | " + " | ".join(cell(row, key) for row in rows) + " |")
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any], key: str) -> str:
    if f"{key}, auroc" not in row:
        return ""
    auroc, low, high, auprc = (row[f"{key}, {part}"] for part in PARTS)
    return f"{auroc:.3f} [{low:.3f}, {high:.3f}], {auprc:.3f}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel zero shot and one of the probe: a point a system on each line of a measure, with its interval."""
    from matplotlib.figure import Figure

    from dnamamba.pictures.figures import save_png

    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharey=True)
    for panel, kind in zip(panels, SCORES.values(), strict=True):
        for number, row in enumerate(rows):
            for line, (data, contrast) in enumerate(MEASURES):
                key = f"{data}: {contrast}, {kind}"
                if f"{key}, auroc" in row:
                    value, low, high = (row[f"{key}, {part}"] for part in ("auroc", "auroc_low", "auroc_high"))
                    at = line + 0.7 * (number / max(len(rows) - 1, 1) - 0.5)
                    label = row["run"] if line == 0 else None
                    panel.errorbar(value, at, xerr=[[max(value - low, 0)], [max(high - value, 0)]], fmt="o", ms=3,
                                   color=f"C{number % 10}", label=label, lw=0.8)  # fmt: skip
        panel.axvline(0.5, color="tab:gray", lw=0.8, ls="--")
        panel.set(title=kind, xlabel="AUROC, 95 % interval")
        panel.grid(alpha=0.3)
    panels[0].set_yticks(range(len(MEASURES)), [f"{data}: {contrast}" for data, contrast in MEASURES], fontsize=8)
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=8)
    save_png(figure, path)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "score", "table", "differences"])
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/, annotation/ and the variants")
    parser.add_argument("--out", type=Path, help="prepare: folder for BED files and the mixture")
    parser.add_argument("--runs", type=Path, help="all others: folder of the runs")
    parser.add_argument("--sets", nargs="+", default=["brca1", "clinvar", "bard1"])
    parser.add_argument(
        "--only", choices=["quality", "scores"], default="quality", help="score: scores leaves the tables"
    )
    parser.add_argument("--against", default="whole", help="differences: the system that others are compared with")
    parser.add_argument("--context", type=int, default=512, help="score: bases of all models' windows")
    options = parser.parse_args(arguments)
    if (options.out if options.what == "prepare" else options.runs) is None:
        parser.error(f"{options.what} needs {'--out' if options.what == 'prepare' else '--runs'}")
    return options


if __name__ == "__main__":
    sys.exit(cli.run(main))
