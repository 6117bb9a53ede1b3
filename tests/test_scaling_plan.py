"""The plan of large runs: its formula gives what one GPU has measured, and its tables stand in the document."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "pipelines"))

import scaling_plan as plan  # noqa: E402

from dnamamba.model.language_model import LanguageModel  # noqa: E402
from dnamamba.model.parameters import parameter_count  # noqa: E402


@pytest.mark.parametrize("measured", plan.MEASURED)
def test_one_gpu_is_as_measured(measured: tuple) -> None:
    model, length, batch, recompute, rate, gib = measured
    found = plan.Plan(model, length, batch, 1, recompute)
    assert found.mbases_per_second == pytest.approx(rate, rel=0.2)
    assert found.memory / plan.GIB == pytest.approx(gib, rel=0.25)


def test_parameters_are_those_of_the_models() -> None:
    for name in ("7m", "41m"):
        model = plan.MODELS[name]
        counted = parameter_count(LanguageModel(model))
        assert plan.Plan(model, 1 << 17, 1 << 20, 8).parameters == pytest.approx(counted, rel=0.01)


def test_more_gpus_share_the_work() -> None:
    one = plan.Plan(plan.MODELS["7m"], 1 << 20, 1 << 20, 1)
    two = replace(one, gpus=2)
    assert (one.context, two.context) == (1, 2)
    assert one.efficiency == 1 and 0.9 < two.efficiency < 1
    assert one.seconds / 2 < two.seconds < one.seconds
    assert two.memory < one.memory
    large = plan.Plan(plan.MODELS["1B"], 1 << 17, 1 << 24, 64)
    assert replace(large, sharded=True).memory < large.memory - 12 * large.parameters


def test_the_document_holds_the_table() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text()
    for line in plan.table(29e9):
        assert line in text
