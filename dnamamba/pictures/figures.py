"""What all pictures share. matplotlib is imported by who draws, when they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnamamba.outputs import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
"""Okabe and Ito's, which people who see two of the three primary colours can distinguish; in this order of use"""
BASELINE: dict[str, Any] = {"color": "#595959", "linestyle": "--", "linewidth": 1.0}
"""How lines to compare with are drawn: chance, guessing, the Markov model"""


def save_png(figure: "Figure", path: Path) -> None:
    """The whole picture or nothing appears under this name, where an older one is replaced; as SVG if it ends so.

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
        if path.suffix == ".svg":
            figure.savefig(partial, format="svg", metadata={"Date": None})
        else:
            figure.savefig(partial, dpi=120, format="png")


def shortened(name: str, most: int = 24) -> str:
    """A name of at most so many characters: long ones lose their middle, since accessions differ at both ends."""
    return name if len(name) <= most else f"{name[: most * 2 // 3]}…{name[most * 2 // 3 + 1 - most :]}"


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows where it is a cell's last value."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()
