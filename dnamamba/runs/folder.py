"""The run folder: everything that a run leaves behind, readable by people and by `--resume`.

config.yaml          the resolved settings; `--config` takes it back
environment.json     versions, git commit, command, devices
data.json            fingerprints of what the run reads: a resumed run must find the same
splits.bed           the intervals of train, validation and test; splits-GENOME.bed for each one of a mixture
metrics.csv          one row every --log_every steps, and one a validation
tensorboard/         the same, for TensorBoard
checkpoints/         step-00000100/ …, and the links `last` and `best` (by validation)
learning_curve.png   drawn from metrics.csv
validation_by_class.csv, .png   the last validation by position in the window, region class and contig
validation_windows.csv   the last validation window by window
summary.json         the result, of a finished run alone
summary.unfinished.json   of a run that a signal stopped: how far it came
.lock                who writes the run now, see `dnamamba.runs.lock`
"""

import csv
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dnamamba import __version__
from dnamamba.errors import InputError
from dnamamba.formats.files import read_json
from dnamamba.outputs import os_errors, partial_name, remove_left_overs, write_atomically
from dnamamba.runs.lock import RunLock

METRICS = (
    "step",
    "tokens",
    "seconds",
    "learning_rate",
    "train_bits_per_base",
    "validation_bits_per_base",
    "validation_perplexity",
    "gradient_norm",
    "tokens_per_second",
    "peak_fraction",
    "data_wait_fraction",
    "peak_memory_gib",
)
"""Columns of metrics.csv. `tokens` are the bases read so far, N too, the padding of packed windows not. `seconds` is
training time without validation, summed over the resumptions of a run.

`peak_fraction` is the model's floating-point operations a second (`dnamamba.model.parameters.training_flops_per_token`,
no recomputation counted) over the devices' dense bf16 peak; empty on CPUs, in fp32, and for chips whose peak is not in
`dnamamba.training.throughput`. `peak_memory_gib` is the first rank's: what torch had allocated on its GPU, or, on CPUs,
all that its process held.
"""

VALIDATION = ("step", "group", "class", "bits_per_base", "perplexity", "bases")
"""Columns of validation_by_class.csv; `bases` are the counted ones. Within a group the classes share all of them."""

WINDOWS = (
    "step",
    "genome",
    "contig",
    "start",
    "end",
    "bits_per_base",
    "bases",
    "soft_masked",
    "region",
    "region_share",
)
"""Columns of validation_windows.csv, a row a window: its `genome` in a mixture; the bases that it reads, 0-based,
half-open; `bases` are the counted ones. Of all that it reads, `soft_masked` is the share of repeats, and `region_share`
that of `region`, the class that most are of; both empty without --regions."""

_PACKAGES = ("torch", "triton", "numba", "lightning", "numpy", "safetensors")


