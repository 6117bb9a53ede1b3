"""What a linear classifier reads off the embeddings of pretrained models: logistic regression, several models alike.

    python pipelines/embedding_probe.py --checkpoints CAUSAL BOTH_STRANDS --data gue/tf_0 [--train 4000] [--out FOLDER]

The mean of a model's states over a sequence's bases, and over both strands, which for an equivariant model are one.
Folders are those of `finetune --task sequences`. `--train` draws so many training sequences, the same for all models.
The penalty is chosen on dev by MCC; test is read once. The interval (95 %) is from resampling the test sequences.
Embeddings stay in the folder of `--out` and are not made again.
"""

import argparse
from pathlib import Path

import numpy as np
from measured import write_rows

import dnamamba
from dnamamba.alphabet import decode
from dnamamba.finetuning.baselines.models import fit_linear
from dnamamba.finetuning.metrics import bootstrap_matthews, matthews
from dnamamba.finetuning.tasks.examples import Target
from dnamamba.finetuning.tasks.labels import encode_labels, find_target
from dnamamba.finetuning.tasks.readers import TableColumns
from dnamamba.finetuning.tasks.sequences import read_splits

PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""scikit-learn's C"""
SEED = 0
Split = tuple[np.ndarray, np.ndarray]
"""Embeddings (sequences, width) and classes (sequences,)"""


def embedded(checkpoint: Path, folder: Path, train: int, kept: Path) -> dict[str, Split]:
    """Of train, dev and test; read from `kept` where that is there."""
    if not kept.exists():
        model = dnamamba.load(checkpoint)
        both_strands = not model.module.config.rc_equivariant
        splits = read_splits(folder, TableColumns())
        if not all(splits.values()):
            raise SystemExit(f"{folder}: expected train, dev and test")
        target = find_target(splits["train"], "multiclass", None)
        if 0 < train < len(splits["train"]):
            drawn = np.random.default_rng(SEED).permutation(len(splits["train"]))[:train]
            splits["train"] = [splits["train"][row] for row in np.sort(drawn)]
        found: dict[str, np.ndarray] = {}
        for split, records in splits.items():
            found[split] = model.embed([decode(record.tokens) for record in records], both_strands=both_strands)
            found[f"{split}_y"] = encode_labels(records, target)
        np.savez(kept, **found)  # type: ignore[arg-type]
    with np.load(kept) as archive:
        return {split: (archive[split], archive[f"{split}_y"]) for split in ("train", "dev", "test")}


def probe(splits: dict[str, Split]) -> dict[str, float | int]:
    """MCC on dev of the best penalty, and on test with its interval."""
    (x, y), (dev_x, dev_y), (test_x, test_y) = (splits[name] for name in ("train", "dev", "test"))
    target = Target("multiclass", tuple(map(str, range(int(y.max()) + 1))))
    tried = []
    for penalty in PENALTIES:
        model = fit_linear(x, y, target, penalty)
        tried.append((matthews(dev_y, model(dev_x).argmax(1)), -penalty, model))
    dev, penalty, model = max(tried, key=lambda each: each[:2])
    predicted = model(test_x).argmax(1)
    found = bootstrap_matthews(test_y, predicted[None], [str(row) for row in range(len(test_y))])
    return {
        "train": len(y), "test": len(test_y), "C": -penalty, "dev_mcc": dev, "mcc": found.value, "mcc_low": found.low,
        "mcc_high": found.high, "accuracy": float((predicted == test_y).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with train, dev and test")
    parser.add_argument("--train", type=int, default=0, help="training sequences to draw; 0: all")
    parser.add_argument("--out", type=Path, default=Path("runs/embedding_probe"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for folder in arguments.data:
        for checkpoint in arguments.checkpoints:
            kept = arguments.out / f"{checkpoint.name}-{folder.name}-{arguments.train}.npz"
            result = probe(embedded(checkpoint, folder, arguments.train, kept))
            rows.append({"model": checkpoint.name, "task": folder.name} | result)
            print("{model}  {task}  dev MCC {dev_mcc:.3f} (C {C:g}), test {mcc:.3f} [{mcc_low:.3f}, {mcc_high:.3f}], "
                  "accuracy {accuracy:.3f}".format(**rows[-1]), flush=True)  # fmt: skip
            write_rows(rows, arguments.out / "results.csv")


if __name__ == "__main__":
    main()
