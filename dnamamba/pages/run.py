"""What the run folders of all kinds hold."""

from functools import cached_property
from pathlib import Path
from typing import Any

from dnamamba.errors import InputError
from dnamamba.formats import read_card
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
