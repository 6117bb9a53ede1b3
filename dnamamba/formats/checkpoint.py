"""Checkpoint folders: all that inference reads, in formats that hold no code.

    model.safetensors   the parameters under mamba-ssm's names; a tied head is stored once, as the embedding. fp32, or
                        for half the size matrices in bf16 (`dnamamba export --dtype bf16`): they are fp32 once read
    config.json         `ModelConfig`, with the format's name and version, and the dnamamba that wrote it; how it may
                        grow, see `dnamamba.formats.fields`
    tokens.json         the alphabet: token → id
    provenance.json     where the weights come from (data, splits, command, commit, metrics: the caller's words), and
                        the sha256 of model.safetensors, config.json and classifier.json

A classifier's folder also has

    classifier.json     `HeadConfig`: the kind of task, the classes' names in order, the pooling

and `head.weight`, `head.bias` in place of the language model's head. The one is refused where the other is wanted.

A run folder keeps its checkpoints as RUN/checkpoints/best (by validation) and RUN/checkpoints/last.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn as nn
from safetensors.torch import save_file
from torch import Tensor

from dnamamba import __version__
from dnamamba.alphabet import TOKENS
from dnamamba.errors import InputError, quoted
from dnamamba.formats import StoredDtype
from dnamamba.formats.fields import FORMAT_VERSION, format_needed, from_json, newer, to_json
from dnamamba.formats.files import CONFIG, PROVENANCE, checkpoint_folder, read_json, sha256, write_json
from dnamamba.formats.tensors import (
    HEAD,
    SAFETENSORS,
    check_numbers,
    check_shapes,
    check_sizes,
    meta_model,
    read_safetensors,
)
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.outputs import whole_folder

ALPHABET = "tokens.json"
MODEL_TYPE = "dnamamba"
CLASSIFIER = "classifier.json"
_DIGESTS = {SAFETENSORS: "weights_sha256", CONFIG: "config_sha256", CLASSIFIER: "classifier_sha256"}
"""File → the key of its checksum in provenance.json; folders of format 1 have that of the weights alone."""

Model = TypeVar("Model", bound=nn.Module)


def save_checkpoint(
    model: LanguageModel,
    folder: Path | str,
    provenance: dict[str, Any],
    *,
    overwrite: bool = False,
    dtype: StoredDtype = "fp32",
) -> None:
    """Write the folder whole or not at all, see `dnamamba.outputs.whole_folder`; `provenance` is any JSON object.

    `dtype`: of the matrices, fp32 or bf16. What is exponentiated, summed over positions or small stays fp32.
    """
    with whole_folder(Path(folder), overwrite) as partial:
        write_checkpoint(model, partial, provenance, dtype=dtype)


def write_checkpoint(
    model: LanguageModel,
    folder: Path,
    provenance: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    dtype: StoredDtype = "fp32",
) -> None:
    """The files of a checkpoint, into a folder that is there. `tensors`: the state dict, where the model holds no more
    than a part of it."""
    _write(folder, model, {CONFIG: model.config}, provenance, tensors, dtype)


def save_classifier(
    model: SequenceClassifier, folder: Path | str, provenance: dict[str, Any], *, overwrite: bool = False
) -> None:
    """As `save_checkpoint`, with the head and its classes."""
    with whole_folder(Path(folder), overwrite) as partial:
        _write(partial, model, {CONFIG: model.config, CLASSIFIER: model.head_config}, provenance)


def _write(
    folder: Path,
    model: nn.Module,
    said: dict[str, Any],
    provenance: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    dtype: StoredDtype = "fp32",
) -> None:
    """`said`: file → the dataclass that it holds."""
    save_file(_stored_tensors(model, tensors, dtype), folder / SAFETENSORS, metadata={"format": "pt"})
    version = format_needed(said.values())
    written = {"model_type": MODEL_TYPE, "format_version": version, "dnamamba_version": __version__}
    for name, value in said.items():
        write_json(folder / name, (written if name == CONFIG else {}) | to_json(value, version))
    write_json(folder / ALPHABET, _alphabet())
    digests = {key: sha256(folder / name) for name, key in _DIGESTS.items() if (folder / name).exists()}
    write_json(folder / PROVENANCE, provenance | digests)


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """The model (in training mode, parameters on `device`) and its provenance.

    `folder` is a checkpoint folder, or a run folder, of which the best checkpoint by validation is taken. Raises
    `InputError` naming the file and what is wrong with it: missing, damaged, of another alphabet, version or shape, or
    a classifier's.
    """
    folder = _checkpoint_folder(Path(folder))
    if is_classifier(folder):
        raise InputError(
            f"{folder}: a fine-tuned classifier, which predicts classes and no bases; give the pretrained checkpoint, "
            "or use dnamamba predict"
        )
    config, _ = _said(folder)
    model, provenance = _load(folder, config, lambda: LanguageModel(config), device)
    model.tie_weights()
    return model, provenance


def load_classifier(
    folder: Path | str, device: torch.device | str = "cpu"
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """As `load_checkpoint`, for the folder of a classifier; `InputError` for a language model's."""
    folder = checkpoint_folder(Path(folder))
    if not is_classifier(folder):  # of whatever format
        raise InputError(f"{folder}: a language model without classes; train them by dnamamba finetune first")
    folder = _checkpoint_folder(folder)
    config, head = _said(folder)
    assert head is not None
    return _load(folder, config, lambda: SequenceClassifier(config, head), device)


