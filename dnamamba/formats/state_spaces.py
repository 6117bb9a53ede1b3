"""Models of state-spaces/mamba (the package mamba-ssm): config.json with d_model, n_layer and ssm_cfg."""

from pathlib import Path
from typing import Any

import torch

from dnamamba.errors import InputError
from dnamamba.formats import foreign
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

_TOP = ("d_model", "n_layer", "residual_in_fp32", "tie_embeddings")
MIXER_FIELDS = ("d_state", "d_conv", "expand", "dt_rank", "conv_bias")
"""Fields of ours that config.json, and ssm_cfg in it, have under the same names."""
_DEFAULTS: dict[str, Any] = {
    "residual_in_fp32": True, "tie_embeddings": True, "pad_vocab_size_multiple": 8, "ssm_cfg": {}
}  # fmt: skip
_MIXER_DEFAULTS = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True}
_HELD: dict[str, tuple[Any, ...]] = {
    "rms_norm": (True,), "d_intermediate": (0,), "attn_layer_idx": ([], None), "attn_cfg": ({}, None)
}  # fmt: skip
_MIXER_HELD: dict[str, tuple[Any, ...]] = {"layer": ("Mamba1",), "bias": (False,)}
_NO_MATTER = {"fused_add_norm", "model_type", "architectures", "torch_dtype", "dtype", "transformers_version"}
_MIXER_NO_MATTER = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path", "layer_idx"}
"""Keys of how the model is computed or begins, which change no value of a trained one."""


def _config(said: dict[str, Any]) -> ModelConfig:
    said = _DEFAULTS | said
    mixer = ssm_options(said["ssm_cfg"])
    _refuse_unknown("", said, {*_TOP, *_DEFAULTS, *_HELD, *_NO_MATTER, "vocab_size"})
    foreign.refuse_others(said, _HELD)
    for key in ("d_model", "n_layer", "vocab_size"):
        if key not in said:
            raise InputError(f"lacks {key}")
    keys = {name: name for name in (*_TOP, *MIXER_FIELDS)} | {"vocabulary_size": "vocab_size"}
    return foreign.model_config({**mixer, **said, "vocab_size": vocabulary_rows(said)}, keys)


def ssm_options(said: Any) -> dict[str, Any]:
    """A value of `MIXER_FIELDS` each, from what ssm_cfg says. Raises `InputError` naming a key that is unknown, or has
    a value that our models do not hold."""
    if not isinstance(said, dict):
        raise InputError(f"ssm_cfg: expected a JSON object, found {said!r}")
    said = _MIXER_DEFAULTS | said
    _refuse_unknown("ssm_cfg.", said, {*MIXER_FIELDS, *_MIXER_HELD, *_MIXER_NO_MATTER})
    foreign.refuse_others(said, _MIXER_HELD)
    return said


def vocabulary_rows(said: dict[str, Any]) -> int:
    """Of the embedding: vocab_size, padded. Raises `InputError`."""
    size, multiple = said["vocab_size"], said["pad_vocab_size_multiple"]
    for key in ("vocab_size", "pad_vocab_size_multiple"):
        if not isinstance(said[key], int) or isinstance(said[key], bool) or said[key] < 1:
            raise InputError(f"{key}: {said[key]!r} is not possible, expected a whole number of at least 1")
    return -(-size // multiple) * multiple


def _refuse_unknown(prefix: str, said: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(said.keys() - known):
        raise InputError(f"unknown key {', '.join(prefix + key for key in unknown)}")


DIALECT = foreign.Dialect("state-spaces/mamba", _config, lambda name: name)


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """See `dnamamba.formats.Reader`."""
    return foreign.load(DIALECT, folder, device)


def read_card(folder: Path | str) -> dict[str, Any]:
    """See `dnamamba.formats.Reader`."""
    return foreign.card(DIALECT, folder)