class RunFolder:
    """Paths and files of one run. Making one touches nothing; `create` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.checkpoints = path / "checkpoints"
        self.learning_curve = path / "learning_curve.png"
        self.summary = path / "summary.json"
        self.unfinished = path / "summary.unfinished.json"
        self.validation = path / "validation_by_class.csv"
        self.validation_plot = path / "validation_by_class.png"
        self.windows = path / "validation_windows.csv"
        self.lock = RunLock(path)

    def refuse_existing(self) -> None:
        """Called before the long work begins, so that nobody waits for an answer like this. Raises `InputError`."""
        if self.path.exists() or self.path.is_symlink():
            raise InputError(
                f"{self.path}: the run folder exists; choose another --out, or resume that run by --resume"
            )

    def create(self, config: str) -> None:
        """With its config.yaml or not at all, so that `--resume` can continue whatever run folder there is. This
        process holds the folder's lock then.

        Raises `InputError` when it exists or cannot be made.
        """
        self.refuse_existing()
        partial = RunFolder(partial_name(self.path))
        try:
            self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            remove_left_overs(self.path)
            partial.checkpoints.mkdir(parents=True)
            write_atomically(partial.config, config)
            self.lock.folder = partial.path
            self.lock.take()
            partial.path.rename(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot make the run folder ({error.strerror}); choose --out") from None
        finally:
            if partial.path.exists():
                self.lock.release()
                shutil.rmtree(partial.path, ignore_errors=True)
            self.lock.folder = self.path

    def resume_command(self, verb: str) -> str:
        """What continues the run, as a shell takes it from the current folder."""
        shown = min(str(self.path), os.path.relpath(self.path), key=len)
        return f"python -m dnamamba.{verb} --resume --out {shlex.quote(shown)}"

    def clean_up(self) -> None:
        """Removes what a killed process left half-written among the files of the run."""
        for left_over in self.path.glob(".*.partial*"):
            left_over.unlink()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_environment(self, devices: list[str]) -> None:
        """environment.json; of a run that is resumed, environment-resumed-TIME.json."""
        first = self.path / "environment.json"
        began = time.strftime("%Y%m%d-%H%M%S")
        self.write_json(f"environment-resumed-{began}.json" if first.exists() else first.name, environment(devices))

    def write_summary(self, result: Mapping[str, Any]) -> None:
        """summary.json: the run is finished."""
        self.write_json(self.summary.name, result)
        self.unfinished.unlink(missing_ok=True)

    def write_unfinished(self, stopped_by: str, reached: Mapping[str, Any]) -> None:
        """summary.unfinished.json, by the name of the signal."""
        self.write_json(self.unfinished.name, {"finished": False, "stopped_by": stopped_by, **reached})

    def read_summary(self) -> dict[str, Any] | None:
        """What the run has left of the two; None for neither. Raises `InputError` for a damaged file."""
        found = next((path for path in (self.summary, self.unfinished) if path.is_file()), None)
        return None if found is None else read_json(found)

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from: `last`'s target, or None when none was completed."""
        link = self.checkpoints / "last"
        return link.resolve() if (link / "trainer.ckpt").is_file() else None

    def start_metrics(self, step: int) -> dict[str, str] | None:
        """Begin metrics.csv, or drop the rows of a resumed run that lie behind `step`; gives the last row kept."""
        rows = [row for row in self.read_metrics() if int(row["step"]) <= step] if self.metrics.exists() else []
        lines = [",".join(METRICS)] + [",".join(row[name] for name in METRICS) for row in rows]
        write_atomically(self.metrics, "\n".join(lines) + "\n")
        return rows[-1] if rows else None

    def add_metrics(self, row: Mapping[str, float | int | None]) -> None:
        cells = (row.get(name) for name in METRICS)
        with os_errors(self.metrics), self.metrics.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow("" if cell is None else _short(cell) for cell in cells)

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv as text, missing cells empty. A row cut short by a crash is left out."""
        with self.metrics.open(newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def write_validation(self, rows: Iterable[Mapping[str, str | float | int]]) -> None:
        """validation_by_class.csv anew: the rows of one validation."""
        _write_table(self.validation, VALIDATION, rows)

    def read_validation(self) -> list[dict[str, str]]:
        """The rows of validation_by_class.csv as text; none before the first validation."""
        return _read_table(self.validation)

    def write_windows(self, rows: Iterable[Mapping[str, str | float | int]]) -> None:
        """validation_windows.csv anew: the rows of one validation."""
        _write_table(self.windows, WINDOWS, rows)

    def read_windows(self) -> list[dict[str, str]]:
        """The rows of validation_windows.csv as text; none before the first validation, and in older runs."""
        return _read_table(self.windows)


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str | float | int]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_short(row[name]) for name in columns] for row in rows)
    write_atomically(path, text.getvalue())


def _read_table(path: Path) -> list[dict[str, str]]:
    """None where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _short(value: str | float | int) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def environment(devices: list[str]) -> dict[str, Any]:
    """What is needed to reproduce a number: versions, commit, machine, the devices' names, command."""
    versions = {"dnamamba": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # run from a bare checkout, or a package that this machine does without
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": devices,
        "command": sys.orig_argv,
    }


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from, `-dirty` with local changes; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
