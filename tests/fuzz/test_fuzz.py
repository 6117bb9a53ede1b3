"""200 damaged files of each reader, the same every time; `python tests/fuzz/run.py --cases 10000` takes more."""

import time

import harness
import pytest
from harness import make_case
from readers import READERS
from run import run_cases

from dnamamba.errors import InputError

CASES = 200


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_rightly_or_refused(name):
    counts, faults = run_cases(name, READERS[name], range(CASES))
    assert not faults, "\n\n".join(faults)
    assert counts.total() == CASES
    assert counts["equal"] and counts["refused"]  # the damages are neither all harmless nor all beyond reading


def test_cases_are_the_same_everywhere():
    reader = READERS["bed"]
    assert make_case("bed", reader, 7) == make_case("bed", reader, 7) != make_case("bed", reader, 8)
    assert sum(make_case("bed", reader, 0).files["i.bed"]) == 5799


def raises(error):
    def read(folder):
        raise error(f"{folder}\n\x1b")

    return read


def never_returns(folder):
    while True:
        time.sleep(1)


BROKEN = {
    "silent": lambda folder: READERS["bed"].read(folder)[:-1],  # the last interval lost
    "message": lambda folder: raises(InputError)("a file"),
    "traceback": raises(IndexError),
    "hang": never_returns,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_faults_are_found(fault, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "TIME_LIMIT", 0.05)
    seed = READERS["bed"].seeds()

    def read(folder):
        is_damaged = (folder / "i.bed").read_bytes() not in [files["i.bed"] for files in seed]
        return (BROKEN[fault] if is_damaged else READERS["bed"].read)(folder)

    counts, faults = run_cases("bed", READERS["bed"]._replace(read=read), range(20), keep=tmp_path)
    assert counts[fault] == len(faults) >= 5
    number = int(faults[0].split()[2].rstrip(":"))
    assert f"bed, case {number}: {fault}" in faults[0]
    assert f"run.py --reader 'bed' --case {number} --keep" in faults[0]
    kept = (tmp_path / f"bed {number}" / "i.bed").read_bytes()
    assert kept == make_case("bed", READERS["bed"], number).files["i.bed"]
