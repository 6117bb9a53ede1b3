"""The results of a workflow that pretrains several systems on the same data: a row a system, at its best learning
rate, which the validation chooses. `collect.py` calls this for workflows with `systems`."""

import csv
import json
from pathlib import Path
from statistics import median

from measured import Row, markdown, write_rows
from plan import SUMMARY, Plan
from scaling import draw, fits_table

from dnamamba.formats import load_checkpoint, read_card
from dnamamba.model.parameters import parameter_count, training_flops_per_token
from dnamamba.outputs import write_atomically

HEADS = {
    "system": "system",
    "size": "size",
    "parameters": "parameters",
    "training_flops": "operations",
    "mtoken_per_second": "Mtoken/s",
    "peak_memory_gib": "peak GiB",
    "learning_rate": "learning rate",
    "bits_per_base": "bits per base",
}


def collect_systems(plan: Plan) -> list[Row]:
    """Reads what is finished, writes results.csv and results.md, returns the rows in the order of the systems; with
    several sizes also the lines through them and results.png."""
    done = [run for run in plan.runs if run.facts and (plan.folder(run) / run.result).exists()]
    rates = sorted({run.facts["learning_rate"] for run in plan.runs if run.facts} - {""}, key=float)
    groups: dict[tuple[str, str], dict[str, tuple[float, Path]]] = {}
    for system in dict.fromkeys(run.facts["system"] for run in done):
        for run in done:
            if run.facts["system"] == system:
                bits = groups.setdefault((system, run.facts["size"]), {})
                rate = run.facts["learning_rate"] or _rate(plan.folder(run))
                bits[rate] = _bits(plan.folder(run)), plan.folder(run)
    rows = []
    for (system, size), bits in groups.items():
        rate = min(bits, key=lambda rate: bits[rate][0])
        best, folder = bits[rate]
        row = {"system": system, "size": size, **_facts(folder), "learning_rate": rate, "bits_per_base": f"{best:.4f}"}
        rows.append(row | {f"bits_at_{rate}": f"{bits[rate][0]:.4f}" if rate in bits else "" for rate in rates})
    heads = HEADS | {f"bits_at_{rate}": f"at {rate}" for rate in rates}
    has_sizes = any(size for _, size in groups)
    if not has_sizes:
        heads = {name: head for name, head in heads.items() if name not in ("size", "training_flops")}
        rows = [{name: row[name] for name in heads} for row in rows]
    grid = markdown(list(heads.values()), [[row[name] for name in heads] for row in rows])
    plan.out.mkdir(parents=True, exist_ok=True)
    if has_sizes:
        grid += "\n" + fits_table(rows)
        draw(rows, plan.out / "results.png")
    write_rows(rows, plan.out / "results.csv", list(heads))
    write_atomically(plan.out / "results.md", grid)
    print(grid)
    if missing := [run.name for run in plan.runs if run.facts and run not in done]:
        print(f"not finished: {', '.join(missing)}")
    return rows


def _bits(folder: Path) -> float:
    return float(json.loads((folder / SUMMARY).read_text("utf-8"))["best_validation_bits_per_base"])


def _rate(folder: Path) -> str:
    """That of a run whose workflow does not name it; nothing where the run does not say."""
    found = read_card(folder)["provenance"]["settings"].get("learning_rate")
    return "" if found is None else f"{float(found):g}"


def _facts(folder: Path) -> Row:
    """Parameters of the checkpoint, and operations of the forward and backward passes of all tokens; the median rate of
    the rows of metrics.csv, and the largest memory."""
    model, provenance = load_checkpoint(folder / "checkpoints" / "best")
    tokens = json.loads((folder / SUMMARY).read_text("utf-8"))["tokens"]
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    speeds = [float(row["tokens_per_second"]) for row in rows if row["tokens_per_second"]]
    memory = [float(row["peak_memory_gib"]) for row in rows if row["peak_memory_gib"]]
    return {
        "parameters": str(parameter_count(model)),
        "training_flops": f"{tokens * training_flops_per_token(model, provenance['settings']['length']):.4g}",
        "mtoken_per_second": f"{median(speeds) / 1e6:.2f}" if speeds else "",
        "peak_memory_gib": f"{max(memory):.1f}" if memory else "",
    }