def is_classifier(folder: Path | str) -> bool:
    """Whether a checkpoint folder (or run folder with one) holds a fine-tuned classifier. Raises as `load_checkpoint`
    where there is no checkpoint."""
    return (checkpoint_folder(Path(folder)) / CLASSIFIER).is_file()


def read_card(folder: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself; see `dnamamba.formats.Reader`."""
    folder = _checkpoint_folder(Path(folder))
    config, head = _said(folder)
    provenance = read_json(folder / PROVENANCE)
    _check_digest(folder, CONFIG, provenance)
    _check_digest(folder, CLASSIFIER, provenance)
    classifier = None if head is None else asdict(head)
    stated = to_json(config, format_needed([config]))
    return {"folder": folder, "config": stated, "classifier": classifier, "provenance": provenance}


def _said(folder: Path) -> tuple[ModelConfig, HeadConfig | None]:
    """What the JSON files say of the model; `HeadConfig` of a classifier."""
    path = folder / CONFIG
    values = read_json(path)
    model_type, version = values.pop("model_type", None), values.pop("format_version", None)
    if model_type != MODEL_TYPE or not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(
            f"{path}: model_type {quoted(model_type)}, format_version {quoted(version)}; "
            f"expected {MODEL_TYPE!r}, 1 to {FORMAT_VERSION}: made by another program"
        )
    written_by = f"dnamamba {values.pop('dnamamba_version', '(unknown version)')}"
    config = from_json(ModelConfig, values, version, written_by, path)
    head = None
    if (folder / CLASSIFIER).is_file():
        path = folder / CLASSIFIER
        head = from_json(HeadConfig, read_json(path), version, written_by, path)
    if version > FORMAT_VERSION:
        raise InputError(f"{folder / CONFIG}: {newer(version, written_by)}")
    return config, head


def _load(
    folder: Path, config: ModelConfig, make: Callable[[], Model], device: torch.device | str
) -> tuple[Model, dict[str, Any]]:
    """Checks the folder and gives the model that `make` makes its parameters; returns the provenance too."""
    if read_json(folder / ALPHABET) != _alphabet():
        raise InputError(f"{folder / ALPHABET}: another alphabet than this program's ({' '.join(TOKENS)})")
    provenance = read_json(folder / PROVENANCE)
    path = folder / SAFETENSORS
    if sha256(path) != provenance.get(_DIGESTS[SAFETENSORS]):
        raise InputError(
            f"{path}: damaged, its sha256 is not the {_DIGESTS[SAFETENSORS]} of {PROVENANCE}; copy the folder again"
        )
    weights = read_safetensors(path)
    check_sizes(weights, config)
    model = meta_model(make, folder / CONFIG)
    check_shapes(weights, {name: tuple(value.shape) for name, value in _own_tensors(model).items()})
    tensors = weights.read(device)
    check_numbers(weights, tensors, (torch.float32, torch.bfloat16))
    tensors = {name: value.float() for name, value in tensors.items()}
    for name in (CONFIG, CLASSIFIER):
        _check_digest(folder, name, provenance)
    model.load_state_dict(tensors, strict=False, assign=True)
    return model, provenance


def _check_digest(folder: Path, name: str, provenance: dict[str, Any]) -> None:
    """Raises `InputError` where a file is not the one whose checksum was recorded; format 1 recorded none."""
    path, recorded = folder / name, provenance.get(_DIGESTS[name])
    found = sha256(path) if path.is_file() else None
    if recorded is None and (found is None or read_json(folder / CONFIG).get("format_version") == 1):
        return
    if recorded != found:
        raise InputError(
            f"{path}: changed since it was saved, its sha256 is not the {_DIGESTS[name]} of {PROVENANCE}; "
            "copy the folder again"
        )


def _checkpoint_folder(folder: Path) -> Path:
    """`checkpoint_folder`, with all files of this format."""
    folder = checkpoint_folder(folder)
    for name in (SAFETENSORS, ALPHABET, PROVENANCE):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no checkpoint, it lacks {name}")
    return folder


def _stored_tensors(model: nn.Module, tensors: dict[str, Tensor] | None, dtype: StoredDtype) -> dict[str, Tensor]:
    """The weights of linear layers and embeddings in `dtype`, all other parameters in fp32."""
    of_matrices = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    matrices = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Embedding)}
    return {
        name: value.detach().to("cpu", of_matrices if name in matrices else torch.float32).contiguous()
        for name, value in _own_tensors(model, tensors).items()
    }


def _own_tensors(model: nn.Module, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict, a tied head once."""
    tensors = dict(model.state_dict() if tensors is None else tensors)
    if isinstance(model, LanguageModel) and model.config.tie_embeddings:
        tensors.pop(HEAD, None)
    return tensors


def _alphabet() -> dict[str, int]:
    return {token: index for index, token in enumerate(TOKENS)}
