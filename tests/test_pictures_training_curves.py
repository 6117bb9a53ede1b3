"""Several runs in one picture."""

from pathlib import Path

import polars
import pytest

from dnamamba.pictures import training_curves
from dnamamba.pictures.training_curves import plot_by_context, plot_training_curves


def metrics(rate: float, last: float) -> polars.DataFrame:
    return polars.DataFrame(
        {
            "tokens": [1_000_000, 2_000_000, 3_000_000],
            "learning_rate": [rate, rate, rate / 10],
            "train_bits_per_base": [1.99, 1.97, 1.95],
            "validation_bits_per_base": [None, 1.98, last],
            "gradient_norm": [2.0, 1.0, 0.5],
        }
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    figures: list = []
    save = training_curves.save_png
    monkeypatch.setattr(training_curves, "save_png", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def test_a_line_a_run_with_its_own_colour_and_units(tmp_path: Path, drawn: list) -> None:
    runs = {"slow": metrics(1e-3, 1.96), "fast": metrics(8e-3, 1.94)}
    plot_training_curves(runs, tmp_path / "curves.png", title="t", markov=1.93)
    (figure,) = drawn
    validation, training, norm, rate = figure.axes
    slow, fast, markov = validation.lines
    assert list(fast.get_xdata()) == [2, 3] and list(fast.get_ydata()) == [1.98, 1.94]
    assert list(training.lines[0].get_xdata()) == [1, 2, 3]
    assert slow.get_color() != fast.get_color() and list(markov.get_ydata()) == [1.93, 1.93]
    assert norm.get_yscale() == rate.get_yscale() == "log" and list(rate.lines[1].get_ydata()) == [8e-3, 8e-3, 8e-4]
    assert all(axes.get_ylabel() for axes in figure.axes) and "millions" in rate.get_xlabel()
    assert all(low < 1.93 < high for low, high in (axes.get_ylim() for axes in (validation, training)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*runs, "best Markov model, 1.930"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_what_is_far_worse_than_guessing_is_cut_off(tmp_path: Path, drawn: list) -> None:
    plot_training_curves({"a": metrics(1.0, 7.0)}, tmp_path / "a.png", title="t", markov=1.93)
    assert drawn[0].axes[0].get_ylim()[1] == training_curves.WORST and drawn[0].axes[0].get_ylim()[0] < 1.93


def test_by_context(tmp_path: Path, drawn: list) -> None:
    rows = {"group": ["all", "position", "position", "position"], "class": ["all", "1", "2-3", "4-7"]}
    tables = {name: polars.DataFrame(rows | {"bits_per_base": [1.9, 2.0, 1.95, last]}) for name, last in [("a", 1.9)]}
    plot_by_context(tables, tmp_path / "context.png", title="t")
    axes = drawn[0].axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 4] and list(axes.lines[0].get_ydata()) == [2.0, 1.95, 1.9]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2-3", "4-7"]


def test_more_runs_than_colours_differ_in_dashes(tmp_path: Path, drawn: list) -> None:
    plot_training_curves({str(n): metrics(n * 1e-3, 1.9) for n in range(1, 10)}, tmp_path / "many.png", title="t")
    styles = [(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines]
    assert len(set(styles)) == 9
