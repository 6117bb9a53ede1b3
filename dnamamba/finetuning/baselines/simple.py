"""Simple models trained on the same examples: what a trained network has to beat, and whether there was a shortcut."""

import math

import numpy as np

from dnamamba.finetuning.metrics import evaluate
from dnamamba.finetuning.tasks.examples import Examples, Task
from dnamamba.runs.progress import job_bar

TRAIN_EXAMPLES, TRAIN_BASES = 16_384, 1 << 27
"""At most, of a training set that is drawn from genomes."""


def simple_models(task: Task, test: Examples, kmer: int) -> dict[str, dict[str, float]]:
    """Name → metrics on the test examples.

    majority (of classes): the commonest one of train. composition (of classes): a classifier on GC, N and length alone.
    K-mer: a regression on the frequencies of words of `kmer` bases, chosen on dev; none for 0.
    """
    from dnamamba.finetuning.baselines.models import composition_accuracy, kmer_predictions

    train = task.train.sample(min(TRAIN_EXAMPLES, max(TRAIN_BASES // task.length, 1)))
    data = train.sequences(), train.labels, test.sequences(), test.labels
    found: dict[str, dict[str, float]] = {}
    if task.target.kind == "multiclass":
        commonest = np.bincount(train.labels).argmax()
        found["majority"] = {"accuracy": float((test.labels == commonest).mean())}
        found["composition"] = {"accuracy": composition_accuracy(*data)}
    if kmer:
        print(f"  baseline  training a regression on {kmer}-mers", flush=True)
        dev = task.dev.sequences(), task.dev.labels
        with job_bar(f"regression on {kmer}-mers", "examples fitted") as progress:
            fitted = kmer_predictions(kmer, *data[:3], task.target, dev=dev, progress=progress)
        metrics = evaluate(fitted.predictions, test.labels, task.target)
        found[f"{kmer}-mer"] = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return found
