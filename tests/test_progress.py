"""A long job reports how far it is, on stderr, where there is no terminal."""

from types import SimpleNamespace

import pytest

from dnamamba.runs import progress
from dnamamba.runs.lines import print_lines
from dnamamba.runs.progress import by_count, compared, job_bar


def test_a_job_reports_its_share_and_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    seconds = iter([0.0, 5.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    with job_bar("reading", "B") as report:
        for done in (500, 1000, 1100, 1500):
            report(done, 3000)
    shown = capsys.readouterr()
    assert shown.out == "", "results may go there"
    assert shown.err.splitlines() == [
        "reading 1.00 k of 3.00 k B  ETA 0:22",
        "reading 1.50 k of 3.00 k B  ETA 0:30",
    ]


def test_nothing_done_or_no_total_leaves_the_time_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seconds = iter([0.0, 11.0, 30.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    with job_bar("fetching", "B") as report:
        report(0, 10)
        report(5, 0)
    assert capsys.readouterr().err.splitlines() == ["fetching 0 of 10 B  ETA ?", "fetching 5 of ? B  ETA ?"]


def test_counts_add_up():
    reported = []
    advance = by_count(lambda done, total: reported.append((done, total)), 6)
    for count in (1, 2, 3):
        advance(count)
    assert reported == [(1, 6), (3, 6), (6, 6)]


@pytest.mark.parametrize(
    ("count", "told"),
    [(100, "about as many as windows"), (25, "4.0 times fewer than windows"), (140, "1.4 times as many as windows")],
)
def test_a_count_against_another_in_words(count, told):
    assert compared(count, 100, "windows") == told


def test_what_files_hold_is_printed_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([("target", "multiclass: \x1b[31mred\x1b[0m, two\nlines"), ("note", "")])
    assert capsys.readouterr().out == "    target  multiclass: \\x1b[31mred\\x1b[0m, two\\nlines\n"
