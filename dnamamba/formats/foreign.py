"""What the readers of other programs' models share: their parameters under our names, their embedding in our token ids.

A reader (`hugging_face`, `state_spaces`) says what its config.json means and how it names parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnamamba.alphabet import VOCABULARY_SIZE
from dnamamba.errors import InputError
from dnamamba.formats.files import CONFIG, PROVENANCE, checkpoint_folder, read_json, sha256
from dnamamba.formats.tensors import (
    EMBEDDING,
    HEAD,
    Weights,
    check_numbers,
    check_shapes,
    check_sizes,
    meta_model,
    open_weights,
)
from dnamamba.formats.vocabulary import TokenRows, rows_of_tokens
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

MAMBA: dict[str, Any] = {"mixer": "mamba", "objective": "next_base", "discretization": "euler"}
"""Fields of ours that other programs do not name, as they have one value there"""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of which fp32 holds every number"""


class Dialect(NamedTuple):
    """How another program writes a model down."""

    name: str
    """Of the format, for people"""
    config: Callable[[dict[str, Any]], ModelConfig]
    """What a config.json means; `vocabulary_size` is the rows of the file's embedding. Raises `InputError` naming the
    key of what is missing, impossible, or not held by our models."""
    named: Callable[[str], str]
    """Our name of a parameter → the file's"""
    repeats: Callable[[ModelConfig], dict[str, str]] = lambda config: {}
    """The file's names of tensors that it may hold again → those that they are equal to; besides a tied head"""
    ignored: Callable[[str], bool] = lambda name: False
    """Whether a tensor of the file is no parameter"""
    adapted: Callable[[ModelConfig, dict[str, Tensor]], ModelConfig] | None = None
    """Changes parameters, under our names and in our token ids, to those of our computation of the same function; gives
    the model's configuration"""


def load(dialect: Dialect, folder: Path | str, device: torch.device | str) -> tuple[LanguageModel, dict[str, Any]]:
    """The language model of a folder, in our token ids, and its provenance; see `dnamamba.formats.Reader`."""
    folder = checkpoint_folder(Path(folder))
    theirs = _config(dialect, folder)
    weights = open_weights(folder)
    parameters = _parameters(dialect, theirs, weights, device)
    tokens = rows_of_tokens(folder, theirs.vocabulary_size)
    for name in (EMBEDDING, HEAD):
        if name in parameters:
            parameters[name] = _in_our_ids(parameters[name], tokens.rows)
    config = replace(theirs, vocabulary_size=VOCABULARY_SIZE)
    if dialect.adapted is not None:
        config = dialect.adapted(config, parameters)
    model = meta_model(lambda: LanguageModel(config), folder / CONFIG)
    model.load_state_dict(parameters, strict=False, assign=True)
    model.tie_weights()
    return model, _provenance(dialect, folder, weights.path, tokens)


def card(dialect: Dialect, folder: Path | str) -> dict[str, Any]:
    """What a folder says of itself, see `dnamamba.formats.read_card`."""
    folder = checkpoint_folder(Path(folder))
    config = _config(dialect, folder)
    tokens = rows_of_tokens(folder, config.vocabulary_size)
    provenance = _provenance(dialect, folder, open_weights(folder).path, tokens)
    return {"folder": folder, "config": asdict(config), "classifier": None, "provenance": provenance}


def model_config(
    said: Mapping[str, Any], keys: Mapping[str, str], fixed: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The fields that another program's values mean; `keys` are our fields and its names of them, `fixed` our fields
    that have one value there. Raises `InputError` naming its key."""
    for each in fields(ModelConfig):
        if each.name in keys:
            each.metadata["bounds"].refuse_others(keys[each.name], said[keys[each.name]])
    return ModelConfig(**{**MAMBA, **(fixed or {}), **{ours: said[theirs] for ours, theirs in keys.items()}})


def refuse_others(said: Mapping[str, Any], held: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises `InputError` for a key whose value is none of those that our models can have."""
    for key, possible in held.items():
        if key in said and said[key] not in possible:
            raise InputError(f"{key} {said[key]!r} is not supported, only {' or '.join(map(repr, possible))}")


def _config(dialect: Dialect, folder: Path) -> ModelConfig:
    path = folder / CONFIG
    try:
        return dialect.config(read_json(path))
    except InputError as error:
        raise error if str(error).startswith(str(path)) else InputError(f"{path}: {error}") from error


def _parameters(
    dialect: Dialect, config: ModelConfig, weights: Weights, device: torch.device | str
) -> dict[str, Tensor]:
    """Our name → fp32 numbers, all that a model of `config` has; a tied head once."""
    weights = weights._replace(
        shapes={name: shape for name, shape in weights.shapes.items() if not dialect.ignored(name)}
    )
    check_sizes(weights, config, dialect.named(EMBEDDING))
    model = meta_model(lambda: LanguageModel(config), weights.path.with_name(CONFIG))
    names = {name: dialect.named(name) for name in model.state_dict()}
    shapes = {names[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    repeats = dialect.repeats(config)
    if config.tie_embeddings:
        repeats[names.pop(HEAD)] = names[EMBEDDING]
    check_shapes(weights, shapes | {name: shapes[other] for name, other in repeats.items()}, optional=repeats)
    tensors = weights.read(device)
    check_numbers(weights, {name: tensors[name] for name in weights.shapes}, dtypes=_DTYPES)
    for name, other in repeats.items():
        if name in tensors and not torch.equal(tensors[name], tensors[other]):
            raise InputError(f"{weights.path}: {name} is not {other}, with which {CONFIG} ties it")
    return {ours: tensors[theirs].float().contiguous() for ours, theirs in names.items()}


def _in_our_ids(weight: Tensor, rows: list[int | None]) -> Tensor:
    """(their rows, d_model) → (VOCABULARY_SIZE, d_model): a token that they do not have is zero."""
    mapped = weight.new_zeros(VOCABULARY_SIZE, weight.shape[1])
    for token, row in enumerate(rows):
        if row is not None:
            mapped[token] = weight[row]
    return mapped


def _provenance(dialect: Dialect, folder: Path, weights: Path, tokens: TokenRows) -> dict[str, Any]:
    """What provenance.json says, if dnamamba wrote the folder, and what the weights were read as."""
    said = read_json(folder / PROVENANCE) if (folder / PROVENANCE).is_file() else {}
    source = f"{dialect.name}, token ids of {tokens.source}"
    return said | {"source_format": source, "weights_sha256": sha256(weights)}
