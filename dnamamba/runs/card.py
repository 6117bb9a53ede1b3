"""The model card in words (`dnamamba info`): what a checkpoint says that it was trained on."""

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from dnamamba.errors import one_line
from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class
from dnamamba.runs.lines import Line
from dnamamba.runs.progress import si

POOLED = {
    "last": "the last state",
    "mean": "the mean state",
    "alleles": "the difference of the embeddings with either allele",
}
"""What a head sees, in words"""

KINDS = {
    "missense": "missense",
    "nonsense": "nonsense",
    "splice site": "splice sites",
    "deletion": "deletions",
}
"""Part of what a card calls the variants that it has measured → what one line calls them; all other ones are left to
the whole card"""

Lines = list[Line]


class _NotSaid(Exception):
    """A provenance lacks what is looked for, or has it in another shape."""


class _Said:
    """Any JSON of a stranger: looking for what is not there raises `_NotSaid`, and nothing else does."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, key: str) -> "_Said":
        if not isinstance(self.value, dict) or key not in self.value:
            raise _NotSaid
        return _Said(self.value[key])

    def get(self, key: str) -> "_Said | None":
        """None where it is missing, null, zero or empty."""
        found = self.value.get(key) if isinstance(self.value, dict) else None
        return _Said(found) if found else None

    def items(self) -> list[tuple[str, "_Said"]]:
        """Of an object."""
        return [(key, _Said(value)) for key, value in self._of(dict).items()]

    def each(self) -> list["_Said"]:
        """The values of a list."""
        return [_Said(value) for value in self._of(list)]

    def start(self, length: int = 16) -> str:
        """The beginning of a text, such as a checksum."""
        return self._of(str)[:length]

    def number(self) -> int | float:
        return self._of(int, float)

    def _of(self, *kinds: type) -> Any:
        if not isinstance(self.value, kinds) or (isinstance(self.value, int) and abs(self.value) >= 1 << 63):
            raise _NotSaid
        return self.value

    def __format__(self, form: str) -> str:
        return format(self.number() if form else self.value, form)


def _as_far_as_it_goes(report: Callable[..., Iterator[Line]]) -> Callable[..., Lines]:
    """The lines that `report` of a provenance (`_Said`) gives before something is not said."""

    @functools.wraps(report)
    def lines_of(provenance: dict[str, Any], *others: str) -> Lines:
        lines: Lines = []
        with suppress(_NotSaid):
            for line in report(_Said(provenance), *others):
                lines.append(line)
        return lines

    return lines_of


def card_lines(card: dict[str, Any]) -> Lines:
    """Labelled lines for people, of what `dnamamba.formats.checkpoint.read_card` gives. What an older or foreign
    checkpoint does not say, or says in another shape, is left out."""
    return [(one_line(label), one_line(text)) for label, text in _all_lines(card)]


def _all_lines(card: dict[str, Any]) -> Lines:
    config, head, provenance = card["config"], card["classifier"], card["provenance"]
    lines = [("checkpoint", str(card["folder"]))]
    if head is None:
        kind = f"language model ({config['objective'].replace('_', ' ')})"
        lines += [("kind", kind), *_model_lines(config), *_pretraining_lines(provenance)]
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


def bundled_lines(card: dict[str, Any]) -> Lines:
    """Of a bundled model, what matters for choosing it: size, training, quality, what it can rank, licence."""
    config, provenance = card["config"], card["provenance"]
    return [
        ("", str(provenance.get("about") or "")),
        *_model_lines(config),
        *_training_lines(provenance),
        *ranking_line(provenance),
        *_ranking_line(provenance, "probe_ranking", "probe"),
        ("data", str(provenance.get("licence") or "")),
    ]


def ranking_lines(provenance: dict[str, Any]) -> Lines:
    """How well a model's zero-shot scores, and a linear probe of it, were measured to rank variants, a line for each
    set of them; none where its card does not say. "at chance": the 95 % interval of the AUROC holds 0.5."""
    return [*_ranking_lines(provenance, "ranking", "ranks"), *_ranking_lines(provenance, "probe_ranking", "probe")]


@_as_far_as_it_goes
def _ranking_lines(provenance: _Said, key: str, label: str) -> Iterator[Line]:
    context = provenance.get("ranking_context")
    at = f" (context {context.number():,})" if context else ""
    for data, found in provenance[key].items():
        ranked = ", ".join(f"{each['variants']} {_level(each)}" for each in found.each())
        yield label, f"{data}{at}: {ranked}"


def ranking_line(provenance: dict[str, Any]) -> Lines:
    """How well zero-shot scores rank variants in one line at most: of each of `KINDS` the figure of the most variants.
    Of other figures all lines."""
    return _ranking_line(provenance, "ranking", "ranks") or _ranking_lines(provenance, "ranking", "ranks")


@_as_far_as_it_goes
def _ranking_line(provenance: _Said, key: str, label: str) -> Iterator[Line]:
    context = provenance.get("ranking_context")
    found: dict[str, tuple[float, str]] = {}
    sets = provenance[key].items()
    for _, figures in sets:
        for each in figures.each():
            name = f"{each['variants']}".lower()
            kind = next((said for part, said in KINDS.items() if part in name), None)
            counts = sum(said.number() for said in map(each.get, ("positives", "negatives")) if said)
            if kind is not None and counts > found.get(kind, (-1, ""))[0]:
                found[kind] = counts, _level(each)
    if found:
        how = {"ranking": "zero shot", "probe_ranking": "a linear probe by gene"}[key]
        at = f" at a context of {context.number():,}" if context else ""
        at += f", {sets[0][0]}" if len(sets) == 1 else ""
        ranked = ", ".join(f"{kind} {found[kind][1]}" for kind in KINDS.values() if kind in found)
        yield label, f"{how}{at}: {ranked}; AUROC, all of it: dnamamba info"


def _level(said: _Said) -> str:
    value, low, high = (said[name].number() for name in ("auroc", "low", "high"))
    level = "above chance" if low > 0.5 else "below chance" if high < 0.5 else "at chance"
    return f"{level} ({value:.2f} [{low:.2f}, {high:.2f}])"


def _model_lines(config: dict[str, Any]) -> Lines:
    made = ModelConfig(**config)
    mixers = Counter(mixer_class(name).describe(made) or name for name in made.mixers)
    listed = " + ".join(f"{count} x {text}" if len(mixers) > 1 else text for text, count in mixers.items())
    equivariant = "; reverse-complement equivariant" if made.rc_equivariant else ""
    return [("model", f"{made.n_layer} blocks x {made.d_model}: {listed}{equivariant}")]


def _pretraining_lines(provenance: dict[str, Any]) -> Lines:
    """Of a language model's provenance.json, see `dnamamba.training.run`."""
    return [
        *_genome_lines(provenance),
        *_files_lines(provenance),
        *_training_lines(provenance),
        *ranking_lines(provenance),
        *_origin_lines(provenance),
    ]


