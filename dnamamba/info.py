"""`dnamamba info DIR`: the card of a checkpoint or run folder: what it was trained on, splits, metrics, command.

Of a token store: what it holds.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnamamba import verbs
from dnamamba.settings.fields import Settings, setting


@dataclass(kw_only=True)
class InfoSettings(Settings):
    """The card of a checkpoint or run folder: what it was trained on, splits, metrics, command; or a token store's."""

    folder: Path = setting(positional=True)
    """Checkpoint or run folder, of a pretraining or a fine-tuning; or a token store (*.dnamamba)."""
    json: bool = False
    """Print all that is known as JSON."""


main = verbs.main("info")


def info(settings: InfoSettings) -> None:
    """Prints the card. Raises `InputError` for a folder that is none, or whose checksums do not fit."""
    from dnamamba.genome.store_format import is_store, read_index

    card: dict[str, Any]
    if is_store(settings.folder):
        card = {"folder": settings.folder, **read_index(settings.folder)}
        lines = _store_lines(card)
    else:
        from dnamamba.formats import read_card
        from dnamamba.runs.card import card_lines  # torch: seconds that --help need not wait for
        from dnamamba.runs.summary import read_summary, summary_lines

        card = {**read_card(settings.folder), "summary": read_summary(settings.folder)}
        lines = card_lines(card)
        if of_run := summary_lines(card["summary"] or {}):
            lines += [("", ""), ("the run", ""), *of_run]
    if settings.json:
        print(json.dumps({**card, "folder": str(card["folder"])}, indent=2))
        return
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:>{width}}  {text}".rstrip())


def _store_lines(index: dict[str, Any]) -> list[tuple[str, str]]:
    contigs, bases = index["contigs"], index["bases"]
    counts = {"N": "n_count", "soft-masked": "soft_masked", "other codes read as N": "ambiguous"}
    parts = ", ".join(f"{sum(contigs[column]):,} {what}" for what, column in counts.items())
    return [
        ("token store", f"{index['folder']}, format {index['version']}"),
        ("genome", f"{bases:,} bases in {len(contigs['name']):,} contigs: {parts}"),
        ("fingerprint", index["fingerprint"]),
        *(("source", f"{file['path']}, {file['size']:,} bytes, SHA-256 {file['sha256']}") for file in index["source"]),
        ("checked", "the index; `dnamamba doctor --store` reads all bases"),
    ]


if __name__ == "__main__":
    verbs.run(main)
