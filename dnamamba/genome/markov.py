"""The baseline that a language model has to beat: an interpolated Markov model of the next base, or of a base given
those on both sides.

Order j predicts a base from the j bases before it. Contexts seen often are trusted, rare ones lean on the order below
(the predictive form of a hierarchical Dirichlet model: MacKay & Peto, Nat. Lang. Eng. 1:289, 1995):

    P_j(b | c) = (n(c b) + s_j P_{j-1}(b | c')) / (n(c) + s_j),      P_{-1} = 1/4

The same chain says how likely a base is that is masked: as each of the four, times all that follow from it,

    P_j(b | all others) ∝ Π_{0 ≤ i ≤ j} P_j(x_{t+i} | the j bases before it, with b at t).

n counts the training split, c' is the context c without its oldest base, and the strength s_j is the one, among powers
of two, that predicts best a part of the training split set aside for it (every so many 64 kb blocks); afterwards that
part is counted too. Validation data choose nothing: not the strengths and not the order that is reported.

Memory is that of the tables, 4^(order + 1) counters of 4 bytes and as many probabilities, whatever the genome's size:
training data are read in blocks. The whole process takes 130 MB at order 10 and 1.5 GB at order 12.

Arrays are those of the token store: uint8, A 0, C 1, G 2, T 3, 4 and more breaks the context, bit 7 (the soft mask) is
ignored. A *code* is a number of base 4 whose digits are a context and its target, oldest base first, target last.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnamamba.alphabet import BASES, COMPLEMENT, PAD, TOKEN_BITS
from dnamamba.errors import InputError
from dnamamba.genome.progress import OnProgress
from dnamamba.genome.store import user_cache
from dnamamba.outputs import write_atomically

MAX_ORDER = 12
"""Beyond it the tables outgrow a laptop, and no genome has the bases to fill them."""
STRENGTHS = tuple(2.0**power for power in range(14, -2, -1))
"""Candidates for s_j, in bases; of equals the strongest smoothing is taken."""
BLOCK = 1 << 16
"""Bases read at once while counting; also the grain of the part set aside."""
HELD_OUT_SHARE = 16
"""At most one block of so many is set aside for the strengths."""
HELD_OUT_BASES = 1 << 21
"""Bases set aside at most: more would not change a strength."""
SCORING_TOKENS = 1 << 18
"""Windows are scored together up to so many tokens at once."""
CACHE_FORMAT = 1
"""Part of the cache's key: raise it whenever the same input would give other figures."""


