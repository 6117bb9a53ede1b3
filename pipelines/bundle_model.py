"""Make a trained model one that comes with the package.

    python pipelines/bundle_model.py --checkpoint RUN --name NAME --about TEXT --licence TEXT \\
        [--results FOLDER ... --context N] [--run FOLDER] [--recall FILE]

Writes `dnamamba/bundled/NAME`: matrices in bf16, at most 16 MB. Its card is the run's own, without folders of the
machine that it was trained on, and with what `variant_benchmarks.py quality` left in --results: how well the zero-shot
scores of this model, and a linear probe, rank variants in windows of --context bases, over all and by consequence.
Where RUN is a run folder with validation_by_class.csv, the card has the bits of each class of regions too; where it is
one of a mixture, those of what was held out of each genome, beside the best Markov model's. --run names that folder
where the weights lie elsewhere. --recall is recall.csv of `recall_benchmark.py`: what this model gains from copies.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from region_ablation import MEASURES

from dnamamba import bundled, cli
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import load_checkpoint, save_checkpoint

MOST_BYTES = 16_000_000
"""Of a bundled model"""
SCORES = {"ranking": "-llr", "probe_ranking": "probe"}
"""In a card → the score of `variant_benchmarks.py` whose ranking it reports"""
NUMBERS = {"auroc": "auroc", "low": "auroc_low", "high": "auroc_high"}
"""In a card → in results.csv"""
COPIES = {"nats": "copy_advantage", "low": "ci_lo", "high": "ci_hi"}
"""In a card → in recall.csv"""
SETS = {
    "brca1": "BRCA1 saturation editing",
    "clinvar": "ClinVar 2017",
    "bard1": "BARD1 saturation editing",
    "yeast": "changes of yeast's reading frames",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder or checkpoint")
    parser.add_argument("--name", required=True)
    parser.add_argument("--about", required=True, help="one sentence: what it is for")
    parser.add_argument("--licence", required=True, help="the data's names and licences")
    parser.add_argument("--results", type=Path, nargs="+", help="folders that variant_benchmarks.py quality wrote")
    parser.add_argument("--context", type=int, help="that the variants of --results were scored with")
    parser.add_argument("--run", type=Path, help="run folder with the tables of its validation; default: --checkpoint")
    parser.add_argument("--recall", type=Path, help="recall.csv of this model, by recall_benchmark.py")
    options = parser.parse_args(arguments)
    run = options.run or options.checkpoint
    folder = bundled.FOLDER / options.name
    model, provenance = load_checkpoint(options.checkpoint)
    said: dict[str, Any] = {"about": options.about, "licence": options.licence}
    if options.results is not None:
        tables = [folder / "results.csv" for folder in options.results]
        for name, score in SCORES.items():
            sets = {data: found for table in tables for data, found in ranking(table, score).items()}
            said |= {name: sets} if sets or name == "ranking" else {}
        said |= {"ranking_context": options.context} if options.context else {}
    said |= bits_of_classes(run / "validation_by_class.csv") | bits_of_genomes(run / "summary.json")
    said |= {"copy_advantage": copy_advantage(options.recall)} if options.recall else {}
    save_checkpoint(model, folder, without_folders(provenance) | said, dtype="bf16")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size:,} bytes")
    if size > MOST_BYTES:
        raise InputError(f"{folder}: {size:,} bytes, at most {MOST_BYTES:,} are wanted; remove it")


def bits_of_classes(path: Path) -> dict[str, Any]:
    """The last validation's bits a base by class of regions, as a card holds them; nothing without the table."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == "region"]
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    return {"bits_by_region": {row["class"]: round(float(row["bits_per_base"]), 4) for row in last}} if last else {}


def bits_of_genomes(path: Path) -> dict[str, Any]:
    """The last validation's bits a base by genome, as a card holds them, of a mixture that a Markov model was fitted
    to; else nothing."""
    genomes = json.loads(path.read_text("utf-8")).get("genomes", {}) if path.is_file() else {}
    names = {"model": "validation_bits_per_base", "markov": "markov_bits_per_base"}
    found = {
        genome: {name: round(bits[key], 4) for name, key in names.items()}
        for genome, bits in genomes.items()
        if all(bits.get(key) is not None for key in names.values())
    }
    return {"bits_by_genome": found} if found else {}


def copy_advantage(path: Path) -> dict[str, list[dict[str, float]]]:
    """First copy (exact, substituted, …) → by the bases between the copies: nats a base and their 95 % interval."""
    found: dict[str, list[dict[str, float]]] = {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(models := {row["model"] for row in rows}) != 1:
        raise InputError(f"{path}: {len(models)} models; leave the rows of one")
    for row in rows:
        numbers = {name: float(row[key]) + 0.0 for name, key in COPIES.items()}  # + 0.0: no minus zero
        found.setdefault(row["variant"], []).append({"distance": int(row["distance"]), **numbers})
    return found


def ranking(path: Path, score: str) -> dict[str, list[dict[str, Any]]]:
    """Set → AUROC and its 95 % interval of each contrast, as a card holds them."""
    found: dict[str, list[dict[str, Any]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            is_shown = (row["set"], row["contrast"]) in MEASURES or row["set"] == "yeast"
            if row["score"] == score and row["auroc"] and is_shown:
                numbers = {name: round(float(row[key]), 4) for name, key in NUMBERS.items()}
                counts = {name: int(row[name]) for name in ("positives", "negatives")}
                found.setdefault(SETS.get(row["set"], row["set"]), []).append(
                    {"variants": row["contrast"], **numbers, **counts}
                )
    return found


def without_folders(value: Any) -> Any:
    """Any JSON in which paths have become the names of their files."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


if __name__ == "__main__":
    sys.exit(cli.run(main))
