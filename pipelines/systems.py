"""The results of a workflow that pretrains several systems on the same data: a row a system, at its best learning
rate, which the validation chooses. `collect.py` calls this for workflows with `systems`."""

import csv
import io
import json
import math
from pathlib import Path
from statistics import median

from plan import SUMMARY, Plan
from safetensors import safe_open

from dnamamba.outputs import write_atomically

Row = dict[str, str]
HEADS = {
    "system": "system",
    "parameters": "parameters",
    "mtoken_per_second": "Mtoken/s",
    "peak_memory_gib": "peak GiB",
    "learning_rate": "learning rate",
    "bits_per_base": "bits per base",
}


def collect_systems(plan: Plan) -> list[Row]:
    """Reads what is finished, writes results.csv and results.md, returns the rows in the order of the systems."""
    done = [run for run in plan.runs if run.facts and (plan.folder(run) / run.result).exists()]
    rates = list(dict.fromkeys(run.facts["learning_rate"] for run in plan.runs if run.facts))
    rows = []
    for system in dict.fromkeys(run.facts["system"] for run in done):
        bits = {
            run.facts["learning_rate"]: (_bits(plan.folder(run)), plan.folder(run))
            for run in done
            if run.facts["system"] == system
        }
        rate = min(bits, key=lambda rate: bits[rate][0])
        best, folder = bits[rate]
        row = {"system": system, **_facts(folder), "learning_rate": rate, "bits_per_base": f"{best:.4f}"}
        rows.append(row | {f"bits_at_{rate}": f"{bits[rate][0]:.4f}" if rate in bits else "" for rate in rates})
    heads = HEADS | {f"bits_at_{rate}": f"at {rate}" for rate in rates}
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = [list(heads.values()), ["---"] * len(heads), *([row[name] for name in heads] for row in rows)]
    grid = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    plan.out.mkdir(parents=True, exist_ok=True)
    write_atomically(plan.out / "results.csv", text.getvalue())
    write_atomically(plan.out / "results.md", grid)
    print(grid)
    if missing := [run.name for run in plan.runs if run.facts and run not in done]:
        print(f"not finished: {', '.join(missing)}")
    return rows


def _bits(folder: Path) -> float:
    return float(json.loads((folder / SUMMARY).read_text("utf-8"))["best_validation_bits_per_base"])


def _facts(folder: Path) -> Row:
    """Parameters of the checkpoint; the median rate of the rows of metrics.csv, and the largest memory."""
    with safe_open(folder / "checkpoints" / "best" / "model.safetensors", "numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    speeds = [float(row["tokens_per_second"]) for row in rows if row["tokens_per_second"]]
    memory = [float(row["peak_memory_gib"]) for row in rows if row["peak_memory_gib"]]
    return {
        "parameters": str(sum(map(math.prod, shapes))),
        "mtoken_per_second": f"{median(speeds) / 1e6:.2f}" if speeds else "",
        "peak_memory_gib": f"{max(memory):.1f}" if memory else "",
    }
