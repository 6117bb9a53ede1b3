"""Rows for the figure of accuracy by length from run folders."""

import json
from pathlib import Path

import pytest

from dnamamba.pictures import results_by_task, validation_by_class
from dnamamba.pictures.accuracy_by_length import plot_accuracy_by_length
from dnamamba.pictures.figures import shortened
from dnamamba.pictures.run_tables import accuracy_rows, result_rows


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


def test_classes_are_points_and_not_bars_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars begin at zero; where the axis does not, the values are points at their places."""
    drawn = []
    monkeypatch.setattr(validation_by_class, "save_png", lambda figure, path: drawn.append(figure))
    monkeypatch.setattr(results_by_task, "save_png", lambda figure, path: drawn.append(figure))
    rows = [("all", "all", 1.9, 100), ("position", "1-2", 1.95, 50), ("position", "3-4", 1.85, 50)]
    rows += [("repeat", "unique", 1.91, 60), ("repeat", "soft-masked", 1.72, 40)]
    rows += [("contig", "chr1", 1.93, 70), ("contig", "chr2", 1.87, 30)]
    names = ("group", "class", "bits_per_base", "bases")
    table = [dict(zip(names, map(str, row), strict=True)) for row in rows]
    validation_by_class.plot_validation_by_class(table, tmp_path / "v.png", title="t")
    results = [{"task": "a", "model": "m", "mcc": "0.8"}, {"task": "b", "model": "m", "mcc": "0.7"}]
    results_by_task.plot_results_by_task(results, tmp_path / "r.png", title="t", metric="mcc")
    validation, by_task = drawn
    for axes in validation.axes + by_task.axes:
        for bar in axes.patches:
            assert axes.get_ylim()[0] <= 0 <= axes.get_ylim()[1] and bar.get_y() == 0
    assert not any(axes.patches for axes in validation.axes) and len(by_task.axes[0].patches) == 2
    for axes, values in ((validation.axes[1], [1.91, 1.72]), (validation.axes[2], [1.93, 1.87])):
        points = next(line for line in axes.lines if line.get_marker() == "o")
        assert list(points.get_xdata()) == values and list(points.get_ydata()) == [0, 1]
        assert axes.get_xlim()[0] < min(values) and axes.get_ylim() == (1.5, -0.5)
        assert [text.get_text() for text in axes.texts] == [f"{value:.3f}" for value in values]
        assert all(text.get_position()[0] > 1 for text in axes.texts)  # right of the panel: no line crosses it
    assert "lower is better" in validation.axes[1].get_xlabel()


def test_context_is_named_as_the_model_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(validation_by_class, "save_png", lambda figure, path: drawn.append(figure))
    row = {"group": "position", "class": "1", "bits_per_base": "1.9", "bases": "5"}
    for both_sides in (False, True):
        plot = validation_by_class.plot_validation_by_class
        plot([row], tmp_path / "v.png", title="t", both_sides=both_sides)
    assert [figure.axes[0].get_xlabel() for figure in drawn] == [
        "bases of the window seen before the base",
        "bases of the window seen (of both sides, the shorter)",
    ]


def test_long_names_are_cut_in_their_middle() -> None:
    assert shortened("chr20") == "chr20"
    short = shortened("NC_000020.11_Homo_sapiens_chromosome_20_GRCh38")
    assert len(short) == 24 and short.startswith("NC_000020.11") and short.endswith("GRCh38")
    assert len({shortened(f"contig_{number}_of_an_assembly_with_long_names") for number in range(100)}) == 100


def test_results_of_pretraining_in_a_table() -> None:
    """What a run lacks is null: its Markov models were left out, or it was stopped before it had a best."""
    summaries = {
        "a": {"validation_bits_per_base": 1.9, "best_validation_bits_per_base": 1.8, "markov_bits_per_base": 1.95},
        "b": {"validation_bits_per_base": 1.7, "markov_bits_per_base": None, "tokens": 2_500_000},
    }
    assert result_rows(summaries).rows() == [("a", 1.9, 1.8, 1.95, None), ("b", 1.7, None, None, 2.5)]
