"""The part of a report about scored variants: how the scores are spread, over all and by consequence."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dnamamba.errors import InputError
from dnamamba.genome.vcf import info_fields, info_numbers, is_vcf_name, open_vcf, variant_of
from dnamamba.pages.html import figure, table, text
from dnamamba.pages.variants import DEFAULT_SCORE, finite
from dnamamba.pictures.score_distribution import plot_score_distribution
from dnamamba.tables import read_table
from dnamamba.text_files import as_text

SCORE_COLUMNS = ("llr", DEFAULT_SCORE.lower(), "score")
CLASS_COLUMNS = ("effect", "consequence", "most_severe_consequence", "mc", "class", "clnsig", "label")
"""Columns and INFO fields by which variants are grouped: the first that there is, in any case"""
MOST_CLASSES = 200
"""Values of a column that is one of classes"""


class ScoreTable:
    """The scores of a file: `scores` (variants,) float64, `classes` (variants,) str or None, `skipped` alleles."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.score_name, self.class_name, pairs = _of_vcf(path) if is_vcf_name(path) else _of_table(path)
        known = [(score, group) for score, group in pairs if score is not None]
        self.skipped = len(pairs) - len(known)
        if not known:
            raise InputError(f"{path}: no variant has a {self.score_name}; score them first with dnamamba score")
        self.scores = np.array([score for score, _ in known], np.float64)
        self.classes = np.array([group or "none" for _, group in known]) if self.class_name else None

    def by_class(self) -> dict[str, np.ndarray]:
        """Class -> scores; none where there are no classes."""
        if self.classes is None:
            return {}
        return {str(name): self.scores[self.classes == name] for name in np.unique(self.classes)}


def scores_section(scores: ScoreTable) -> str:
    """HTML of one file."""
    is_ratio = scores.score_name.lower() in ("llr", DEFAULT_SCORE.lower())
    label = "log-likelihood ratio (nats)" if is_ratio else scores.score_name
    zero = "below 0 the alternate allele is less likely" if is_ratio else ""
    groups = scores.by_class()
    by = f" and by {scores.class_name}" if scores.class_name else ""
    rows = [_row("all", scores.scores), *(_row(name, of) for name, of in groups.items())]
    rows[1:] = sorted(rows[1:], key=lambda row: float(row[3]))
    header = ("variants of", "variants", "mean", "median", "5 %", "95 %", "below 0")
    note = f"{scores.skipped:,} alleles have no score. " if scores.skipped else ""
    if scores.class_name is None:
        note += f"There is no column of classes; one called {', '.join(CLASS_COLUMNS[:2])} … would be one."
    return "\n".join(
        [
            f"<h2>{text(scores.name)}</h2>",
            figure(
                lambda path: plot_score_distribution(
                    scores.scores, groups, path, title=scores.name, label=label, zero=zero
                ),
                f"The scores of {scores.scores.size:,} alleles{by}.",
            ),
            table(header, rows),
            f'<p class="muted">{text(note)}</p>' if note else "",
        ]
    )


def comparison(files: list[ScoreTable]) -> str:
    """HTML that compares several files; none of one."""
    if len(files) < 2:
        return ""
    rows = [_row(each.name, each.scores) for each in files]
    header = ("scores of", "variants", "mean", "median", "5 %", "95 %", "below 0")
    return f"<h2>Scores compared</h2>{table(header, rows)}"


def _row(name: str, scores: np.ndarray) -> tuple[str, ...]:
    low, median, high = np.quantile(scores, (0.05, 0.5, 0.95))
    numbers = (f"{value:.3f}" for value in (scores.mean(), median, low, high))
    return (name, f"{scores.size:,}", *numbers, f"{(scores < 0).mean():.1%}")


def _of_vcf(path: Path) -> tuple[str, str | None, list[tuple[float | None, str]]]:
    with open_vcf(path) as (header, lines):
        numbers = info_numbers(header)
        if DEFAULT_SCORE not in numbers:
            raise InputError(f"{path}: has no {DEFAULT_SCORE}; score it first with dnamamba score")
        group = _first(list(numbers), CLASS_COLUMNS)

        def alleles() -> Iterator[tuple[float | None, str]]:
            for line in lines:
                variant = variant_of(path, line)
                count = 0 if variant.alt == "." else variant.alt.count(",") + 1
                info = as_text(line.columns[5]).split("\t", 3)[2]
                for fields in info_fields(numbers, info, count):
                    yield finite(fields.get(DEFAULT_SCORE, "")), fields.get(group, "") if group else ""

        return DEFAULT_SCORE, group, list(alleles())


def _of_table(path: Path) -> tuple[str, str | None, list[tuple[float | None, str]]]:
    frame = read_table(path)
    score = _first(frame.columns, SCORE_COLUMNS)
    if score is None:
        raise InputError(f"{path}: has the columns {', '.join(frame.columns)}; expected one called llr or score")
    group = _first(frame.columns, CLASS_COLUMNS)
    texts = ["" if value is None else str(value) for value in frame[group].to_list()] if group else [""] * frame.height
    if group and len(Counter(texts)) > MOST_CLASSES:
        group, texts = None, [""] * frame.height
    values = [finite(str(value)) for value in frame[score].to_list()]
    return score, group, list(zip(values, texts, strict=True))


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    lowered = {name.lower(): name for name in names}
    return next((lowered[name] for name in wanted if name in lowered), None)
