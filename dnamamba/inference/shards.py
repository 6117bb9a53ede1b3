"""A verb's work shared out among jobs: `--shard I/N`."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba import __version__
from dnamamba.errors import InputError
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference


class Shard:
    """One job's share of several."""

    def __init__(self, text: str) -> None:
        """`text` is I/N, as --shard takes it. Raises `InputError` for another."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard: {text!r} is not possible, expected I/N with I from 1 to N, such as 2/8")
        self.number, self.count = int(found[1]), int(found[2])

    def __str__(self) -> str:
        return f"{self.number} of {self.count}"

    def takes(self, number: int) -> bool:
        """Of what is numbered from 0: every N-th."""
        return number % self.count == self.number - 1

    def largest_first(self, sizes: Mapping[str, int]) -> list[str]:
        """Of what has so many bases each: from the largest on, each goes to the job with the fewest."""
        load, own = [0] * self.count, []
        for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
            job = min(range(self.count), key=lambda job: (load[job], job))
            load[job] += sizes[name]
            if job == self.number - 1:
                own.append(name)
        return own


class Parts:
    """The folder OUT.parts, in which jobs that computed the same leave their shares."""

    subject: str
    """What the values are of besides model and genome, in messages"""

    def __init__(self, out: Path, made_by: Mapping[str, Any]) -> None:
        """`made_by`: all that the values depend on, as JSON can hold it."""
        self.folder = out.with_name(f"{out.name}.parts")
        self.made_by = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()

    def refuse_others(self, path: Path, made_by: str) -> None:
        """Raises `InputError` for a part that says it was made by another computation."""
        if made_by != self.made_by:
            raise InputError(
                f"{path}: of another model, genome, {self.subject} or setting; remove {self.folder}, or choose "
                "another --out"
            )

    def remove(self) -> None:
        """When the files of all are there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def made_with(inference: Inference, store: GenomeView, genome: Sequence[Path]) -> dict[str, Any]:
    """What all values of a model on a genome depend on. Where the genome is read by its index, which knows no
    fingerprint, its files' names, sizes and times of change stand for it."""
    states = [(path.absolute(), path.stat()) for path in genome] if store.fingerprint is None else []
    return {
        "weights": inference.provenance.get("weights_sha256") or str(inference.checkpoint.absolute()),
        "genome": store.fingerprint or [[str(path), state.st_size, state.st_mtime_ns] for path, state in states],
        "precision": inference.precision,
        "device": inference.device.type,
        "version": __version__,
    }
