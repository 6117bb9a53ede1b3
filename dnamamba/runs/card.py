"""The model card in words (`dnamamba info`): what a checkpoint says that it was trained on."""

from typing import Any

from dnamamba.model.config import ModelConfig
from dnamamba.model.mixers import mixer_class
from dnamamba.runs.progress import si

POOLED = {
    "last": "the last state",
    "mean": "the mean state",
    "alleles": "the difference of the embeddings with either allele",
}
"""What a head sees, in words"""


def card_lines(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Labelled lines for people, of what `dnamamba.formats.checkpoint.read_card` gives. What an older or foreign
    checkpoint does not say is left out."""
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
        ("length", f"trained up to {provenance['length']:,} bases" if "length" in provenance else ""),
        *_data_lines(provenance.get("data", {})),
        ("selected", _selection(provenance)),
        *((split, _metrics(found)) for split, found in provenance.get("metrics", {}).items()),
        *((f"baseline: {name}", _metrics(found)) for name, found in provenance.get("baselines", {}).items()),
        *_origin_lines(provenance),
    ]
    if provenance.get("pretraining"):
        lines += [("", ""), ("pretraining", ""), *_pretraining_lines(provenance["pretraining"])]
    elif "pretraining" in provenance:
        lines.append(("pretraining", "none: trained from scratch"))
    return [(label, text) for label, text in lines if text or label in ("", "pretraining")]


def _model_lines(config: dict[str, Any]) -> list[tuple[str, str]]:
    mixer = mixer_class(config["mixer"]).describe(ModelConfig(**config))
    return [("model", f"{config['n_layer']} blocks x {config['d_model']}: {mixer}")]


def _pretraining_lines(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    """Of a language model's provenance.json, see `dnamamba.training.run`."""
    settings = provenance.get("settings", {})
    lines = []
    for genome in provenance.get("genomes", []):
        for source in genome.get("source", []):
            weight = f"{genome['name']}, weight {genome['weight']:g}: " if genome.get("name") else ""
            lines.append(("genome", f"{weight}{source['path']} (sha256 {source['sha256'][:16]}…)"))
    for split in ("train", "validation", "test", "exclude"):
        if settings.get(split):
            lines.append((split, ", ".join(map(str, settings[split]))))
    if "splits" in provenance:
        lines.append(("splits", f"fingerprint {provenance['splits'][:16]}…"))
    if "length" in settings:
        step, batch = provenance.get("step"), settings.get("batch_tokens")
        tokens = provenance.get("tokens", step * batch if step and batch else None)
        bases = f", {step:,} steps, {si(tokens)}bases" if step and tokens else ""
        rate = f", learning rate {settings['learning_rate']:g}" if settings.get("learning_rate") else ""
        lines.append(("trained", f"at length {settings['length']:,}{bases}{rate}"))
    if provenance.get("metrics"):
        lines.append(("validation", _metrics(provenance["metrics"])))
    return [*lines, *_origin_lines(provenance)]


def _data_lines(data: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("data", data["data"])] if "data" in data else []
    for name, found in data.get("species", {}).items():
        content = f"{found['bases']:,} bases, GC {found['gc']:.1%}, N {found['n_share']:.2%}"
        lines.append(("species", f"{name}: {', '.join(found['fasta'])}; {content}"))
    for split, found in data.get("splits", {}).items():
        counts = found.get("class_counts") or {}
        shown = f" ({', '.join(f'{name} {count:,}' for name, count in list(counts.items())[:20])})" if counts else ""
        digest = found.get("sha256") or found.get("fingerprint", "")
        count = found["examples"]  # of windows drawn anew each epoch it is a text that says so
        size = f"{count:,} examples" if isinstance(count, int) else count
        lines.append((split, f"{size}{shown}, fingerprint {digest[:16]}…"))
    for pair, found in data.get("overlaps", {}).items():
        if found["sequences"]:
            lines.append(("overlap", f"{found['sequences']:,} of {found['of']:,} in both {pair.replace('_', ' and ')}"))
    return lines


def _selection(provenance: dict[str, Any]) -> str:
    if "learning_rate" not in provenance:
        return ""
    seed, rate, epoch = (provenance[name] for name in ("seed", "learning_rate", "epoch"))
    return f"seed {seed}, learning rate {rate:g}, epoch {epoch}, on dev"


def _origin_lines(provenance: dict[str, Any]) -> list[tuple[str, str]]:
    versions = provenance.get("versions", {})
    return [
        ("source", provenance.get("source_format", "")),
        ("written", provenance.get("written", "")),
        ("command", " ".join(provenance["command"]) if isinstance(provenance.get("command"), list) else ""),
        ("commit", provenance.get("git_commit") or ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("devices", ", ".join(provenance.get("devices", []))),
    ]


def _metrics(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in found.items() if isinstance(value, int | float))
