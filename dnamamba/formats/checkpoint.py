"""Checkpoint folders: all that inference reads, in formats that hold no code.

    model.safetensors   the parameters, fp32, under mamba-ssm's names; a tied head is stored once, as the embedding
    config.json         `ModelConfig`, with the format's name and version
    tokens.json         the alphabet: token → id
    provenance.json     where the weights come from (data, splits, command, commit, metrics: the caller's words), and
                        the sha256 of model.safetensors

A classifier's folder has besides

    classifier.json     `HeadConfig`: the kind of task, the classes' names in order, the pooling

and `head.weight`, `head.bias` in place of the language model's head. The one is refused where the other is wanted.

A run folder keeps its checkpoints as RUN/checkpoints/best (by validation) and RUN/checkpoints/last.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dnamamba.alphabet import TOKENS
from dnamamba.errors import InputError
from dnamamba.model.classifier import HeadConfig, MambaClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import MambaLM

WEIGHTS, CONFIG, ALPHABET, PROVENANCE = "model.safetensors", "config.json", "tokens.json", "provenance.json"
MODEL_TYPE = "dnamamba"
FORMAT_VERSION = 1
CLASSIFIER = "classifier.json"
_DIGEST = "weights_sha256"
_TIED = "lm_head.weight"


def save_checkpoint(model: MambaLM, folder: Path | str, provenance: dict[str, Any], *, overwrite: bool = False) -> None:
    """Write the folder whole or not at all: into a temporary folder beside it, synced to disk, then renamed.

    `provenance` is any JSON object. An existing `folder` is an `InputError` unless `overwrite`; then the old one stays
    until the new one is complete. One process writes (rank 0). A disk that is full or read-only raises `OSError`.
    """
    _save(Path(folder), _stored_tensors(model), {CONFIG: _config_to_json(model.config)}, provenance, overwrite)


def save_classifier(
    model: MambaClassifier, folder: Path | str, provenance: dict[str, Any], *, overwrite: bool = False
) -> None:
    """As `save_checkpoint`, with the head and its classes."""
    files = {CONFIG: _config_to_json(model.config), CLASSIFIER: asdict(model.head_config)}
    _save(Path(folder), _stored_tensors(model), files, provenance, overwrite)


def _save(
    folder: Path, tensors: dict[str, Tensor], files: dict[str, Any], provenance: dict[str, Any], overwrite: bool
) -> None:
    if folder.exists() and not overwrite:
        raise InputError(f"{folder}: exists already; choose another folder or remove it first")
    partial, replaced = _sibling(folder, "partial"), _sibling(folder, "replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # left by a save that was killed
    partial.mkdir()
    save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    for name, content in files.items():
        _write_json(partial / name, content)
    _write_json(partial / ALPHABET, _alphabet())
    _write_json(partial / PROVENANCE, provenance | {_DIGEST: _sha256(partial / WEIGHTS)})
    for path in (*partial.iterdir(), partial):
        sync(path)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    sync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[MambaLM, dict[str, Any]]:
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
    config = _config_from_json(folder / CONFIG)
    with torch.device("meta"):  # shapes only: no time and no random numbers spent on weights to be replaced
        model = MambaLM(config)
    provenance = _load_weights(folder, model, device)
    model.tie_weights()
    return model, provenance


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> tuple[MambaClassifier, dict[str, Any]]:
    """As `load_checkpoint`, for the folder of a classifier; `InputError` for a language model's."""
    folder = _checkpoint_folder(Path(folder))
    if not is_classifier(folder):
        raise InputError(f"{folder}: a language model without classes; train them by dnamamba finetune first")
    head = _head_from_json(folder / CLASSIFIER)
    config = _config_from_json(folder / CONFIG)
    with torch.device("meta"):
        model = MambaClassifier(config, head)
    return model, _load_weights(folder, model, device)


def is_classifier(folder: Path | str) -> bool:
    """Whether a checkpoint folder (or run folder with one) holds a fine-tuned classifier. Raises as `load_checkpoint`
    where there is no checkpoint."""
    return (_checkpoint_folder(Path(folder)) / CLASSIFIER).is_file()


