"""A VCF's scores by several jobs: each scores some batches of alleles, and a last one writes the file of all.

A batch is what goes through the model together, the same whoever scores it: so scores are those of one job, to the bit.
They lie in OUT.parts until the file is there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from dnamamba.analysis.variants.scores import Scores, StrandScores, Tokens, Truncation
from dnamamba.errors import InputError
from dnamamba.inference.shards import Parts, Shard
from dnamamba.outputs import write_arrays


class KeptScores(Parts):
    """The scores of shards in OUT.parts."""

    subject = "VCF"

    def shards(self) -> list[Shard]:
        """All that there are to be; none if none has been computed. Raises `InputError` for parts of different numbers
        of shards."""
        found = {int(m[1]) for path in self.folder.glob("*.npz") if (m := re.fullmatch(r"\d+-of-(\d+)", path.stem))}
        if len(found) > 1:
            raise InputError(f"{self.folder}: parts of {' and of '.join(map(str, sorted(found)))} shards; remove some")
        count = max(found, default=0)
        return [Shard(f"{number}/{count}") for number in range(1, count + 1)]

    def scores(self, shard: Shard, compute: Callable[[Shard], Scores]) -> Scores:
        """Of a shard, computed unless they are there."""
        path = self.folder / f"{shard.number}-of-{shard.count}.npz"
        if path.is_file():
            with np.load(path) as stored:
                arrays = dict(stored)
            self.refuse_others(path, str(arrays.pop("made_by")))
            return _scores_of(arrays)
        scores = compute(shard)
        self.folder.mkdir(exist_ok=True)
        write_arrays({"made_by": np.array(self.made_by), **_arrays_of(scores)}, path, overwrite=True)
        return scores


def joined(parts: list[Scores]) -> Scores:
    """Of all shards, each allele's from the one that scored it."""
    forward = _joined_strands([part.forward for part in parts])
    reverse = _joined_strands([part.reverse for part in parts])
    sample = Truncation(*(np.concatenate([part.truncation[side] for part in parts]) for side in (0, 1)))
    tiles, alleles, checks = (sum(part.tokens[field] for part in parts) for field in range(3))
    return Scores(forward, reverse, sample, Tokens(tiles, alleles, checks, max(part.tokens.full for part in parts)))


def _joined_strands(parts: list[StrandScores]) -> StrandScores:
    first = parts[0]
    found: dict[str, Any] = {"bases": sum(part.bases for part in parts), "distance": None}
    for name in ("at", "after") if first.distance is None else ("at", "after", "distance"):
        values = getattr(first, name)
        for part in parts[1:]:
            values = np.where(np.isnan(values), getattr(part, name), values)
        found[name] = values
    return StrandScores(**found)


def _arrays_of(scores: Scores) -> dict[str, np.ndarray]:
    found = {"tokens": np.array(scores.tokens), "truncated": scores.truncation[0], "exact": scores.truncation[1]}
    for strand in ("forward", "reverse"):
        for each in fields(StrandScores):
            if (values := getattr(getattr(scores, strand), each.name)) is not None:
                found[f"{strand}_{each.name}"] = values
    return found


def _scores_of(arrays: Mapping[str, np.ndarray]) -> Scores:
    forward, reverse = (
        StrandScores(**{each.name: arrays.get(f"{strand}_{each.name}") for each in fields(StrandScores)})  # type: ignore[arg-type]
        for strand in ("forward", "reverse")
    )
    sample = Truncation(arrays["truncated"], arrays["exact"])
    return Scores(forward, reverse, sample, Tokens(*arrays["tokens"].tolist()))
