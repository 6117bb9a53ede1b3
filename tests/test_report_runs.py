"""Rows for the figure of accuracy by length from run folders."""

import json
from pathlib import Path

from dnamamba.report.accuracy_by_length import plot_accuracy_by_length
from dnamamba.report.run_tables import accuracy_rows


def test_rows_of_runs(tmp_path: Path) -> None:
    for length in (64, 256):
        for name in ("a", "b"):
            folder = tmp_path / f"{name}{length}"
            folder.mkdir()
            summary = {
                "length": length,
                "test": {"accuracy": {"mean": length / 1000, "std": None}},
                "test_intervals": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}} if name == "a" else {},
                "baselines": {"majority": {"accuracy": 0.3}, "3-mer": {"accuracy": length / 500}, "odd": {}},
            }
            (folder / "summary.json").write_text(json.dumps(summary))
    rows = accuracy_rows([(name, tmp_path / f"{name}{length}") for name in ("a", "b") for length in (64, 256)])
    assert [(row["model"], row["length"], row["accuracy"], row["low"], row["high"]) for row in rows] == [
        ("a", "64", "0.064", "0.1", "0.9"),
        ("3-mer", "64", "0.128", "", ""),
        ("a", "256", "0.256", "0.1", "0.9"),
        ("3-mer", "256", "0.512", "", ""),
        ("b", "64", "0.064", "", ""),
        ("b", "256", "0.256", "", ""),
    ]
    plot_accuracy_by_length(rows, tmp_path / "a.png", title="t", chance=0.25)
    assert (tmp_path / "a.png").stat().st_size > 10_000
