"""What the run folders of all kinds hold."""

from functools import cached_property
from pathlib import Path
from typing import Any

from dnamamba.errors import InputError
from dnamamba.formats import read_card
from dnamamba.formats.files import read_json
from dnamamba.runs.card import card_lines
from dnamamba.runs.folder import RunFolder


class ReportedRun:
    """A run that a report shows under a name."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.folder = RunFolder(path)
        self.summary = self.folder.read_summary() or {}

    @cached_property
    def card(self) -> dict[str, Any] | None:
        """Of its best checkpoint; None of a run that has none yet."""
        try:
            return read_card(self.path)
        except InputError:
            return None

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Names and values: its card, or the command of a run that has none yet; and that it is unfinished."""
        if self.card:
            found = list(card_lines(self.card))
        else:
            path = self.path / "environment.json"
            environment = read_json(path) if path.is_file() else {}
            found = [("command", " ".join(environment.get("command", [])))]
        if not self.summary:
            found.append(("unfinished", "the run still trains, or was ended; continue with --resume"))
        return found
