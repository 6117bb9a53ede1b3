"""The models that come with the package: a checkpoint folder each, in the folder that is this module's.

`pipelines/bundle_model.py` makes them: matrices in bf16, and a card that says what a model was trained on, how well it
predicts and ranks, and which licence its data have.
"""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files(__package__)))
"""Of all of them: a real folder, as a wheel is unpacked when it is installed"""


def names() -> list[str]:
    """What `--checkpoint` takes in place of a folder, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def folder(name: str) -> Path | None:
    """The checkpoint folder of a bundled model, perhaps read-only; None where there is none of that name."""
    return FOLDER / name if name in names() else None
