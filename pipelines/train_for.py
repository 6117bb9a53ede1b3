"""Pretrains for so many seconds, whatever the machine: a short run says how many steps fit, then the run is made.

    python pipelines/train_for.py --seconds 440 --out RUN -- --genome hg38.fa --length_warmup 0.5 ...

The short run goes on for --probe seconds after its first steps. It has the same settings, but for windows of full
length from the start, and is removed.
The run itself gets as many steps as its rate allows for, so that its learning-rate schedule ends in time. If it does
not, it is stopped --grace seconds later with a checkpoint, and the exit code is 143. The card of the run holds its
steps: with these as --max_steps it can be made again anywhere.
"""

import argparse
import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTING = 30.0
"""Seconds that starting the run takes, about, and its validations"""
SLOWER = 0.95
"""Of the short run's rate that the run is expected to keep"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--probe", type=float, default=15.0)
    parser.add_argument("--grace", type=float, default=20.0)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="-- and the flags of dnamamba.pretrain")
    options = parser.parse_args()
    flags = options.flags[1:] if options.flags[:1] == ["--"] else options.flags
    began = time.monotonic()
    short = options.out.with_name(options.out.name + ".probe")
    shutil.rmtree(short, ignore_errors=True)
    command = [*flags, "--length_warmup", "0", "--max_steps", "100000", "--log_every", "5", "--out", str(short)]
    measure(command, short / "metrics.csv", options.probe, options.seconds / 2)
    rate = steps_a_second(short / "metrics.csv")
    shutil.rmtree(short, ignore_errors=True)
    left = options.seconds - (time.monotonic() - began)
    steps = max(int(SLOWER * rate * (left - STARTING)), 1)
    print(f"{rate:.2f} steps a second; {steps} steps in {left:.0f} s", flush=True)
    return run([*flags, "--max_steps", str(steps), "--out", str(options.out)], left + options.grace)


def measure(flags: list[str], table: Path, seconds: float, most: float) -> None:
    """Runs until `table` has been growing for `seconds`, `most` in all."""
    began, first = time.monotonic(), None
    process = subprocess.Popen([sys.executable, "-m", "dnamamba.pretrain", *flags])
    while process.poll() is None and time.monotonic() - began < most:
        if first is None and table.is_file() and len(table.read_text(encoding="utf-8").splitlines()) > 1:
            first = time.monotonic()
        if first is not None and time.monotonic() - first > seconds:
            break
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.wait()


def run(flags: list[str], seconds: float) -> int:
    """The exit code; after `seconds` the run is told to stop, and writes a checkpoint."""
    process = subprocess.Popen([sys.executable, "-m", "dnamamba.pretrain", *flags])
    try:
        return process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait()


def steps_a_second(path: Path) -> float:
    """In the later half of the rows."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; the short run has failed, or needs more --probe seconds")
    with path.open(newline="") as file:
        rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
    if len(rows) < 2:
        raise SystemExit(f"{path}: fewer than two rows after the short run; give it more --probe seconds")
    (first, earlier), (last, later) = rows[(len(rows) - 1) // 2], rows[-1]
    return (last - first) / (later - earlier)


if __name__ == "__main__":
    sys.exit(main())