def _training_lines(provenance: dict[str, Any]) -> Lines:
    """How a language model was trained, and what it came to."""
    return [
        *_trained_lines(provenance),
        *_validation_lines(provenance),
        *_bits_lines(provenance),
        *_genomes_bits_lines(provenance),
        *_copies_line(provenance),
    ]


@_as_far_as_it_goes
def _genome_lines(provenance: _Said) -> Iterator[Line]:
    for genome in provenance["genomes"].each():
        weight = f"{genome['name']}, weight {genome['weight']:g}: " if genome.get("name") else ""
        for source in genome["source"].each():
            yield "genome", f"{weight}{source['path']} (sha256 {source['sha256'].start()}…)"


@_as_far_as_it_goes
def _files_lines(provenance: _Said) -> Iterator[Line]:
    for split in ("train", "validation", "test", "exclude"):
        if files := provenance["settings"].get(split):
            yield split, ", ".join(map(format, files.each()))


@_as_far_as_it_goes
def _trained_lines(provenance: _Said) -> Iterator[Line]:
    if splits := provenance.get("splits"):
        yield "splits", f"fingerprint {splits.start()}…"
    settings = provenance["settings"]
    step, batch, rate = provenance.get("step"), settings.get("batch_tokens"), settings.get("learning_rate")
    tokens = provenance.get("tokens")
    read = tokens.number() if tokens else step.number() * batch.number() if step and batch else 0
    bases = f", {step:,} steps, {si(read)}bases" if step and read else ""
    yield "trained", f"at length {settings['length']:,}{bases}{f', learning rate {rate:g}' if rate else ''}"


