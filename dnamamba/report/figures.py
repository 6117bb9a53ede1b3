"""What all pictures share. matplotlib is imported by who draws, when they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dnamamba.outputs import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: "Figure", path: Path) -> None:
    """The whole picture or nothing appears under this name."""
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows where it is a cell's last value."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
