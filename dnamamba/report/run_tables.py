"""Tables for figures from the folders of fine-tuning runs."""

import json
from collections.abc import Iterable
from pathlib import Path


def accuracy_rows(runs: Iterable[tuple[str, Path]]) -> list[dict[str, str]]:
    """(what to call the model, run folder) → rows of `report.accuracy_by_length`: model, length, accuracy, low, high.

    The accuracy on test, its mean over seeds, and its interval where the run has one; the simple models of the run (a
    k-mer regression, the composition; not the majority, which is chance) are rows, too, once for each length.
    """
    rows: list[dict[str, str]] = []
    seen = set()
    for name, folder in runs:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        length = str(summary["length"])
        interval = summary.get("test_intervals", {}).get("accuracy") or {}
        ends = {end: "" if interval.get(end) is None else str(interval[end]) for end in ("low", "high")}
        rows.append({"model": name, "length": length, "accuracy": str(summary["test"]["accuracy"]["mean"]), **ends})
        for simple, values in summary.get("baselines", {}).items():
            if simple != "majority" and "accuracy" in values and (simple, length) not in seen:
                seen.add((simple, length))
                rows.append(
                    {"model": simple, "length": length, "accuracy": str(values["accuracy"]), "low": "", "high": ""}
                )
    return rows
