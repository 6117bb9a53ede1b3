"""The part of a pretraining's report about where it predicts best and worst: contigs, and validation windows."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnamamba.pages.html import table, text

Rows = Sequence[Mapping[str, str]]
CONTIGS = 3
"""Contigs that are named as predicted best, and as worst"""
WINDOWS = 5
"""The same of windows"""
LOWER_IS_BETTER = "bits per base, lower is better (2 is guessing)"


def contig_extremes(by_class: Rows) -> str:
    """HTML of the contigs that are predicted best and worst; none where there are few. `by_class`: rows of
    validation_by_class.csv."""
    contigs = sorted(_known(row for row in by_class if row["group"] == "contig"), key=_bits)
    if len(contigs) < 2 * CONTIGS:
        return ""
    rows = [
        (row["class"], f"{_bits(row):.4f}", f"{int(row['bases']):,}")
        for row in (*contigs[:CONTIGS], *contigs[-CONTIGS:])
    ]
    header = ("contig", LOWER_IS_BETTER, "bases validated on")
    return f"<h3>The {CONTIGS} contigs predicted best, and the {CONTIGS} predicted worst</h3>{table(header, rows)}"


def window_extremes(windows: Rows, run: Path, config: Mapping[str, Any], genomes: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the windows that are predicted best and worst, and of a command that shows one.

    Args:
        windows: rows of validation_windows.csv; without any the run is of an earlier dnamamba.
        config: the run's settings.
        genomes: what its provenance says of them.
    """
    title = "<h3>The windows predicted best and worst</h3>"
    if not windows:
        known = "Not known: an earlier dnamamba, which kept no validation_windows.csv, wrote the run."
        return f'{title}<p class="muted">{known}</p>'
    usual = statistics.median(int(row["bases"]) for row in windows)
    ranked = sorted(_known(row for row in windows if int(row["bases"]) >= usual / 2), key=_bits)
    number = min(WINDOWS, len(ranked) // 2)
    if not number:
        return ""
    worst = ranked[: -number - 1 : -1]
    chosen = [("best", row) for row in ranked[:number]] + [("worst", row) for row in worst]
    columns = {
        "": [which for which, _ in chosen],
        "genome": [row["genome"] for _, row in chosen],
        "window": [_region(row) for _, row in chosen],
        LOWER_IS_BETTER: [f"{_bits(row):.4f}" for _, row in chosen],
        "bases predicted": [f"{int(row['bases']):,}" for _, row in chosen],
        "repeats (soft-masked)": [f"{float(row['soft_masked']):.0%}" for _, row in chosen],
        "most bases are": [_class_of(row) for _, row in chosen],
    }
    shown = {name: column for name, column in columns.items() if any(column)}
    parts = [
        title,
        f"<p>Of the {len(windows):,} windows of the validation after step {int(windows[0]['step']):,}. Those with few "
        "predicted bases are left out.</p>",
        table(list(shown), zip(*shown.values(), strict=True)),
    ]
    if command := _command(worst[0], run, config, genomes):
        parts.append(f"<p>To look at a window, here the worst:</p><pre>{text(command)}</pre>")
    return "\n".join(parts)


def _known(rows: Any) -> list[Mapping[str, str]]:
    return [row for row in rows if math.isfinite(_bits(row))]


def _bits(row: Mapping[str, str]) -> float:
    return float(row["bits_per_base"])


def _region(row: Mapping[str, str]) -> str:
    return f"{row['contig']}:{int(row['start']) + 1:,}-{int(row['end']):,}"


def _class_of(row: Mapping[str, str]) -> str:
    return f"{row['region']} ({float(row['region_share']):.0%})" if row["region"] else ""


def _command(row: Mapping[str, str], run: Path, config: Mapping[str, Any], genomes: Sequence[Mapping[str, Any]]) -> str:
    """Of `dnamamba browse`; nothing where the run does not say where its genome is."""
    genome = next((each for each in genomes if each.get("name", "") == row["genome"]), {})
    paths = [source["path"] for source in genome.get("source") or []]
    if not paths:
        return ""
    words = ["dnamamba", "browse", "--checkpoint", str(run), "--genome", *paths]
    for name in ("store", "annotation"):
        words += [f"--{name}", str(config[name])] if config.get(name) else []
    return shlex.join([*words, "--region", _region(row), "--out", "window.html"])
