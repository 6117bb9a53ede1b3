"""Tables of runs, for figures and to read: from the folders of fine-tuning runs, from summaries of pretraining."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars


def accuracy_rows(runs: Iterable[tuple[str, Path]]) -> list[dict[str, str]]:
    """(what to call the model, run folder) → rows of `pictures.accuracy_by_length`: model, length, accuracy, low, high.

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


def result_rows(summaries: Mapping[str, Mapping[str, Any]]) -> "polars.DataFrame":
    """Name -> summary.json of a pretraining run, as a row a run: run, the bits per base of its last and its best
    validation and of the best Markov model (null where there are none), and millions of bases seen."""
    import polars

    def scaled(summary: Mapping[str, Any], key: str, unit: float) -> float | None:
        return None if summary.get(key) is None else summary[key] / unit

    columns = {
        "last": ("validation_bits_per_base", 1),
        "best": ("best_validation_bits_per_base", 1),
        "Markov": ("markov_bits_per_base", 1),
        "Mbases": ("tokens", 1e6),
    }
    rows = {column: [scaled(each, *of) for each in summaries.values()] for column, of in columns.items()}
    return polars.DataFrame({"run": list(summaries), **rows})
