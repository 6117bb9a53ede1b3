"""`MambaForCausalLM` of Hugging Face's transformers, read and written: config.json with model_type "mamba".

Such a model is computed as ours with `discretization` "euler": B̄ = Δ·B, A = −exp(A_log) in fp32. What our models have
and it cannot hold is refused when one is written. Its softmax is over all tokens and ours over the four bases:
generation_config.json suppresses the others, so that what it generates is the same.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dnamamba import __version__
from dnamamba.alphabet import BASES, BOS, PAD
from dnamamba.errors import InputError
from dnamamba.formats import StoredDtype, foreign
from dnamamba.formats.files import CONFIG, PROVENANCE, sha256, write_json
from dnamamba.formats.tensors import HEAD, SAFETENSORS
from dnamamba.formats.vocabulary import TOKENIZER, tokenizer_config, tokenizer_json
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.outputs import whole_folder

MODEL_TYPE = "mamba"
_KEYS = {
    "d_model": "hidden_size",
    "n_layer": "num_hidden_layers",
    "d_state": "state_size",
    "d_conv": "conv_kernel",
    "expand": "expand",
    "dt_rank": "time_step_rank",
    "residual_in_fp32": "residual_in_fp32",
    "norm_epsilon": "layer_norm_epsilon",
    "conv_bias": "use_conv_bias",
    "tie_embeddings": "tie_word_embeddings",
    "vocabulary_size": "vocab_size",
}
"""Our fields → transformers' keys."""
_AT_START = {"dt_min": "time_step_min", "dt_max": "time_step_max", "dt_init_floor": "time_step_floor"}
"""The same of what sets the first weights alone; written, and not read."""
_DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16, "conv_kernel": 4, "expand": 2,
    "time_step_rank": "auto", "residual_in_fp32": True, "layer_norm_epsilon": 1e-5, "use_conv_bias": True,
    "tie_word_embeddings": True, "vocab_size": 50280,
}  # fmt: skip
"""What transformers takes where a key is missing."""
_HELD: dict[str, tuple[Any, ...]] = {"use_bias": (False,), "hidden_act": ("silu", "swish")}


def _config(said: dict[str, Any]) -> ModelConfig:
    foreign.refuse_others(said, _HELD)
    return foreign.model_config(_DEFAULTS | said, _KEYS)


def _named(name: str) -> str:
    return name.replace("backbone.embedding.", "backbone.embeddings.")


DIALECT = foreign.Dialect("Hugging Face MambaForCausalLM", _config, _named)


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """See `dnamamba.formats.Reader`."""
    return foreign.load(DIALECT, folder, device)


def read_card(folder: Path | str) -> dict[str, Any]:
    """See `dnamamba.formats.Reader`."""
    return foreign.card(DIALECT, folder)


def save_checkpoint(
    model: LanguageModel, folder: Path | str, provenance: dict[str, Any], *, dtype: StoredDtype = "fp32"
) -> None:
    """A folder that transformers loads without remote code, model and tokenizer, and that this module reads; whole or
    not at all.

    Raises `InputError` where the folder exists, for a model that `MambaForCausalLM` cannot hold, and for bf16.
    """
    if dtype != "fp32":
        raise InputError(f"--dtype {dtype}: --format hf stores fp32; add --format dnamamba, or leave it out")
    config = _written_config(model.config)
    with whole_folder(Path(folder)) as partial:
        save_file(_tensors(model), partial / SAFETENSORS, metadata={"format": "pt"})
        write_json(partial / CONFIG, config)
        write_json(partial / "generation_config.json", _generation_config(model.config))
        write_json(partial / TOKENIZER, tokenizer_json())
        write_json(partial / "tokenizer_config.json", tokenizer_config())
        written = {"exported_by": f"dnamamba {__version__}", "exported_from": provenance.get("weights_sha256")}
        write_json(partial / PROVENANCE, provenance | written | {"weights_sha256": sha256(partial / SAFETENSORS)})


def _written_config(config: ModelConfig) -> dict[str, Any]:
    for each in fields(ModelConfig):
        value, wanted = getattr(config, each.name), foreign.MAMBA.get(each.name, each.default)
        if each.name not in _KEYS and each.name not in _AT_START and value != wanted:
            raise InputError(f"model.{each.name}: {value!r} cannot be exported: MambaForCausalLM has {wanted!r} alone")
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["MambaForCausalLM"],
        "dtype": "float32",
        "torch_dtype": "float32",  # what transformers before 4.56 read
        **{theirs: getattr(config, ours) for ours, theirs in (_KEYS | _AT_START).items()},
        "time_step_rank": config.rank,
        "intermediate_size": config.channels,
        **{key: values[0] for key, values in _HELD.items()},
        **_special_tokens(),
    }


def _special_tokens() -> dict[str, int | None]:
    """No token ends a sequence: transformers' own default is 0, which is A."""
    return {"bos_token_id": BOS, "eos_token_id": None, "pad_token_id": PAD}


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    return {**_special_tokens(), "suppress_tokens": list(range(BASES, config.vocabulary_size))}


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Name → fp32 numbers, a tied head once. A step Δ that is broadcast is a projection of rank 1 by ones."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors[HEAD]
    if model.config.dt_rank == "broadcast":
        for index in range(model.config.n_layer):
            tensors[f"backbone.layers.{index}.mixer.dt_proj.weight"] = torch.ones(model.config.channels, 1)
    return {_named(name): value for name, value in tensors.items()}
