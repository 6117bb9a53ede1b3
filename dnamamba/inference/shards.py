"""A verb's work shared out among jobs: `--shard I/N`."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from dnamamba.errors import InputError


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


def fingerprint_of(made_by: Mapping[str, Any]) -> str:
    """Of all that values depend on, as JSON can hold it."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
