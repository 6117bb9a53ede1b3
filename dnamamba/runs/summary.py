"""What summary.json of a run says, in words: for the end of the run and for `dnamamba info`."""

from pathlib import Path
from typing import Any, NamedTuple

from dnamamba.runs.folder import RunFolder

SELECTED = ("mcc", "auroc", "pearson", "accuracy")
"""Metrics by which a simple model and a classifier are compared: the first that both have; higher is better."""


class Comparison(NamedTuple):
    """A simple model and the trained one on the same test examples."""

    name: str
    metric: str
    simple: float
    model: float
    is_shortcut: bool = False
    """Whether it predicts the label without any sequence"""

    @property
    def is_as_good(self) -> bool:
        return self.simple >= self.model

    def __str__(self) -> str:
        return f"{self.name}: {self.metric} {self.simple:.4f}, the model {self.model:.4f}"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run folder, or of the run that a checkpoint folder lies in, finished or not; None without one.

    Raises `InputError` for one that is damaged."""
    for run in (folder, *folder.resolve().parents[1:2]):
        if RunFolder(run).config.is_file():
            return RunFolder(run).read_summary()
    return None


def comparisons(summary: dict[str, Any]) -> list[Comparison]:
    """The simple models and shortcuts of a fine-tuning next to its model, each by a metric that both have."""
    test = {name: found["mean"] for name, found in summary.get("test", {}).items()}
    found = []
    for name, values in summary.get("baselines", {}).items():
        shown = "GC, N and length alone" if name == "composition" else name
        metric = next((m for m in SELECTED if values.get(m) is not None and test.get(m) is not None), None)
        if metric is not None:
            found.append(Comparison(shown, metric, values[metric], test[metric]))
    variants = summary.get("variants", {})
    model = variants.get("all", {}).get("auroc", {}).get("value")
    group_mean = f"the mean of the other variants of the same {summary.get('split_by', 'group')}"
    for name, shown in (("effect_class", "the effect class alone"), ("group_mean", group_mean)):
        simple = variants.get("shortcuts", {}).get(name)
        if simple is not None and model is not None:
            found.append(Comparison(shown, "auroc", simple, model, is_shortcut=True))
    return found


def comparison_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Labelled lines: the shortcuts, and a warning that names all that the model is not better than."""
    found = comparisons(summary)
    lines = [("shortcut", str(each)) for each in found if each.is_shortcut]
    if beaten := [each for each in found if each.is_as_good]:
        lines.append(("warning", f"the model is not better than {'; '.join(map(str, beaten))}"))
    return lines


def variant_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Labelled lines: AUROC and AUPRC of all variants, and of missense variants alone, with their intervals; then of
    the trees on an annotation, alone and with the model, and what the model adds to them."""
    variants = summary.get("variants", {})
    annotated = variants.get("annotation", {})
    lines = _ranking_lines(variants)
    for found, what in ((annotated, "annotation"), (annotated.get("with_model", {}), "both")):
        lines += [(what, f"{name} {text}") for name, text in _ranking_lines(found)]
    for name, found in annotated.get("model_adds", {}).items():
        text = "{auroc:+.4f} [{low:+.4f}, {high:+.4f}] auroc".format(**found)
        lines.append(("both", f"{name}: the model adds {text} to the annotation"))
    return lines


def _ranking_lines(figures_of: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            name,
            "{} {value:.4f} [{low:.4f}, {high:.4f}], 95 % from resampling {groups:,} groups".format(
                measure, **found[measure]
            ),
        )
        for name, found in figures_of.items()
        for measure in (("auroc", "auprc") if "auroc" in found else ())
    ]


def figures(metrics: dict[str, Any]) -> str:
    """`mcc 0.5509 ± 0.0241, …` of metrics over seeds, what is defined."""
    parts = []
    for name, found in metrics.items():
        if found["mean"] is not None:
            deviation = f" ± {found['std']:.4f}" if found["std"] is not None else ""
            parts.append(f"{name} {found['mean']:.4f}{deviation}")
    return ", ".join(parts)


def summary_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Labelled lines of what the card of the run's checkpoint does not say."""
    lines: list[tuple[str, str]] = []
    if not summary.get("finished", True):
        unit = "steps" if "steps" in summary else "epochs"
        reached = f"{summary.get(unit[:-1], 0):,} of {summary[unit]:,} {unit}"
        lines.append(("unfinished", f"stopped by {summary['stopped_by']} after {reached}; continue with --resume"))
    if len(summary.get("seeds", [])) > 1:
        lines += [(split, f"{figures(summary[split])} over seeds") for split in ("dev", "test") if split in summary]
    lines += [*variant_lines(summary), *comparison_lines(summary)]
    markov, bits = summary.get("markov_bits_per_base"), summary.get("validation_bits_per_base")
    if markov is not None and bits is not None:
        order = f"order {summary['markov_order']}{', both sides' if summary.get('markov_both_sides') else ''}"
        lines.append(("Markov", f"{markov:.4f} bits/base ({order}); {verdict(bits, markov)}"))
    return lines


def verdict(bits: float, markov: float) -> str:
    """How a language model compares with the best Markov model, both in bits per base."""
    difference = markov - bits
    where = f"below it by {difference:.4f}" if difference > 0 else f"above it by {-difference:.4f}: train longer"
    return f"the model is {where}"