def read_card(folder: Path | str) -> dict[str, Any]:
    """What a checkpoint says of itself, without its weights: `folder`, `config`, `classifier` (None for a language
    model), `provenance`. Raises as `load_checkpoint`."""
    folder = _checkpoint_folder(Path(folder))
    config = _config_from_json(folder / CONFIG)
    classifier = asdict(_head_from_json(folder / CLASSIFIER)) if is_classifier(folder) else None
    provenance = _read_json(folder / PROVENANCE)
    return {"folder": folder, "config": asdict(config), "classifier": classifier, "provenance": provenance}


def _load_weights(folder: Path, model: nn.Module, device: torch.device | str) -> dict[str, Any]:
    """Checks the folder and gives `model`, made without memory, its parameters; returns the provenance."""
    if _read_json(folder / ALPHABET) != _alphabet():
        raise InputError(f"{folder / ALPHABET}: another alphabet than this program's ({' '.join(TOKENS)})")
    provenance = _read_json(folder / PROVENANCE)
    path = folder / WEIGHTS
    if _sha256(path) != provenance.get(_DIGEST):
        raise InputError(f"{path}: damaged, its sha256 is not the {_DIGEST} of {PROVENANCE}; copy the folder again")
    try:
        tensors = load_file(path, device=str(device))
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    _check_tensors(path, tensors, model)
    model.load_state_dict(tensors, strict=False, assign=True)
    return provenance


def _checkpoint_folder(folder: Path) -> Path:
    """The folder itself, or a run folder's best checkpoint."""
    if (folder / "checkpoints").is_dir():
        best = folder / "checkpoints" / "best"
        if not best.is_dir():
            raise InputError(
                f"{folder}: this run has no validated checkpoint yet; give {best.with_name('last')} instead"
            )
        folder = best
    if not folder.is_dir():
        replaced = _sibling(folder, "replaced")
        hint = f"; a save was interrupted, rename {replaced} to it" if replaced.is_dir() else ""
        raise InputError(f"{folder}: no such folder, expected a checkpoint or run folder{hint}")
    for name in (CONFIG, WEIGHTS, ALPHABET, PROVENANCE):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no checkpoint, it lacks {name}")
    return folder


def _stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu().contiguous() for name, value in _own_tensors(model).items()}


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, a tied head once."""
    tensors = dict(model.state_dict())
    if isinstance(model, MambaLM) and model.config.tie_embeddings:
        del tensors[_TIED]
    return tensors


def _check_tensors(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Raise `InputError` unless names, shapes, dtypes and values are those of the model's parameters."""
    expected = _own_tensors(model)
    for name in expected.keys() - tensors.keys():
        raise InputError(f"{path}: lacks the parameter {name} that {CONFIG} calls for")
    for name in tensors.keys() - expected.keys():
        raise InputError(f"{path}: holds {name}, which the model of {CONFIG} does not have")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            stored, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise InputError(f"{path}: {name} has shape {stored}, {CONFIG} makes it {wanted}")
        if tensor.dtype != torch.float32:
            raise InputError(f"{path}: {name} is {tensor.dtype}, expected torch.float32")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} holds NaN or infinite numbers")


def _config_to_json(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION} | asdict(config)


def _config_from_json(path: Path) -> ModelConfig:
    values = _read_json(path)
    model_type, version = values.pop("model_type", None), values.pop("format_version", None)
    if (model_type, version) != (MODEL_TYPE, FORMAT_VERSION):
        raise InputError(
            f"{path}: model_type {model_type!r}, format_version {version!r}; "
            f"expected {MODEL_TYPE!r}, {FORMAT_VERSION}: made by another program or version"
        )
    known = {field.name for field in fields(ModelConfig)}
    for key in values.keys() ^ known:
        raise InputError(f"{path}: {'lacks' if key in known else 'unknown key'} {key}")
    try:
        return ModelConfig(**values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _head_from_json(path: Path) -> HeadConfig:
    values = _read_json(path)
    known = {field.name for field in fields(HeadConfig)}
    for key in values.keys() ^ known:
        raise InputError(f"{path}: {'lacks' if key in known else 'unknown key'} {key}")
    lists: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return HeadConfig(**lists)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error


def _alphabet() -> dict[str, int]:
    return {token: index for index, token in enumerate(TOKENS)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sibling(folder: Path, purpose: str) -> Path:
    return folder.with_name(f".{folder.name}.{purpose}")


def sync(path: Path) -> None:
    """Returns when a file or a folder's entries have reached the disk: a later crash of the machine leaves them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
