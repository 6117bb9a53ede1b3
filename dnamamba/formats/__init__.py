"""Formats of trained models on disk: dnamamba's own checkpoint folders (`checkpoint`), and those of others. A reader is
a file here and a line in `READERS`; one that writes too has a line in `WRITERS`.

Whoever wants a language model calls `load_checkpoint`, whatever the format.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dnamamba.errors import InputError
from dnamamba.formats.files import CONFIG, checkpoint_folder, read_json

if TYPE_CHECKING:
    import torch

    from dnamamba.model.language_model import LanguageModel


StoredDtype = Literal["fp32", "bf16"]
"""Of matrices on disk"""


class Reader(Protocol):
    """A module that reads one format."""

    def load_checkpoint(
        self, folder: Path | str, device: "torch.device | str" = "cpu"
    ) -> "tuple[LanguageModel, dict[str, Any]]":
        """The language model (in training mode, parameters on `device`) and its provenance, with `weights_sha256`.
        Raises `InputError` naming the file and what is wrong with it."""

    def read_card(self, folder: Path | str) -> dict[str, Any]:
        """What a folder says of itself, without its weights: `folder`, `config`, `classifier` (None for a language
        model), `provenance`. Raises as `load_checkpoint`."""


class Writer(Protocol):
    """A module that writes one format."""

    def save_checkpoint(
        self, model: "LanguageModel", folder: Path, provenance: dict[str, Any], *, dtype: StoredDtype = "fp32"
    ) -> None:
        """Write the folder whole or not at all, matrices in `dtype`. Raises `InputError` where it exists, and for a
        model or dtype that the format cannot hold."""


def _is_state_spaces(config: dict[str, Any]) -> bool:
    return config.get("model_type") in (None, "mamba") and {"d_model", "n_layer"} <= config.keys()


READERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "dnamamba.formats.checkpoint": lambda config: config.get("model_type") == "dnamamba",
    "dnamamba.formats.state_spaces": _is_state_spaces,
    "dnamamba.formats.caduceus": lambda config: config.get("model_type") == "caduceus",
    "dnamamba.formats.hugging_face": lambda config: config.get("model_type") == "mamba",
}
"""Module of a `Reader` → whether a folder's config.json is of its format; the first that says so reads it."""
WRITERS = {"hf": "dnamamba.formats.hugging_face", "dnamamba": "dnamamba.formats.checkpoint"}
"""Name of a format → module of its `Writer`."""


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


def read_card(folder: Path | str) -> dict[str, Any]:
    """What a checkpoint or run folder of any format says of itself; see `Reader`."""
    return recognise(folder).read_card(folder)
