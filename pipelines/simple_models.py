"""Simple models on exactly the examples that a fine-tuning sees: composition, k-mer regression, a small dilated CNN,
and where classes are species, a Markov model of each.

    python pipelines/simple_models.py --out FOLDER --task species --species species.tsv --length 1024 [--seeds 3]

Takes the flags of `python -m dnamamba.finetune` that say what the examples are (others are refused), and --cnn_epochs.
What is chosen (penalty, strands, the CNN's epoch, the Markov order) is chosen on dev; test is read once. Markov models
read the whole training intervals of their species and its reverse complement; the likeliest species wins.
FOLDER/summary.json has the keys of a fine-tuning's, `test` being the CNN's metrics over the seeds, and
FOLDER/test_predictions.csv a row a test example, seed and model.
"""

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from plan import SIMPLE_FLAGS

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.settings.fields import setting
from dnamamba.settings.parser import Parser

if TYPE_CHECKING:
    from dnamamba.finetuning.tasks.examples import Examples
    from dnamamba.finetuning.tasks.windows import SpeciesIntervals

FIT_EXAMPLES, FIT_BASES = 16_384, 1 << 27
"""Of a training set drawn from genomes, at most, for the regressions."""
EPOCHS = 10
MOST_ORDER = 11
"""Of the Markov models; lower where their tables would have more entries than the largest species has bases."""


@dataclass(kw_only=True)
class SimpleSettings(FinetuneSettings):
    """Simple models on exactly the examples that a fine-tuning sees."""

    cnn_epochs: int = setting(EPOCHS, at_least=0)
    """Epochs of the CNN; 0 leaves it out."""


