"""What a linear classifier reads off the embeddings of pretrained models: logistic regression, several models alike.

    python pipelines/embedding_probe.py --checkpoints CAUSAL BOTH_STRANDS --data gue/tf_0 [--train 4000] [--out FOLDER]

The mean of a model's states over a sequence's bases, and over both strands, which for an equivariant model are one.
`--train` draws so many training sequences, the same for all models. The penalty is chosen on dev by MCC; test is read
once. The interval (95 %) is from resampling the test sequences. Embeddings stay in FOLDER and are not made again.
"""

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
from measured import write_rows

import dnamamba
from dnamamba.finetuning.metrics import bootstrap_matthews, matthews

PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""scikit-learn's C"""
BLOCK = 500
"""Sequences at a time"""
SEED = 0
Split = tuple[np.ndarray, np.ndarray]
"""Embeddings (sequences, width) and labels (sequences,)"""


def read(folder: Path, split: str, most: int) -> tuple[list[str], np.ndarray]:
    """Sequences and labels; `most` of them at random, 0: all."""
    with gzip.open(folder / f"{split}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if 0 < most < len(rows):
        rows = [rows[row] for row in np.sort(np.random.default_rng(SEED).permutation(len(rows))[:most])]
    return [row["sequence"] for row in rows], np.array([int(row["label"]) for row in rows])


def embedded(checkpoint: Path, folder: Path, train: int, kept: Path) -> dict[str, Split]:
    """Of train, dev and test; read from `kept` where that is there."""
    if not kept.exists():
        model = dnamamba.load(checkpoint)
        found: dict[str, np.ndarray] = {}
        for split in ("train", "dev", "test"):
            sequences, labels = read(folder, split, train if split == "train" else 0)
            blocks = [sequences[first : first + BLOCK] for first in range(0, len(sequences), BLOCK)]
            equivariant = model.module.config.rc_equivariant
            vectors = [np.stack(model.embed(block, both_strands=not equivariant)) for block in blocks]
            found |= {split: np.concatenate(vectors), f"{split}_y": labels}
        np.savez(kept, **found)  # type: ignore[arg-type]
    with np.load(kept) as archive:
        return {split: (archive[split], archive[f"{split}_y"]) for split in ("train", "dev", "test")}


def probe(splits: dict[str, Split]) -> dict[str, float | int]:
    """MCC on dev of the best penalty, and on test with its interval."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (dev_x, dev_y), (test_x, test_y) = (splits[name] for name in ("train", "dev", "test"))
    tried = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2_000)).fit(x, y)
        tried.append((matthews(dev_y, model.predict(dev_x)), -penalty, model))
    dev, penalty, model = max(tried, key=lambda each: each[:2])
    predicted = model.predict(test_x)
    found = bootstrap_matthews(test_y, predicted[None], [str(row) for row in range(len(test_y))])
    return {
        "train": len(y), "test": len(test_y), "C": -penalty, "dev_mcc": dev, "mcc": found.value, "mcc_low": found.low,
        "mcc_high": found.high, "accuracy": float((predicted == test_y).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders with train, dev, test.csv.gz")
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
