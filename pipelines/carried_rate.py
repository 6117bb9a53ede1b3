"""Pretrains at the learning rate that was best in other runs, of another size of the same system.

    python pipelines/carried_rate.py RUN... --out FOLDER FLAGS...

Of the runs, the one with the fewest validation bits gives its rate; FLAGS go to `python -m dnamamba.pretrain`. Where
FOLDER has been begun, its run is resumed at the rate that it was begun with. A step of workflows with `sweep:`.
"""

import json
import os
import sys
from pathlib import Path

from plan import SUMMARY

from dnamamba import cli
from dnamamba.errors import InputError
from dnamamba.formats import read_card


def best_rate(runs: list[Path]) -> float:
    """Raises `InputError` where one has not finished."""
    bits = {}
    for run in runs:
        if not (run / SUMMARY).is_file():
            raise InputError(f"{run}: not finished; its learning rate is one of those to choose from")
        bits[run] = float(json.loads((run / SUMMARY).read_text("utf-8"))["best_validation_bits_per_base"])
    return float(read_card(min(bits, key=lambda run: bits[run]))["provenance"]["settings"]["learning_rate"])


def main(arguments: list[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = next((number for number, text in enumerate(given) if text.startswith("--")), len(given))
    runs, flags = [Path(text) for text in given[:first]], given[first:]
    if not runs or "--out" not in flags[:-1]:
        raise InputError("expected the folders of finished runs, then --out FOLDER and flags of pretrain")
    out = Path(flags[flags.index("--out") + 1])
    if (out / "config.yaml").exists():
        flags = ["--resume", "--out", str(out)]
    else:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()  # some workflow engines make it beforehand, but runs refuse a folder that exists
        flags += ["--learning_rate", f"{best_rate(runs):g}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "dnamamba.pretrain", *flags])


if __name__ == "__main__":
    sys.exit(cli.run(main))
