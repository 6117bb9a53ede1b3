"""`dnamamba info DIR`: the card of a checkpoint or run folder: what it was trained on, splits, metrics, command."""

import json
import sys
from pathlib import Path

from dnamamba import cli


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(prog="python -m dnamamba.info", description=__doc__)
    parser.add_argument("folder", type=Path, help="Checkpoint or run folder, of a pretraining or a fine-tuning.")
    parser.add_argument("--json", action="store_true", help="Print all that is known as JSON.")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Prints the card."""
    parsed = build_parser().parse_args(arguments)

    from dnamamba.formats.checkpoint import read_card
    from dnamamba.runs.card import card_lines  # torch: seconds that --help need not wait for

    card = read_card(parsed.folder)
    if parsed.json:
        print(json.dumps({**card, "folder": str(card["folder"])}, indent=2, ensure_ascii=False))
        return
    lines = card_lines(card)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        print(f"{label:>{width}}  {text}".rstrip())


if __name__ == "__main__":
    sys.exit(cli.run(main))
