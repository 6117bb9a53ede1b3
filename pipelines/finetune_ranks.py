"""Fine-tuning on two GPUs against one: losses, metrics and predictions, and a signal to the second process.

    python pipelines/finetune_ranks.py --out finetune_ranks.json [--accelerator cpu]

Sequences of two classes that differ in GC content, 512 to 1,024 bases, made from a seed; a model from scratch, two
epochs, fp32 and bf16. Each run is the command `python -m dnamamba.finetune`, and all of them run at once: what is
compared does not depend on time. `ddp` and `fsdp` are `--devices 2` with each --strategy.

signal   SIGTERM to the second process of such a run, in an epoch: seconds until no process is left, exit code, last
         words; and that one device continues from the epoch that was written.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measured import KeptResults
from rank_jobs import GPU_VARIABLES, ROOT, alive, describe_machine, ranks_of, wait

WAYS: dict[str, list[str]] = {
    "one": ["--devices", "1"],
    "ddp": ["--devices", "2"],
    "fsdp": ["--devices", "2", "--strategy", "fsdp"],
}


class Bench(KeptResults):
    """The runs of one command, in a folder of its own."""

    def __init__(self, out: Path, scratch: Path, accelerator: str) -> None:
        super().__init__(out)
        self.scratch, self.on_gpu = scratch, accelerator == "gpu"
        self.sequences = 1000 if self.on_gpu else 60
        self.bases = 1024 if self.on_gpu else 64
        self.write_data()

    def write_data(self) -> None:
        generator = np.random.default_rng(0)
        for split, count in (("train", self.sequences), ("dev", self.sequences // 4), ("test", self.sequences // 4)):
            with (self.scratch / f"{split}.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(("sequence", "label"))
                for number in range(count):
                    gc = (0.45, 0.55)[number % 2] / 2
                    length = int(generator.integers(self.bases // 2, self.bases))
                    bases = generator.choice(list("ACGT"), length, p=[0.5 - gc, gc, gc, 0.5 - gc])
                    table.writerow(("".join(bases), ("AT", "GC")[number % 2]))

    def start(self, out: Path, options: list[str]) -> tuple[subprocess.Popen[bytes], Path]:
        """The command, and the file of what it says."""
        model = ["--model.preset", "1.4m"] if self.on_gpu else ["--model.n_layer", "2", "--model.d_model", "16"]
        command = [sys.executable, "-m", "dnamamba.finetune", "--out", str(out), "--accelerator"]
        command += ["gpu" if self.on_gpu else "cpu", *options]
        if "--resume" not in options:
            data = ["--data", str(self.scratch), "--checkpoint", "none", "--kmer", "0", "--pooling", "mean"]
            command += [*data, *model, "--batch_size", "50" if self.on_gpu else "10"]
        folders = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | GPU_VARIABLES | {"PYTHONPATH": folders}
        said = out.with_suffix(".txt")
        with said.open("w") as words:
            return subprocess.Popen(command, env=environment, stdout=words, stderr=subprocess.STDOUT), said

    def run(self, out: Path, options: list[str]) -> None:
        process, said = self.start(out, options)
        try:
            if code := process.wait(timeout=240):
                raise RuntimeError(f"exit code {code}: {said.read_text()[-1500:]}")
        finally:
            process.kill()


def trained(bench: Bench, name: str, precision: str) -> dict[str, Any]:
    """What of a run is compared: losses and metrics of its epochs, probabilities of its test."""
    out = bench.scratch / f"{name}-{precision}"
    if not (out / "summary.json").exists():
        bench.run(out, [*WAYS[name], "--precision", precision, "--epochs", "2"])
    epochs = [
        {key: float(row[key]) for key in row if key.startswith(("train_", "dev_"))} for row in rows(out, "metrics")
    ]
    test = [[float(row[key]) for key in row if key.startswith("p_")] for row in rows(out, "test_predictions")]
    return {"epochs": epochs, "test": test}


def rows(run: Path, table: str) -> list[dict[str, str]]:
    with (run / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def difference(bench: Bench, name: str, precision: str) -> dict[str, Any]:
    """Of a run on two devices from that on one: relative, of losses; largest, of metrics and probabilities."""
    two, one = trained(bench, name, precision), trained(bench, "one", precision)
    pairs = [(a[key], b[key], key) for a, b in zip(two["epochs"], one["epochs"], strict=True) for key in b]
    return {
        "losses": max(abs(a / b - 1) for a, b, key in pairs if key.endswith("loss")),
        "metrics": max(abs(a - b) for a, b, key in pairs if not key.endswith("loss")),
        "probabilities": float(np.abs(np.subtract(two["test"], one["test"])).max()),
        "last": one["epochs"][-1],
    }


def stopped(bench: Bench) -> dict[str, Any]:
    """One run that its second process's SIGTERM ends."""
    out = bench.scratch / "stopped"
    process, said = bench.start(out, [*WAYS["ddp"], "--precision", "fp32", "--epochs", "1000"])
    try:
        wait(240, (out / "metrics.csv").exists, process)
        _, second = ranks_of(out)
        began = time.monotonic()
        os.kill(second, signal.SIGTERM)
        code = process.wait(timeout=400)
        wait(60, lambda: not alive(second))
        ended = time.monotonic() - began
    finally:
        process.kill()
    epochs, words = len(rows(out, "metrics")), [line.strip() for line in said.read_text().splitlines() if line.strip()]
    again, _ = bench.start(out, ["--resume", "--devices", "1"])
    try:
        wait(240, lambda: len(rows(out, "metrics")) > epochs, again)
    finally:
        again.kill()
    return {"seconds_until_no_process": ended, "exit_code": code, "epochs": epochs, "said": words[-3:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("finetune_ranks.json"), help="results; those in it are kept")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), default="gpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-ranks-") as scratch:
        bench = Bench(arguments.out, Path(scratch), arguments.accelerator)
        bench.results["machine"] = describe_machine(arguments.accelerator)
        precisions = ("fp32", "bf16") if bench.on_gpu else ("fp32",)
        with ThreadPoolExecutor(7 if bench.on_gpu else 1) as pool:
            ends = pool.submit(bench.keep, "signal", "SIGTERM to rank 1", partial(stopped, bench))
            runs = [pool.submit(trained, bench, name, precision) for precision in precisions for name in WAYS]
            was_right = [ends.result()]
            for run in runs:
                run.exception()  # told where it is compared
        for precision in precisions:
            for name in ("ddp", "fsdp"):
                was_right.append(
                    bench.keep("finetune", f"{name}, {precision}", partial(difference, bench, name, precision))
                )
    return 0 if all(was_right) else 1


if __name__ == "__main__":
    sys.exit(main())
