"""Files of November 2026 are read, and stopped runs are resumed to the same end: `fixtures/formats-2026-11`.

The same bits where torch, its instructions and the processor are those of the recording, else within 1e-4; the test's
name says which of the two it was.
"""

import filecmp

import golden
import pytest
from golden_values import differences, load, machine

RECORDED = load(golden.FIXTURES / "recorded.npz")
SAME_MACHINE = machine() == RECORDED.machine
TOLERANCE = {"rtol": 0.0, "atol": 0.0} if SAME_MACHINE else {"rtol": 1e-4, "atol": 1e-5}
HOW = pytest.mark.parametrize("tolerance", [pytest.param(TOLERANCE, id="bit-exact" if SAME_MACHINE else "within-1e-4")])

RESUMED = ["formats/pretrain", "formats/mixture", "formats/sequences", "formats/variants"]
READ = ["formats/classifier", "formats/options", "formats/store", "formats/store_read", "formats/store_again"]
INFO = ["info/pretrained", "info/finetuned", "info/json"]


def check(cases, tolerance):
    now = golden.record(cases, quiet=True)
    found = {case: list(differences(RECORDED.outputs[case], now.outputs[case], **tolerance)) for case in cases}
    assert not any(found.values()), "\n".join(f"{case}: {line}" for case, lines in found.items() for line in lines)


@HOW
@pytest.mark.timeout(900)
def test_stopped_runs_resume_to_the_same_weights_metrics_and_validation(tolerance):
    for case in RESUMED:
        assert any(name.endswith("safetensors:/backbone.embedding.weight") for name in weights_of(case)), case
        assert {"metrics.csv", "summary.json"} <= RECORDED.outputs[case].keys()
    check(RESUMED, tolerance)


def weights_of(case):
    return [name.replace("safetensors:", "safetensors:/") for name in RECORDED.outputs[case] if "safetensors" in name]


@HOW
@pytest.mark.timeout(900)
def test_models_stores_and_cards_are_read(tolerance):
    check([*READ, *INFO], tolerance)


def test_a_recording_has_every_case_of_the_formats():
    assert set(RECORDED.outputs) == {*RESUMED, *READ, *INFO}
    assert {case for case in golden.CASES if case.startswith("formats/")} == {*RESUMED, *READ}


def test_a_copy_knows_nothing_of_where_it_was_made(tmp_path):
    golden.copy_fixtures(tmp_path / "copy")
    texts = [path for path in (tmp_path / "copy").rglob("*") if path.suffix in (".json", ".yaml")]
    assert len(texts) > 20
    assert [path for path in texts if golden.RECORDED_IN in path.read_text("utf-8")] == []
    store = "inputs/genome.fa.dnamamba/tokens.bin"
    assert filecmp.cmp(golden.FIXTURES / store, tmp_path / "copy" / store, shallow=False)