@_as_far_as_it_goes
def _validation_lines(provenance: _Said) -> Iterator[Line]:
    if metrics := provenance.get("metrics"):
        yield "validation", _metrics(metrics)


@_as_far_as_it_goes
def _bits_lines(provenance: _Said) -> Iterator[Line]:
    bits = ", ".join(f"{name} {each.number():.3f}" for name, each in provenance["bits_by_region"].items())
    yield "bits", f"a base by class of regions: {bits}"


@_as_far_as_it_goes
def _genomes_bits_lines(provenance: _Said) -> Iterator[Line]:
    found = provenance["bits_by_genome"].items()
    bits = ", ".join(f"{name} {said['model'].number():.3f} ({said['markov'].number():.3f})" for name, said in found)
    yield "bits", f"a base of what was held out of each genome (the best Markov model): {bits}"


@_as_far_as_it_goes
def _copies_line(provenance: _Said) -> Iterator[Line]:
    found = [(name, gains.each()) for name, gains in provenance["copy_advantage"].items()]
    if found:
        distances = ", ".join(format(each["distance"], ",") for each in found[0][1])
        said = (f"{name} {', '.join(format(each['nats'], '.2f') for each in gains)}" for name, gains in found)
        yield "copies", f"what a copy gains, nats a base, after {distances} bases: {'; '.join(said)}"


@_as_far_as_it_goes
def _length_lines(provenance: _Said) -> Iterator[Line]:
    yield "length", f"trained up to {provenance['length']:,} bases"


@_as_far_as_it_goes
def _data_lines(provenance: _Said) -> Iterator[Line]:
    yield "data", f"{provenance['data']['data']}"


@_as_far_as_it_goes
def _species_lines(provenance: _Said) -> Iterator[Line]:
    for name, found in provenance["data"]["species"].items():
        content = f"{found['bases']:,} bases, GC {found['gc']:.1%}, N {found['n_share']:.2%}"
        yield "species", f"{name}: {', '.join(map(format, found['fasta'].each()))}; {content}"


@_as_far_as_it_goes
def _split_lines(provenance: _Said) -> Iterator[Line]:
    for split, found in provenance["data"]["splits"].items():
        counts = found.get("class_counts")
        listed = [f"{name} {count:,}" for name, count in counts.items()[:20]] if counts else []
        count = found["examples"]  # of windows drawn anew each epoch it is a text that says so
        size = f"{count:,} examples" if isinstance(count.value, int) else f"{count}"
        digest = found.get("sha256") or found["fingerprint"]
        shown = f" ({', '.join(listed)})" if listed else ""
        yield split, f"{size}{shown}, fingerprint {digest.start()}…"


@_as_far_as_it_goes
def _overlap_lines(provenance: _Said) -> Iterator[Line]:
    for pair, found in provenance["data"]["overlaps"].items():
        if count := found.get("sequences"):
            yield "overlap", f"{count:,} of {found['of']:,} in both {pair.replace('_', ' and ')}"


@_as_far_as_it_goes
def _selection_lines(provenance: _Said) -> Iterator[Line]:
    seed, rate, epoch = (provenance[name] for name in ("seed", "learning_rate", "epoch"))
    yield "selected", f"seed {seed}, learning rate {rate:g}, epoch {epoch}, on dev"


@_as_far_as_it_goes
def _metric_lines(provenance: _Said, key: str, prefix: str) -> Iterator[Line]:
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


def _metrics(found: _Said) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items() if isinstance(value.value, int | float))
