"""Weights on disk: names and shapes first, numbers once those are a model's. No code in a file is run.

model.safetensors   taken where there are both
pytorch_model.bin   torch's pickle of names and tensors, read with `weights_only`
"""

import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.formats.files import CONFIG
from dnamamba.model.config import ModelConfig

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
EMBEDDING, HEAD = "backbone.embedding.weight", "lm_head.weight"
"""Our names of the parameters that have a row a token."""
_LAYER = re.compile(r"([\w.]*\blayers\.)(\d{1,9})\.")
_NAMED = 4
"""Parameters that a message names before it counts the others."""

Model = TypeVar("Model", bound=nn.Module)


class Weights(NamedTuple):
    """A file of weights whose header has been read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    """By the names that the file uses"""
    mapped: Callable[[], Mapping[str, Tensor]]
    """The tensors on the CPU, some of them still in the file"""

    def read(self, device: torch.device | str) -> dict[str, Tensor]:
        """The tensors on a device: copies, which stay when the file is written again."""
        return {name: tensor.detach().to(device, copy=True) for name, tensor in self.mapped().items()}


def open_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder of another program. Raises `InputError` where there are none that can be
    read."""
    if (path := folder / SAFETENSORS).is_file():
        return read_safetensors(path)
    if (path := folder / PICKLED).is_file():
        return _pickled(path)
    for name in (SAFETENSORS, PICKLED):
        if (folder / f"{name}.index.json").is_file():
            raise InputError(f"{folder}: weights in several files ({name}.index.json); save them as one {SAFETENSORS}")
    raise InputError(f"{folder}: no checkpoint, it lacks {SAFETENSORS} or {PICKLED}")


def read_safetensors(path: Path) -> Weights:
    """Its header is read. Raises `InputError`."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    return Weights(path, shapes, lambda: load_file(path))


def _pickled(path: Path) -> Weights:
    try:
        if is_archive := zipfile.is_zipfile(path):
            _check_archive(path)
        tensors = torch.load(path, "cpu", weights_only=True, mmap=is_archive)
    except InputError:
        raise
    except Exception as error:  # a pickle that is damaged, or wants to run code, ends in an error of any kind
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: not weights that torch reads without running code ({lines[0]})") from error
    if not isinstance(tensors, Mapping):
        raise InputError(f"{path}: expected names and their tensors, found {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{path}: expected names and their tensors, found {name!r}: {type(tensor).__name__}")
    return Weights(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, lambda: tensors)


def _check_archive(path: Path) -> None:
    """Raises `InputError` for a file of which a checksum is wrong: torch looks at none."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise InputError(f"{path}: damaged, the checksum of {damaged!r} in it is another; copy it again")


def meta_model(make: Callable[[], Model], config_path: Path) -> Model:
    """The model that `make` makes, as shapes alone: no time and no random numbers spent on weights to be replaced."""
    try:
        with torch.device("meta"):
            return make()
    except (OverflowError, RuntimeError, TypeError) as error:  # torch's, of numbers beyond 64 bits
        raise InputError(f"{config_path}: sizes that no tensor can have ({str(error).splitlines()[0]})") from error


def check_sizes(weights: Weights, config: ModelConfig, embedding: str = EMBEDDING) -> None:
    """Raises `InputError` unless the file has the width and the blocks of `config`: so a damaged or hostile number is
    found before a model of that size is made. `embedding` is the file's name of it."""
    wanted = (config.vocabulary_size, config.d_model)
    if (stored := weights.shapes.get(embedding)) is None:
        raise InputError(f"{weights.path}: lacks the parameter {embedding} that {CONFIG} calls for")
    if stored != wanted:
        raise InputError(f"{weights.path}: {embedding} has shape {stored}, {CONFIG} makes it {wanted}")
    found = [match for name in weights.shapes if (match := _LAYER.match(name))]
    blocks = {int(match[2]): match.string for match in found}
    if extra := sorted(number for number in blocks if number >= config.n_layer):
        raise InputError(
            f"{weights.path}: holds {_names([blocks[extra[0]]])}, which the model of {CONFIG} does not have"
        )
    if len(blocks) < config.n_layer:
        missing = next(number for number in range(config.n_layer) if number not in blocks)
        layers = f"{found[0][1] if found else 'layers.'}{missing}"
        raise InputError(f"{weights.path}: lacks the parameters {layers}.* that {CONFIG} calls for")


def check_shapes(weights: Weights, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
    """Raises `InputError` unless the file has these parameters in these shapes, and no others; it may lack those that
    are `optional`."""
    path = weights.path
    may_lack = {name for name in optional if name not in weights.shapes}
    expected = {name: shape for name, shape in expected.items() if name not in may_lack}
    if missing := [name for name in expected if name not in weights.shapes]:
        raise InputError(f"{path}: lacks the parameter {_names(missing)} that {CONFIG} calls for")
    if unknown := sorted(weights.shapes.keys() - expected.keys()):
        raise InputError(f"{path}: holds {_names(unknown)}, which the model of {CONFIG} does not have")
    for name, wanted in expected.items():
        if weights.shapes[name] != wanted:
            raise InputError(f"{path}: {name} has shape {weights.shapes[name]}, {CONFIG} makes it {wanted}")


def check_numbers(
    weights: Weights, tensors: Mapping[str, Tensor], dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> None:
    """Raises `InputError` for tensors of other dtypes, and for numbers that are not finite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes:
            raise InputError(f"{weights.path}: {name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        if not tensor.isfinite().all():
            raise InputError(f"{weights.path}: {name} holds NaN or infinite numbers")


def _names(found: list[str]) -> str:
    found = [name if name.isprintable() else repr(name) for name in found]  # a message is one line
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
