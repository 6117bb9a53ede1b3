"""`dnamamba info DIR`: the card of a checkpoint or run folder: what it was trained on, splits, metrics, command."""

import json
from dataclasses import dataclass
from pathlib import Path

from dnamamba import verbs
from dnamamba.settings.fields import Settings, setting


@dataclass(kw_only=True)
class InfoSettings(Settings):
    """The card of a checkpoint or run folder: what it was trained on, splits, metrics, command."""

    folder: Path = setting(positional=True)
    """Checkpoint or run folder, of a pretraining or a fine-tuning."""
    json: bool = False
    """Print all that is known as JSON."""


main = verbs.main("info")


def info(settings: InfoSettings) -> None:
    """Prints the card."""
    from dnamamba.formats.checkpoint import read_card
    from dnamamba.runs.card import card_lines  # torch: seconds that --help need not wait for

    card = read_card(settings.folder)
    if settings.json:
        print(json.dumps({**card, "folder": str(card["folder"])}, indent=2, ensure_ascii=False))
        return
    lines = card_lines(card)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:>{width}}  {text}".rstrip())


if __name__ == "__main__":
    verbs.run(main)
