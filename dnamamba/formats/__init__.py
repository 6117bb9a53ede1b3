"""Formats of trained models on disk: dnamamba's own checkpoint folders (`checkpoint`). Those of others (Hugging Face,
mamba-ssm, Caduceus) are to be read here too: a reader is a file here and a line in `READERS`.

Whoever wants a language model calls `load_checkpoint`, whatever the format.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dnamamba.errors import InputError
from dnamamba.formats.files import CONFIG, checkpoint_folder, read_json

if TYPE_CHECKING:
    import torch

    from dnamamba.model.language_model import LanguageModel


class Reader(Protocol):
    """A module that reads one format."""

    def load_checkpoint(
        self, folder: Path | str, device: "torch.device | str" = "cpu"
    ) -> "tuple[LanguageModel, dict[str, Any]]":
        """The language model (in training mode, parameters on `device`) and its provenance. Raises `InputError` naming
        the file and what is wrong with it."""


READERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "dnamamba.formats.checkpoint": lambda config: config.get("model_type") == "dnamamba",
}
"""Module of a `Reader` → whether a folder's config.json is of its format."""


def recognise(folder: Path | str) -> Reader:
    """Who reads a checkpoint folder (or a run folder's best checkpoint), by its config.json. Raises `InputError` where
    there is none, or of no known format."""
    path = checkpoint_folder(Path(folder)) / CONFIG
    config = read_json(path)
    for module, is_its_format in READERS.items():
        if is_its_format(config):
            return import_module(module)  # type: ignore[return-value]
    raise InputError(
        f"{path}: model_type {config.get('model_type')!r}, which none of {', '.join(READERS)} reads: "
        "made by another program"
    )


def load_checkpoint(folder: Path | str, device: "torch.device | str" = "cpu") -> "tuple[LanguageModel, dict[str, Any]]":
    """The language model of a checkpoint or run folder of any format, and its provenance; see `Reader`."""
    return recognise(folder).load_checkpoint(folder, device)
