"""Where a score stands among those of random variants of the same kind and length: scores without their length bias.

A deletion saves a model bases to predict and an insertion adds some, so that log-likelihood ratios drift with length,
whatever a variant does. Random variants, nearly all of them neutral, drift alike: of each kind and length some are
drawn from the genome and scored once a model, and an allele's percentile is the share of them that are less likely. The
file `NAME` in the checkpoint's folder keeps their scores.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dnamamba import bundled
from dnamamba.alphabet import BASES, TOKEN_BITS, decode
from dnamamba.analysis.variants.plan import Plan
from dnamamba.errors import InputError, warn
from dnamamba.formats.files import checkpoint_folder, read_json
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.store import user_cache
from dnamamba.genome.view import GenomeView
from dnamamba.inference.load import Inference
from dnamamba.outputs import write_atomically
from dnamamba.runs.progress import job_bar

NAME = "neutral_scores.json"
LONGEST = (1, 2, 3, 4, 6, 9, 14, 20, 30, 50)
"""The longest length of each class of lengths; longer variants have no percentile"""
KINDS = ("substitution", "deletion", "insertion")
"""A substitution is of one base; an insertion's bases are those of another interval of the genome"""
DRAWS = 200
"""Of each kind and class of lengths"""
_MARGIN = 100
"""Bases from a contig's end or an N, at least"""
_TRIES = 1000


class Neutral(NamedTuple):
    """Scores of random variants."""

    scores: dict[str, np.ndarray]
    """`kind length` (of `LONGEST`) → (draws,) llr in nats, ascending"""
    facts: dict[str, Any]
    """Genome, context and the like that they were measured with"""

    def percentile(self, alleles: Alleles, llr: np.ndarray) -> np.ndarray:
        """(alleles,) in 0 to 1: the share of random variants of the kind and length that are less likely than each;
        NaN where there is no score, and for other kinds and lengths."""
        found = np.full(len(alleles), np.nan)
        kinds = np.array(classes_of(alleles))
        for name, scores in self.scores.items():
            own = np.flatnonzero((kinds == name) & np.isfinite(llr))
            below, up_to = (np.searchsorted(scores, llr[own], side=side) for side in ("left", "right"))
            found[own] = (below + up_to + 1) / (2 * (len(scores) + 1))
        return found


def classes_of(alleles: Alleles) -> list[str]:
    """The kind and class of lengths of each allele, "" for others."""
    names = []
    for ref_length, alt in zip(alleles.ref_length.tolist(), alleles.alt, strict=True):
        length = max(ref_length, len(alt))
        kind = "substitution" if ref_length == len(alt) == 1 else "deletion" if not alt else "insertion"
        plain = kind == "substitution" or not alt or not ref_length
        longest = next((each for each in LONGEST if length <= each), None)
        names.append(f"{kind} {longest}" if plain and longest is not None and length else "")
    return names


def random_alleles(store: GenomeView, draws: int, seed: int) -> Alleles:
    """`draws` alleles of each kind and class of lengths, at random positions of the genome away from N.

    Raises `InputError` for a genome that is too small or has too many N.
    """
    chance = np.random.default_rng(seed)
    lengths = np.array([contig.length for contig in store.contigs], np.int64)
    usable = np.maximum(lengths - 2 * _MARGIN - LONGEST[-1], 0)
    tries = _TRIES if usable.any() else 0
    probability = usable / max(usable.sum(), 1)

    def interval(length: int) -> tuple[int, int, str]:
        for _ in range(tries):
            contig = int(chance.choice(len(usable), p=probability))
            start = int(_MARGIN + chance.integers(usable[contig]))
            around = store.read(store.contigs[contig].name, start - _MARGIN, start + length + _MARGIN) & TOKEN_BITS
            if (around < BASES).all():
                return contig, start, decode(around[_MARGIN : _MARGIN + length])
        raise InputError("the genome has too few intervals without N to draw random variants from")

    rows = []
    for kind in KINDS:
        for shortest, longest in zip((0, *LONGEST), LONGEST, strict=False):
            for _ in range(draws if kind != "substitution" or longest == 1 else 0):
                length = int(chance.integers(shortest + 1, longest + 1))
                contig, start, ref = interval(length)
                if kind == "substitution":
                    other = ("ACGT".index(ref) + int(chance.integers(1, BASES))) % BASES
                    rows.append((contig, start, 1, "ACGT"[other]))
                elif kind == "deletion":
                    rows.append((contig, start, length, ""))
                else:
                    rows.append((contig, start, 0, interval(length)[2]))
    contigs, starts, ref_lengths, alts = zip(*rows, strict=True)
    return Alleles(
        np.arange(len(rows) + 1),
        np.array(contigs, np.int32),
        np.array(starts, np.int64),
        np.array(ref_lengths, np.int64),
        list(alts),
        np.zeros(len(rows), np.uint8),
    )


def measure(inference: Inference, store: GenomeView, plan: Plan, draws: int, seed: int = 0) -> Neutral:
    """Scores random alleles of the genome."""
    alleles = random_alleles(store, draws, seed)
    with job_bar("scoring random variants", "alleles, each strand counted") as progress:
        scores = plan.score(inference, store, alleles, progress)
    llr = (scores.forward.llr + scores.reverse.llr) / 2
    names = np.array(classes_of(alleles))
    by_class = {name: np.sort(llr[(names == name) & np.isfinite(llr)]) for name in dict.fromkeys(names.tolist())}
    return Neutral(by_class, facts_of(inference, store, plan))


def facts_of(inference: Inference, store: GenomeView, plan: Plan) -> dict[str, Any]:
    """What the scores depend on but the draws."""
    contigs = "\n".join(f"{contig.name} {contig.length}" for contig in store.contigs)
    genome = hashlib.sha256(contigs.encode()).hexdigest()
    weights = inference.provenance.get("weights_sha256")
    return {**plan.provenance(), "weights": weights, "precision": inference.precision, "contigs": genome}


def neutral_scores(inference: Inference, store: GenomeView, plan: Plan) -> Neutral:
    """Those that are kept, or if there are none of these weights, genome and plan, measured now and kept."""
    path, facts = _kept_in(inference.checkpoint) / NAME, facts_of(inference, store, plan)
    if path.is_file():
        kept = read_json(path)
        if kept.get("facts") == facts:
            return Neutral({name: np.array(values) for name, values in kept["scores"].items()}, facts)
    found = measure(inference, store, plan, DRAWS)
    try:
        kept = {"facts": facts, "scores": {name: each.tolist() for name, each in found.scores.items()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept) + "\n")
    except OSError as error:
        warn(f"{path}: the scores of random variants could not be kept ({error.strerror})")
    return found


def _kept_in(checkpoint: Path) -> Path:
    """The package's own folder is no place to write to: it may be read-only, and belongs to all users."""
    folder = checkpoint_folder(checkpoint)
    return user_cache() / "neutral_scores" / folder.name if folder.parent == bundled.FOLDER else folder
