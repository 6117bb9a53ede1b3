"""The model card of a classifier, as data: its provenance.json. `dnamamba.runs.card` puts it into words."""

import math
import time
from typing import Any

from dnamamba.finetuning.settings import ResolvedFinetuneSettings
from dnamamba.finetuning.tasks.examples import Task
from dnamamba.finetuning.trial import TrialResult
from dnamamba.runs.folder import environment
from dnamamba.settings.fields import as_plain


def classifier_card(
    settings: ResolvedFinetuneSettings,
    task: Task,
    pretraining: dict[str, Any] | None,
    result: TrialResult,
    test: dict[str, float],
    baselines: dict[str, dict[str, float]],
    devices: list[str],
) -> dict[str, Any]:
    """provenance.json of a classifier: task, data and splits, selection, metrics, command, and whose weights it began
    with."""
    # JSON has no NaN: a metric that is not defined on so few examples is left out.
    dev, test = ({k: v for k, v in found.items() if math.isfinite(v)} for found in (result.dev, test))
    return {
        "task": settings.task,
        "length": task.length,
        "settings": as_plain(settings),
        "data": task.facts,
        "seed": result.seed,
        **result.candidate._asdict(),
        "epoch": result.epoch,
        "metrics": {"dev": dev, "test": test},
        "baselines": baselines,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **environment(devices),
        "pretraining": pretraining,
    }