def main(arguments: list[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    for token in given:
        name = token.removeprefix("--").partition("=")[0]
        if token.startswith("--") and name not in (
            *SIMPLE_FLAGS,
            "out",
            "cnn_epochs",
            "help",
            "precision",
            "micro_tokens",
        ):
            raise InputError(f"{token}: has no meaning for the simple models")
    parsed = Parser("python pipelines/simple_models.py", SimpleSettings).parse([*given, "--checkpoint", "none"])
    settings = FinetuneSettings(**{field.name: getattr(parsed, field.name) for field in fields(FinetuneSettings)})
    if settings.out is None:
        raise InputError("--out: name a folder for the results")
    compare(settings, parsed.cnn_epochs)


def compare(requested: FinetuneSettings, cnn_epochs: int) -> dict[str, Any]:
    """Trains all of them, writes the two files, returns the summary."""
    from dnamamba.finetuning.baselines.cnn import CnnSettings, train_cnn
    from dnamamba.finetuning.baselines.models import composition_accuracy, kmer_predictions
    from dnamamba.finetuning.metrics import bootstrap_by_group, evaluate, over_seeds
    from dnamamba.finetuning.resolve import compute_of, resolve
    from dnamamba.finetuning.run import TASKS
    from dnamamba.outputs import write_atomically

    settings = resolve(requested)
    task = TASKS[settings.task](settings)
    compute, target, dev = compute_of(settings), task.target, task.dev
    test = task.test.read({"by": "dev, each model by itself"})
    groups = [origin.group for origin in test.origins]
    began = time.perf_counter()
    predictions: dict[tuple[str, int], np.ndarray] = {}
    summary: dict[str, Any] = {
        "task": settings.task, "kind": target.kind, "classes": list(target.names), "length": task.length,
        "checkpoint": "simple", "baselines": {},
    }  # fmt: skip

    train = task.train.sample(min(FIT_EXAMPLES, max(FIT_BASES // task.length, 1)))
    if target.kind == "multiclass":
        share = composition_accuracy(train.sequences(), train.labels, test.sequences(), test.labels)
        summary["baselines"]["composition"] = {"accuracy": share}
        print(f"composition  accuracy {share:.4f}", flush=True)
    if settings.kmer:
        fitted = kmer_predictions(
            settings.kmer, train.sequences(), train.labels, test.sequences(), target, dev=(dev.sequences(), dev.labels)
        )
        found: dict[str, Any] = evaluate(fitted.predictions, test.labels, target)
        chosen = {"penalty": fitted.penalty, "both_strands": fitted.both_strands, "dev": fitted.dev}
        summary["baselines"][f"{settings.kmer}-mer"] = {**found, **chosen, "examples": len(train)}
        predictions[f"{settings.kmer}-mer", 0] = fitted.predictions
        print(f"{settings.kmer}-mer  {_line(found)}", flush=True)
    if settings.task == "species":
        order, likelihoods = markov_likelihoods(task.train.species, dev, test)
        logits = likelihoods * np.log(2)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        predictions["markov", 0] = powers / powers.sum(1, keepdims=True)
        found = evaluate(predictions["markov", 0], test.labels, target)
        summary["baselines"]["markov"] = {**found, "order": order}
        print(f"markov, order {order}  {_line(found)}", flush=True)
    if cnn_epochs and target.kind != "regression":
        results = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            options = replace(CnnSettings(), epochs=cnn_epochs, batch_size=settings.batch_size, seed=seed)
            result = train_cnn(task.train, dev, test, target, compute, options, lambda text: print(text, flush=True))
            results.append((result, evaluate(result.predictions, test.labels, target)))
            predictions["cnn", seed] = result.predictions
        summary |= {
            "parameters": results[0][0].parameters,
            "dev": over_seeds([result.dev for result, _ in results]),
            "test": over_seeds([found for _, found in results]),
        }
        print(f"cnn  {_line(results[0][1])}", flush=True)
    if target.kind == "multiclass":
        summary["test_intervals"] = {
            model: bootstrap_by_group(values.argmax(1) == test.labels, groups)._asdict()
            for (model, seed), values in predictions.items()
            if seed == settings.seed or model != "cnn"
        }
    summary["seconds"] = time.perf_counter() - began

    settings.out.mkdir(parents=True, exist_ok=True)
    if target.kind == "multiclass":
        write_atomically(settings.out / "test_predictions.csv", predictions_csv(predictions, test, target.names))
    write_atomically(settings.out / "summary.json", json.dumps(summary, indent=2, default=float) + "\n")
    return summary


def markov_likelihoods(
    species: Sequence["SpeciesIntervals"], dev: "Examples", test: "Examples"
) -> tuple[int, np.ndarray]:
    """The order with the best accuracy on dev, and its (examples, species) log2 likelihoods of test: means of both
    strands."""
    from dnamamba.alphabet import reverse_complement
    from dnamamba.genome import markov

    largest = max(each.bases for each in species)
    order = max(min(MOST_ORDER, int(np.log(max(2 * largest, 4)) / np.log(4)) - 1), 0)
    strands = [
        [examples.tokens, np.stack([reverse_complement(row) for row in examples.tokens])] for examples in (dev, test)
    ]
    found = []
    for each in species:
        model = markov.fit([each.tokens[start:end] for start, end in each.bounds.tolist()], order, both_strands=True)
        found.append([np.mean([model.log2_likelihoods(rows) for rows in both], axis=0) for both in strands])
    of_dev, of_test = (np.stack(part, axis=-1) for part in zip(*found, strict=True))  # (orders, examples, species)
    best = int(np.argmax((of_dev.argmax(-1) == dev.labels).mean(-1)))
    return best, of_test[best]


def predictions_csv(predictions: dict[tuple[str, int], np.ndarray], test: "Examples", names: Sequence[str]) -> str:
    """A row for each model, seed and test example, as `collect.py` reads them; probabilities by model and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "seed", "contig", "start", "end", "group", "label", "predicted"])
    for (model, seed), values in predictions.items():
        for origin, label, best in zip(test.origins, test.labels, values.argmax(1), strict=True):
            where = origin.contig, origin.start, origin.end, origin.group
            writer.writerow([model, seed, *where, names[label], names[best]])
    return text.getvalue()


def _line(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items())


if __name__ == "__main__":
    sys.exit(cli.run(main))
