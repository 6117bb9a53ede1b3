"""The part of a report about pretrainings: what each learnt from, how it went, and where it is good."""

import functools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnamamba.errors import InputError
from dnamamba.genome.store_format import read_index
from dnamamba.pages.extremes import LOWER_IS_BETTER, contig_extremes, window_extremes
from dnamamba.pages.html import figure, labelled, table, text
from dnamamba.pages.run import ReportedRun
from dnamamba.pictures.learning_curve import plot_learning_curve
from dnamamba.pictures.run_curves import plot_run_curves
from dnamamba.pictures.split_map import SPLITS, plot_split_map
from dnamamba.pictures.validation_by_class import plot_validation_by_class
from dnamamba.runs.progress import clock, si
from dnamamba.runs.summary import summary_lines


class Pretraining(ReportedRun):
    """What the run folder of a pretraining holds."""

    def __init__(self, path: Path, name: str, config: Mapping[str, Any]) -> None:
        super().__init__(path, name)
        self.config = config
        if not self.folder.metrics.is_file():
            raise InputError(f"{path}: the run has no metrics.csv yet; wait until it has trained some steps")
        self.metrics = self.folder.read_metrics()
        self.by_class = self.folder.read_validation()

    @property
    def bits(self) -> str:
        """Of the last validation."""
        value = self.summary.get("validation_bits_per_base")
        shown = [row["validation_bits_per_base"] for row in self.metrics if row["validation_bits_per_base"]]
        return f"{value:.4f}" if value is not None else f"{float(shown[-1]):.4f}" if shown else "–"

    @property
    def speed(self) -> str:
        """The median of the steps."""
        rates = [float(row["tokens_per_second"]) for row in self.metrics if row["tokens_per_second"]]
        return f"{si(statistics.median(rates))}bases/s" if rates else "–"

    def splits(self) -> list[tuple[str, list[tuple[str, int, int, str]], dict[str, int]]]:
        """(genome, intervals, contig lengths) of each genome; lengths as far as the run says them."""
        genomes = (self.card or {}).get("provenance", {}).get("genomes") or [{}]
        found = []
        for path in sorted(self.path.glob("splits*.bed")):
            name = path.stem.removeprefix("splits").removeprefix("-")
            rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            intervals = [
                (row[0], int(row[1]), int(row[2]), row[3]) for row in rows if len(row) > 3 and row[3] in SPLITS
            ]
            genome: dict[str, Any] = next((each for each in genomes if each.get("name", "") == name), {})
            lengths = dict(genome.get("contigs") or {})
            for contig, _, end, _ in intervals:
                if contig not in (genome.get("contigs") or {}):
                    lengths[contig] = max(lengths.get(contig, 0), end)
            found.append((name, intervals, lengths))
        return found


def pretraining_section(run: Pretraining) -> str:
    """HTML of one run."""
    summary, markov = run.summary, run.summary.get("markov_bits_per_base")
    time = f"{clock(summary['seconds'])} of training" if "seconds" in summary else ""
    lines = [*run.lines, ("speed", f"{run.speed}, median of the steps"), ("time", time), *summary_lines(summary)]
    parts = [f"<h2>{text(run.name)}</h2>", labelled(lines)]
    parts.append(
        figure(
            lambda path: plot_learning_curve(run.metrics, path, title=run.name, markov=markov),
            "Training and validation against the bases seen. Below the dashed line the model knows more than the best "
            "Markov model of the same training split.",
        )
    )
    speed = {run.name: run.metrics}
    scale, unit = (
        (1e6, "Mbases/s")
        if any(float(row["tokens_per_second"] or 0) > 2e5 for row in run.metrics)
        else (1e3, "kbases/s")
    )
    parts.append(
        figure(
            lambda path: plot_run_curves(
                speed,
                path,
                column="tokens_per_second",
                label=f"{unit}, higher is better",
                scale=scale,
                from_zero=True,
            ),
            "Bases trained per second, without validation.",
        )
    )
    if run.by_class:
        objective = (run.card or {}).get("config", {}).get("objective")
        parts.append(
            figure(
                lambda path: plot_validation_by_class(
                    run.by_class, path, title=run.name, markov=markov, both_sides=objective == "masked_base"
                ),
                "The last validation by context, class of region and contig.",
            )
        )
        genomes = (run.card or {}).get("provenance", {}).get("genomes") or []
        parts.append(contig_extremes(run.by_class))
        parts.append(window_extremes(run.folder.read_windows(), run.path, run.config, genomes))
    if by_genome := summary.get("genomes"):
        rows = [
            (name, f"{of['validation_bits_per_base']:.4f}", f"{of.get('markov_bits_per_base') or float('nan'):.4f}")
            for name, of in by_genome.items()
        ]
        parts += ["<h3>By genome</h3>", table(("genome", LOWER_IS_BETTER, "best Markov model"), rows)]
    parts += ["<h3>Data</h3>", _data(run)]
    return "\n".join(parts)


