"""What all pictures share. matplotlib is imported by who draws, when they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dnamamba.outputs import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: "Figure", path: Path) -> None:
    """The whole picture or nothing appears under this name, where an older one is replaced.

    Texts are drawn as they are: contigs and genes may have dollar signs in their names, between which matplotlib would
    read a formula.
    """
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # gives those with names their text
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if "\\mathdefault" not in text.get_text():  # matplotlib's own, of logarithmic axes
            text.set_parse_math(False)
    with whole_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=120, format="png")


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows where it is a cell's last value."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
