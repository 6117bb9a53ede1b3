"""The outputs of every verb against those of November 2026 in `golden/verbs.npz`; and that a difference is found.

A fast part of the cases: `python tests/golden.py compare tests/golden/verbs.npz` runs all of them.
"""

from pathlib import Path

import golden
import numpy as np
import pytest
from golden_values import Output, Recording, contents, differences, load, machine, reduced, save

RECORDED = load(Path(__file__).parent / "golden" / "verbs.npz")
SAME_MACHINE = machine() == RECORDED.machine
TOLERANCE = {"rtol": 0.0, "atol": 0.0} if SAME_MACHINE else {"rtol": 1e-4, "atol": 1e-5}
FAST = ["pretrain/one", "finetune/sequences_probe", "predict/*", "likelihood/*", "score/vcf", "score/table"]
FAST += ["mutagenesis/edge", "embed/*", "generate/*", "info/*", "doctor/*", "errors/*"]


@pytest.mark.parametrize("tolerance", [pytest.param(TOLERANCE, id="bit-exact" if SAME_MACHINE else "within-1e-4")])
@pytest.mark.timeout(900)
def test_verbs_write_what_they_wrote(tolerance):
    cases = golden.chosen(FAST)
    assert {case.split("/")[0] for case in cases} == {case.split("/")[0] for case in golden.CASES} - {"formats"}
    now = golden.record(cases, quiet=True)
    found = {case: list(differences(RECORDED.outputs[case], now.outputs[case], **tolerance)) for case in cases}
    assert not any(found.values()), "\n".join(f"{case}: {line}" for case, lines in found.items() for line in lines)


def test_a_recording_has_every_case():
    assert set(RECORDED.outputs) == {case for case in golden.CASES if not case.startswith("formats/")}


def outputs(limit=golden.KEPT, **values) -> dict[str, Output]:
    return {name: reduced(value, limit) for name, value in values.items()}


def test_one_bit_is_a_difference():
    values = np.linspace(1, 2, 1000, dtype=np.float32)
    changed = values.copy()
    changed[-1] = np.nextafter(changed[-1], np.float32(9))
    (line,) = differences(outputs(a=values), outputs(a=changed))
    assert "largest difference 2.38e-07, relative 1.19e-07, of 2" in line
    assert list(differences(outputs(a=values), outputs(a=changed), rtol=1e-6)) == []
    changed[1] = 7  # not among those kept
    changed[-1] = values[-1]
    (line,) = differences(outputs(limit=3, a=values), outputs(limit=3, a=changed))
    assert "not in the values that were kept" in line


@pytest.mark.parametrize(
    ("old", "new", "exact", "within"),
    [
        (["LLR=-0.5723"], ["LLR=-0.5724"], 1, 0),  # the last digit that is printed
        (["LLR=-0.5723"], ["LLR=-0.5743"], 1, 1),
        (["sha256: " + "0" * 64], ["sha256: " + "1" * 64], 1, 0),
        (["loss: 1.9601632767425743"], ["loss: 1.96016327732012"], 1, 0),  # no digest, for all its digits
        (["3 windows"], ["4 windows"], 1, 1),
        (["ACGT"], ["ACGA"], 1, 1),
        (["one"], ["one", "two"], 1, 1),
        (np.array([1.0, np.nan]), np.array([np.nan, 1.0]), 1, 1),
        (np.zeros(3, np.float32), np.zeros(3), 1, 1),
    ],
)
def test_what_is_a_difference(old, new, exact, within):
    assert len(list(differences(outputs(a=old), outputs(a=new)))) == exact
    assert len(list(differences(outputs(a=old), outputs(a=new), rtol=1e-4, atol=1e-5))) == within
    assert list(differences(outputs(a=old), outputs(a=old))) == []


def test_files_that_come_and_go_are_differences(tmp_path):
    (tmp_path / "table.csv").write_text("step,seconds\n1,0.5\n")
    before = {name: reduced(value, 9) for name, value in contents(tmp_path, tmp_path).items()}
    (tmp_path / "table.csv").write_text("step,seconds\n1,0.7\n")
    (tmp_path / "run.json").write_text('{"a": [1, 2], "seconds": 3}')
    now = {name: reduced(value, 9) for name, value in contents(tmp_path, tmp_path).items()}
    assert list(differences(before, now)) == ["run.json: is new"]
    assert list(differences(now, before)) == ["run.json: is missing"]
    assert now["run.json"].kept == ["/a/0: 1", "/a/1: 2"]


def test_a_recording_comes_back_from_its_file(tmp_path):
    made = outputs(text=["a", "ü 1.5"], some=np.arange(2000.0), flags=np.array([True, False]), none=np.zeros((0, 3)))
    save(Recording(machine(), {"one": made, "two": outputs(some=np.arange(5.0))}), tmp_path / "file.npz")
    back = load(tmp_path / "file.npz")
    assert back.machine == machine()
    for case, kept in (("one", made), ("two", outputs(some=np.arange(5.0)))):
        assert list(differences(kept, back.outputs[case])) == []
        for name in kept:
            np.testing.assert_array_equal(back.outputs[case][name].kept, kept[name].kept)