def comparison(runs: list[Pretraining]) -> str:
    """HTML that compares several runs; none of one."""
    if len(runs) < 2:
        return ""
    rows = []
    for run in runs:
        markov = run.summary.get("markov_bits_per_base")
        peak = [float(row["peak_memory_gib"]) for row in run.metrics if row.get("peak_memory_gib")]
        rows.append(
            (
                run.name,
                run.bits,
                f"{markov:.4f}" if markov is not None else "–",
                f"{int(run.metrics[-1]['tokens']) / 1e6:,.1f}" if run.metrics else "–",
                str(run.config.get("length") or "–"),
                run.speed,
                f"{max(peak):.1f}" if peak else "–",
            )
        )
    header = ("run", "bits per base", "best Markov model", "bases seen (millions)", "length", "speed", "peak GiB")
    parts = ["<h2>Compared</h2>", table(header, rows)]
    curves = {run.name: run.metrics for run in runs}
    parts.append(
        figure(
            lambda path: plot_run_curves(curves, path, column="validation_bits_per_base", label=LOWER_IS_BETTER),
            "Validation against the bases seen. Runs with other validation windows or genomes do not compare.",
        )
    )
    classes = dict.fromkeys(
        (row["group"], row["class"])
        for run in runs
        for row in run.by_class
        if row["group"] not in ("position", "contig")
    )
    groups = list(dict.fromkeys(group for group, _ in classes))
    keys = sorted(classes, key=lambda key: groups.index(key[0]))
    by_run = [{(row["group"], row["class"]): float(row["bits_per_base"]) for row in run.by_class} for run in runs]
    shown = [(f"{group}: {name}" if group != name else name) for group, name in keys]
    cells = [
        (label, *(f"{of[key]:.4f}" if key in of else "–" for of in by_run))
        for label, key in zip(shown, keys, strict=True)
    ]
    parts += ["<h3>By class, bits per base</h3>", table(("class", *(run.name for run in runs)), cells)]
    return "\n".join(parts)


def _data(run: Pretraining) -> str:
    parts = []
    for name, intervals, lengths in run.splits():
        title = f"splits of {name}" if name else "splits"
        draw = functools.partial(plot_split_map, intervals, lengths, title=title)
        parts.append(figure(draw, "Where train, validation and test lie."))
        bases = sum(lengths.values())
        rows = []
        for split in SPLITS:
            own = [end - start for _, start, end, each in intervals if each == split]
            if own:
                rows.append((split, f"{sum(own):,}", f"{sum(own) / bases:.1%}", f"{len(own):,}"))
        parts.append(table(("split", "bases", "share of the contigs", "intervals"), rows))
        if composition := _composition(run, name):
            parts.append(composition)
    return "\n".join(parts)


def _composition(run: Pretraining, name: str) -> str:
    """Bases, N and repeats of each contig from the token store next to the genome, while it is there and the same."""
    genomes = (run.card or {}).get("provenance", {}).get("genomes") or []
    for genome in genomes:
        for source in genome.get("source") or [] if genome.get("name", "") == name else []:
            store = Path(f"{source.get('path', '')}.dnamamba")
            try:
                index = read_index(store) if store.is_dir() else None
            except InputError:
                index = None
            if index is None or index["fingerprint"] != genome.get("fingerprint"):
                continue
            columns = index["contigs"]
            used = set(genome.get("contigs") or columns["name"])
            rows = [
                (contig, f"{length:,}", f"{missing / length:.2%}", f"{masked / length:.2%}")
                for contig, length, missing, masked in zip(
                    *(columns[key] for key in ("name", "length", "n_count", "soft_masked")), strict=True
                )
                if contig in used and length
            ]
            rows.sort(key=lambda row: -int(row[1].replace(",", "")))
            header = ("contig", "bases", "N", "soft-masked (repeats)")
            more = f'<p class="muted">{len(rows) - 30:,} shorter contigs are left out.</p>' if len(rows) > 30 else ""
            return table(header, rows[:30]) + more
    return '<p class="muted">N and repeats of the contigs are not known here: the genome is elsewhere.</p>'