@dataclass(frozen=True)
class MarkovModel:
    """All orders from 0 to `order`; `log2_probabilities[j]` is float32, of 4^(j + 1) entries, indexed by code."""

    strengths: tuple[float, ...]
    held_out_bits: tuple[float, ...]
    """Bits per base of each order on the part of the training split set aside."""
    log2_probabilities: tuple[np.ndarray, ...]

    @property
    def order(self) -> int:
        """The highest order."""
        return len(self.strengths) - 1

    @property
    def best_order(self) -> int:
        """The order that predicted the set-aside part of the training split best."""
        return int(np.argmin(self.held_out_bits))

    def bits_per_base(self, windows: Iterable[np.ndarray]) -> dict[int, tuple[float, int]]:
        """For each order the bits needed for all targets of the windows, and the number of these targets.

        A window of L + 1 tokens has the targets 1 ... L that are A, C, G or T: those of a language model that reads
        tokens 0 ... L - 1. A context never reaches over the window's start or a token that is no base; near them the
        prediction is that of the highest order that fits.
        """
        bits = np.zeros(self.order + 1)
        counted = 0
        for tokens, read in _joined(windows, self.order):
            codes, contexts = _codes(tokens, self.order)
            contexts[read] = -1
            full = codes[contexts == self.order]
            short = [codes[contexts == length] for length in range(self.order)]
            counted += full.size + sum(part.size for part in short)
            for order, table in enumerate(self.log2_probabilities):
                bits[order] -= _sum_at(table, full)
                for length, part in enumerate(short):
                    bits[order] -= _sum_at(self.log2_probabilities[min(order, length)], part)
        return {order: (float(bits[order]), counted) for order in range(self.order + 1)}

    def log2_likelihoods(self, rows: np.ndarray) -> np.ndarray:
        """Of each row of (rows, length) tokens, for each order: (order + 1, rows) fp64, log2 P of all of its bases,
        each from those before it in the row. What is no base counts nothing, and breaks the context."""
        length = rows.shape[1]
        found = np.zeros((self.order + 1, len(rows)))
        at_once = max(SCORING_TOKENS // max(length, 1), 1)
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            codes, contexts = _codes(part.ravel(), self.order)
            contexts = np.minimum(contexts, np.tile(np.arange(length), len(part)))
            for order in range(self.order + 1):
                lengths, values = np.minimum(contexts, order), np.zeros(part.size)
                for number in range(order + 1):
                    here = lengths == number
                    table = self.log2_probabilities[number]
                    values[here] = table[codes[here] & np.uint32(table.size - 1)]
                found[order, first : first + at_once] = values.reshape(part.shape).sum(1)
        return found

    def masked_bits_per_base(self, windows: Iterable[np.ndarray], order: int) -> tuple[float, int]:
        """For one order the bits needed for the same targets, each masked by itself and predicted from all others of
        its window up to the next token that is no base, and their number."""
        bits, counted = 0.0, 0
        for tokens, read in _joined(windows, self.order, self.order):
            codes, contexts = _codes(tokens, self.order)
            is_target = contexts >= 0
            is_target[read] = False
            targets = np.flatnonzero(is_target)
            own = codes[targets] % BASES
            counted += targets.size
            scores = self._scores_of_all_four(codes, contexts, targets, order)
            bits += float((np.logaddexp2.reduce(scores) - scores[own, np.arange(targets.size)]).sum(dtype=np.float64))
        return bits, counted

    def _scores_of_all_four(
        self, codes: np.ndarray, contexts: np.ndarray, targets: np.ndarray, order: int
    ) -> np.ndarray:
        """(4, targets) fp32: log2 of the product above with each base at the position of the target."""
        scores = np.zeros((BASES, targets.size), np.float32)
        reached = np.arange(targets.size)
        for ahead in range(order + 1):
            reached = reached[contexts[targets[reached] + ahead] >= 0]
            position = targets[reached] + ahead
            place = np.uint32(2 * ahead)  # of the target's digit in the codes there
            others = codes[position] & ~(np.uint32(BASES - 1) << place)
            lengths = np.minimum(contexts[position], order)
            for length in np.unique(lengths).tolist():
                table, here = self.log2_probabilities[length], lengths == length
                for base in range(BASES):
                    replaced = others[here] | np.uint32(base) << place
                    scores[base, reached[here]] += table[replaced & np.uint32(table.size - 1)]
        return scores


class MarkovScore(NamedTuple):
    """What the summary reports; bits per base are over the windows' targets A, C, G, T."""

    bits_per_base: float
    """Of `order`."""
    order: int
    """The best by the set-aside part of the training split."""
    bits_per_base_by_order: list[float]
    """Of all orders from 0; from both sides of `order` alone."""
    strengths: list[float]
    counted: int
    """Targets scored."""
    both_strands: bool
    both_sides: bool = False
    """Each base predicted from those on both sides of it, not from those before it alone."""


def fit(
    arrays: Iterable[np.ndarray], order: int = 10, both_strands: bool = False, progress: OnProgress | None = None
) -> MarkovModel:
    """Fits orders 0 to `order` on token arrays, one a training interval (views of the memory map: all are held).

    `both_strands` counts the reverse complement of each array too, as a model does that trains with reverse-complement
    augmentation. `InputError` for an order outside 0 ... 12.
    """
    if not 0 <= order <= MAX_ORDER:
        raise InputError(f"Markov order {order}: expected 0 to {MAX_ORDER}; the tables have 4^(order + 1) entries")
    views = list(arrays)
    total = sum(view.size for view in views)
    blocks = list(_blocks(views, size=max(1, min(BLOCK, total // 64))))
    every = max(HELD_OUT_SHARE, -(-total // HELD_OUT_BASES))
    held_out = blocks[every // 2 :: every]
    training = [block for index, block in enumerate(blocks) if index % every != every // 2]

    counts = _empty_counts(order)
    done = 0
    for index, block in enumerate(training):
        _count(counts, block, order, both_strands)
        done += block.stop - block.start
        if progress and (index % 256 == 255 or index == len(training) - 1):
            progress(done, total)
    aside = _empty_counts(order)
    for block in held_out:
        _count(aside, block, order, both_strands=False)
    strengths, held_out_bits = _choose_strengths(_tables(counts), _tables(aside))

    for block in held_out:
        _count(counts, block, order, both_strands)
    if progress:
        progress(total, total)
    probabilities = np.full(BASES, 1 / BASES, dtype=np.float32)
    logarithms = []
    for table, strength in zip(_tables(counts), strengths, strict=True):
        probabilities = _interpolate(table, probabilities, strength)
        logarithms.append(np.log2(probabilities))
    return MarkovModel(tuple(strengths), tuple(held_out_bits), tuple(logarithms))


def score(
    training: Iterable[np.ndarray],
    windows: Iterable[np.ndarray],
    key: Mapping[str, str],
    order: int = 10,
    both_strands: bool = False,
    both_sides: bool = False,
    cache_folder: Path | None = None,
    progress: OnProgress | None = None,
) -> MarkovScore:
    """The best model of `training` on `windows`, computed once and then read from the user's cache folder.

    `both_sides`: `masked_bits_per_base` of it. `key` must name the data fully, for example
    `{"store": fingerprint, "splits": hash, "windows": hash}`; the order, strands and sides are added to it.
    Neither iterable is touched when the cache knows the answer. A cache that cannot be read or written costs the time
    of computing, nothing else.
    """
    full_key = {**key, "order": order, "both_strands": both_strands, "format": CACHE_FORMAT}
    full_key |= {"both_sides": True} if both_sides else {}
    digest = hashlib.sha256(json.dumps(full_key, sort_keys=True).encode()).hexdigest()
    folder = _cache_folder() if cache_folder is None else cache_folder
    path = folder / f"{digest[:32]}.json"
    if (known := _read_cache(path, full_key)) is not None:
        return known

    model = fit(training, order, both_strands, progress)
    best = model.best_order
    results = {best: model.masked_bits_per_base(windows, best)} if both_sides else model.bits_per_base(windows)
    by_order = {order: bits / max(counted, 1) for order, (bits, counted) in results.items()}
    result = MarkovScore(
        bits_per_base=by_order[best],
        order=best,
        bits_per_base_by_order=list(by_order.values()),
        strengths=list(model.strengths),
        counted=results[best][1],
        both_strands=both_strands,
        both_sides=both_sides,
    )
    _write_cache(path, {"key": full_key, "score": result._asdict()})
    return result


class _ArrayBlock(NamedTuple):
    array: np.ndarray
    start: int
    stop: int


def _blocks(arrays: Sequence[np.ndarray], size: int) -> Iterator[_ArrayBlock]:
    for array in arrays:
        for start in range(0, array.size, size):
            yield _ArrayBlock(array, start, min(start + size, array.size))


def _empty_counts(order: int) -> list[np.ndarray]:
    """counts[j]: targets by code, of those with exactly j bases before them (at least j for the highest order)."""
    return [np.zeros(BASES ** (length + 1), dtype=np.uint32) for length in range(order + 1)]


def _count(counts: list[np.ndarray], block: _ArrayBlock, order: int, both_strands: bool) -> None:
    """Adds a block's targets to `counts`; their contexts may begin before the block, within its array."""
    array, start, stop = block
    lead = min(order, start)
    strands = [(array[start - lead : stop], lead)]
    if both_strands:
        lead = min(order, array.size - stop)
        strands.append((COMPLEMENT[array[start : stop + lead][::-1]], lead))
    for tokens, lead in strands:
        codes, contexts = (part[lead:] for part in _codes(tokens, order))
        full = contexts == order
        np.add.at(counts[order], codes[full], np.uint32(1))
        if not full.all():
            for length in range(order):
                short = codes[contexts == length] & np.uint32(counts[length].size - 1)
                np.add.at(counts[length], short, np.uint32(1))


def _codes(tokens: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """For each token its code (uint32) and the number of bases directly before it (int64, up to `order`).

    The number is -1 where the token is no base. Digits of a code beyond that number are meaningless.
    """
    tokens = tokens & np.uint8(TOKEN_BITS)
    bases = (tokens & np.uint8(BASES - 1)).astype(np.uint32)
    codes = bases.copy()
    for back in range(1, min(order, tokens.size - 1) + 1):
        codes[back:] |= bases[:-back] << np.uint32(2 * back)
    positions = np.arange(tokens.size)
    breaks = np.where(tokens >= BASES, positions, -1)
    contexts = positions - np.maximum.accumulate(breaks) - 1
    return codes, np.minimum(contexts, order)


def _tables(counts: list[np.ndarray]) -> list[np.ndarray]:
    """n(c b) of every order by code, each counting all targets that have that many bases before them."""
    tables = [counts[-1]]
    for exact in reversed(counts[:-1]):
        # The oldest base is the leading digit: summing over it shortens the context by one.
        tables.append(exact + tables[-1].reshape(BASES, -1).sum(axis=0, dtype=np.uint64))
    return tables[::-1]


def _interpolate(table: np.ndarray, below: np.ndarray, strength: float) -> np.ndarray:
    """P_j by code (float32) from its counts and P_{j-1}; the module's equation for all contexts at once."""
    # (oldest base, the rest of the context, target); order 0 has a single, empty context above the uniform.
    joint = table.astype(np.float32).reshape(-1, below.size // BASES, BASES)
    total = joint.sum(axis=-1, keepdims=True)
    joint += np.float32(strength) * below.reshape(1, -1, BASES)
    joint /= total + np.float32(strength)
    return joint.reshape(-1)


def _choose_strengths(counts: list[np.ndarray], aside: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """For each order, from 0 up, the strength that predicts `aside` best, and the bits per base it then needs."""
    strengths, bits = [], []
    below = np.full(BASES, 1 / BASES, dtype=np.float32)
    for table, wanted in zip(counts, aside, strict=True):
        # Only the codes that occur in the set-aside part matter: far fewer than the table has.
        codes = np.flatnonzero(wanted)
        weight = wanted[codes].astype(np.float64)
        joint = table[codes].astype(np.float64)
        total = table.reshape(-1, BASES).sum(axis=1, dtype=np.float64)[codes // BASES]
        prior = below[codes % below.size].astype(np.float64)

        def loss(strength: float, weight=weight, joint=joint, total=total, prior=prior) -> float:
            predicted = (joint + strength * prior) / (total + strength)
            return float(-(weight * np.log2(predicted)).sum() / max(weight.sum(), 1))

        best = min(STRENGTHS, key=loss)
        strengths.append(best)
        bits.append(loss(best))
        below = _interpolate(table, below, best)
    return strengths, bits


def _joined(windows: Iterable[np.ndarray], before: int, after: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows joined by a token that breaks contexts, some at a time, with the positions that are read and not
    predicted: the first base of each window. Longer windows come in parts, each with so many bases `before` and `after`
    it as context."""
    parts: list[np.ndarray] = []
    read: list[int] = []
    size = 0
    separator = np.array([PAD], dtype=np.uint8)
    for window in windows:
        for begin in range(0, window.size, SCORING_TOKENS):
            lead, end = min(before, begin), min(begin + SCORING_TOKENS, window.size)
            part = window[begin - lead : end + after]
            parts += [part, separator]
            read += [*range(size, size + (lead if begin else 1)), *range(size + lead + end - begin, size + part.size)]
            size += part.size + 1
            if size >= SCORING_TOKENS:
                yield np.concatenate(parts), np.array(read, np.int64)
                parts, read, size = [], [], 0
    if parts:
        yield np.concatenate(parts), np.array(read, np.int64)


def _sum_at(table: np.ndarray, codes: np.ndarray) -> float:
    """The sum of the table at the codes' last digits, as many as the table's order has."""
    return float(table[codes & np.uint32(table.size - 1)].sum(dtype=np.float64))


def _cache_folder() -> Path:
    return user_cache() / "markov"


def _read_cache(path: Path, key: dict) -> MarkovScore | None:
    try:
        content = json.loads(path.read_text())
        return MarkovScore(**content["score"]) if content["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_cache(path: Path, content: dict) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1))
