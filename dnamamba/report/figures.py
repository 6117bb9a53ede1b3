"""What all pictures share. matplotlib is imported by who draws, when they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: "Figure", path: Path) -> None:
    """The whole picture or nothing appears under this name."""
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(path)


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows where it is a cell's last value."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
