"""The model card in words (`dnamamba info`): what a checkpoint says that it was trained on."""

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from dnamamba.errors import one_line
from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class
from dnamamba.runs.progress import si

POOLED = {
    "last": "the last state",
    "mean": "the mean state",
    "alleles": "the difference of the embeddings with either allele",
}
"""What a head sees, in words"""

Lines = list[tuple[str, str]]


def _tolerant(report: Callable[..., Iterable[tuple[str, str]]]) -> Callable[..., Lines]:
    """The lines that `report` gives before it meets what is not there or has another shape than our own programs write:
    a stranger's provenance may be any JSON."""

    @functools.wraps(report)
    def as_far_as_it_goes(*found: Any) -> Lines:
        lines: Lines = []
        try:
            for label, text in report(*found):
                lines.append((str(label), str(text)))
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
            pass
        return lines

    return as_far_as_it_goes


def card_lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Labelled lines for people, of what `dnamamba.formats.checkpoint.read_card` gives. What an older or foreign
    checkpoint does not say, or says in another shape, is left out."""
    return [(one_line(label), one_line(text)) for label, text in _all_lines(card)]


def _all_lines(card: dict[str, Any]) -> Lines:
    config, head, provenance = card["config"], card["classifier"], card["provenance"]
    lines = [("checkpoint", str(card["folder"]))]
    if head is None:
        lines += [("kind", "language model (next base)"), *_model_lines(config), *_pretraining_lines(provenance)]
        return [(label, text) for label, text in lines if text]
    names = head["names"]
    strands = {"one": "one strand", "mean": "mean of both strands", "both": "both strands"}[head["strands"]]
    lines += [
        ("kind", f"{head['kind']} classifier, task {provenance.get('task', 'unknown')}"),
        ("outputs", f"{len(names)}: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"),
        ("head", f"linear on {POOLED[head['pooling']]}, {strands}"),
        *_model_lines(config),
        *_length_lines(provenance),
        *_data_lines(provenance),
        *_species_lines(provenance),
        *_split_lines(provenance),
        *_overlap_lines(provenance),
        *_selection_lines(provenance),
        *_metric_lines(provenance, "metrics", ""),
        *_metric_lines(provenance, "baselines", "baseline: "),
        *_origin_lines(provenance),
    ]
    if isinstance(provenance.get("pretraining"), dict):
        lines += [("", ""), ("pretraining", ""), *_pretraining_lines(provenance["pretraining"])]
    elif "pretraining" in provenance:
        lines.append(("pretraining", "none: trained from scratch"))
    return [(label, text) for label, text in lines if text or label in ("", "pretraining")]


def _model_lines(config: dict[str, Any]) -> list[tuple[str, str]]:
    made = ModelConfig(**config)
    mixers = Counter(mixer_class(name).describe(made) or name for name in made.mixers)
    listed = " + ".join(f"{count} x {text}" if len(mixers) > 1 else text for text, count in mixers.items())
    return [("model", f"{made.n_layer} blocks x {made.d_model}: {listed}")]


def _pretraining_lines(provenance: dict[str, Any]) -> Lines:
    """Of a language model's provenance.json, see `dnamamba.training.run`."""
    return [
        *_genome_lines(provenance),
        *_files_lines(provenance),
        *_trained_lines(provenance),
        *_validation_lines(provenance),
        *_origin_lines(provenance),
    ]


@_tolerant
def _genome_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for genome in provenance["genomes"]:
        for source in genome["source"]:
            weight = f"{genome['name']}, weight {genome['weight']:g}: " if genome.get("name") else ""
            yield "genome", f"{weight}{source['path']} (sha256 {source['sha256'][:16]}…)"


@_tolerant
def _files_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for split in ("train", "validation", "test", "exclude"):
        if provenance["settings"].get(split):
            yield split, ", ".join(map(str, provenance["settings"][split]))


@_tolerant
def _trained_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if "splits" in provenance:
        yield "splits", f"fingerprint {provenance['splits'][:16]}…"
    settings = provenance["settings"]
    step, batch = provenance.get("step"), settings.get("batch_tokens")
    tokens = provenance.get("tokens", step * batch if step and batch else None)
    bases = f", {step:,} steps, {si(tokens)}bases" if step and tokens else ""
    rate = f", learning rate {settings['learning_rate']:g}" if settings.get("learning_rate") else ""
    yield "trained", f"at length {settings['length']:,}{bases}{rate}"


@_tolerant
def _validation_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if provenance["metrics"]:
        yield "validation", _metrics(provenance["metrics"])


@_tolerant
def _length_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "length", f"trained up to {provenance['length']:,} bases"


@_tolerant
def _data_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "data", provenance["data"]["data"]


@_tolerant
def _species_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name, found in provenance["data"]["species"].items():
        content = f"{found['bases']:,} bases, GC {found['gc']:.1%}, N {found['n_share']:.2%}"
        yield "species", f"{name}: {', '.join(found['fasta'])}; {content}"


@_tolerant
def _split_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for split, found in provenance["data"]["splits"].items():
        counts = found.get("class_counts") or {}
        shown = f" ({', '.join(f'{name} {count:,}' for name, count in list(counts.items())[:20])})" if counts else ""
        digest = found.get("sha256") or found.get("fingerprint", "")
        count = found["examples"]  # of windows drawn anew each epoch it is a text that says so
        size = f"{count:,} examples" if isinstance(count, int) else count
        yield split, f"{size}{shown}, fingerprint {digest[:16]}…"


@_tolerant
def _overlap_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for pair, found in provenance["data"]["overlaps"].items():
        if found["sequences"]:
            yield "overlap", f"{found['sequences']:,} of {found['of']:,} in both {pair.replace('_', ' and ')}"


@_tolerant
def _selection_lines(provenance: dict[str, Any]) -> Iterable[tuple[str, str]]:
    seed, rate, epoch = (provenance[name] for name in ("seed", "learning_rate", "epoch"))
    yield "selected", f"seed {seed}, learning rate {rate:g}, epoch {epoch}, on dev"


@_tolerant
def _metric_lines(provenance: dict[str, Any], key: str, prefix: str) -> Iterable[tuple[str, str]]:
    for name, found in provenance[key].items():
        yield f"{prefix}{name}", _metrics(found)


def _origin_lines(provenance: dict[str, Any]) -> Lines:
    versions, command, devices = (provenance.get(key) for key in ("versions", "command", "devices"))
    return [
        ("source", str(provenance.get("source_format") or "")),
        ("written", str(provenance.get("written") or "")),
        ("command", shlex.join(map(str, command)) if isinstance(command, list) else ""),
        ("commit", str(provenance.get("git_commit") or "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""),
        ("devices", ", ".join(map(str, devices)) if isinstance(devices, list) else ""),
    ]


def _metrics(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items() if isinstance(value, int | float))
