"""Going on with a run: which settings it had, and which of them may change on the way."""

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from dnamamba.cli import Parser
from dnamamba.errors import InputError
from dnamamba.model.settings import ModelSettings

Settings = TypeVar("Settings")

SAFE_TO_CHANGE = frozenset(
    {
        "out",
        "resume",
        "dry_run",
        "profile",
        "store",
        "annotation",
        "verify",
        "max_steps",
        "tokens",
        "micro_tokens",
        "validation_every",
        "validation_tokens",
        "markov_order",
        "log_every",
        "save_every",
        "save_minutes",
        "keep",
        "on_fault",
        "gradient_outlier",
        "patience",
        "devices",
        "accelerator",
        "precision",
        "num_workers",
    }
)
"""Settings that may differ when a run is resumed: none of them alters which windows a step sees (`max_steps` would
under `length_warmup`, and is refused then). A new `max_steps` stretches the rest of the learning-rate schedule."""


def parse_run(parser: Parser, settings: Callable[..., Settings], arguments: list[str] | None) -> Settings:
    """The command line as `settings`, a dataclass of a run's flags with a `model` among them.

    A resumed run takes its settings from its own folder; flags given now win.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(given)
    if parsed.resume:
        parsed = parser.parse_args([f"--config={stored_config(parsed.out)}", *given])
    values = {field.name: parsed.get(field.name) for field in fields(settings)}  # type: ignore[arg-type]
    return settings(**values | {"model": ModelSettings(**parsed.model.as_dict())})


def stored_config(out: Path | None) -> Path:
    """The config.yaml of the run folder to resume. Raises `InputError` when there is no such run."""
    if out is None:
        raise InputError("--resume: name the run folder to go on with by --out")
    config = out / "config.yaml"
    if not config.is_file():
        raise InputError(f"{out}: no run to resume there (config.yaml is missing)")
    return config


def refuse_changes(settings: type, stored: dict[str, Any], now: dict[str, Any], config: Path) -> None:
    """Raises `InputError` naming the settings that a resumed run must keep but that differ (plain YAML values)."""
    names = [field.name for field in fields(settings) if field.name not in SAFE_TO_CHANGE]
    changed = [
        f"--{name} (was {stored.get(name)!r}, now {now.get(name)!r})"
        for name in names
        if given(stored.get(name)) != given(now.get(name))
    ]
    if stored.get("length_warmup") and stored["max_steps"] != now["max_steps"]:
        raise InputError(
            f"{config}: --max_steps cannot change with --length_warmup: the lengths' stages are shares of the steps"
        )
    if changed:
        raise InputError(f"{config}: a resumed run keeps its settings; changed: {', '.join(changed)}")


def given(settings: Any) -> Any:
    """Nested settings without those left at None: a run folder may be older than some of them."""
    if not isinstance(settings, dict):
        return settings
    return {name: value for name, value in settings.items() if value is not None}


def refuse_unfit_checkpoint(last: Path, fingerprint: str, max_steps: int) -> None:
    """Raises `InputError` when the checkpoint `last` saw other genomes, splits or weights than `fingerprint` says, or
    lies beyond `max_steps`."""
    from dnamamba.formats.checkpoint import PROVENANCE  # torch, which this module's other users need not wait for

    provenance = json.loads((last / PROVENANCE).read_text("utf-8"))
    if provenance["step"] > max_steps:
        raise InputError(f"--max_steps: {max_steps}, but {last.parent.parent} is at step {provenance['step']} already")
    if provenance["splits"] != fingerprint:
        raise InputError(
            f"{last.parent.parent}: a resumed run keeps its data, but a genome file, a BED file or the mixture has "
            "changed since; put it back, or begin a new run"
        )
