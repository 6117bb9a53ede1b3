"""Caduceus (`CaduceusForMaskedLM`), read: config.json with model_type "caduceus"; -Ph, and -PS with `rcps`.

Names and quirks are those of the released weights. Their kernels for add and norm exchange the two strands' halves in
every block of a -PS model (`fused_add_norm`). Ours keeps each strand in its half: so every second block, the first
included, gets its channels in reverse order and its directions exchanged, which is the same function.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnamamba.errors import InputError
from dnamamba.formats import foreign
from dnamamba.formats.files import CONFIG, checkpoint_folder, read_json
from dnamamba.formats.state_spaces import MIXER_FIELDS, ssm_options, vocabulary_rows
from dnamamba.formats.tensors import EMBEDDING, HEAD, open_weights
from dnamamba.formats.vocabulary import HYENADNA
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.tokens import complement

MODEL_TYPE = "caduceus"
_FIELDS = {
    **{name: name for name in ("d_model", "n_layer", "residual_in_fp32", "norm_epsilon", *MIXER_FIELDS)},
    "tie_embeddings": "tie_word_embeddings",
    "vocabulary_size": "vocab_size",
    "bidirectional_strategy": "bidirectional_strategy",
    "bidirectional_weight_tie": "bidirectional_weight_tie",
    "rc_equivariant": "rcps",
}
"""Our fields → its keys"""
_DEFAULTS: dict[str, Any] = {
    "d_model": 2560, "n_layer": 64, "vocab_size": 50277, "ssm_cfg": {}, "norm_epsilon": 1e-5,
    "residual_in_fp32": False, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_word_embeddings": True,
    "bidirectional": True, "bidirectional_strategy": "add", "bidirectional_weight_tie": True, "rcps": False,
}  # fmt: skip
_HELD: dict[str, tuple[Any, ...]] = {"rms_norm": (True,), "bidirectional": (True,), "fused_add_norm": (True, False)}
_TIED = ("in_proj", "out_proj")


def _config(said: dict[str, Any]) -> ModelConfig:
    said = _DEFAULTS | {key: value for key, value in said.items() if value is not None}
    foreign.refuse_others(said, _HELD)
    if said["rcps"]:
        _check_complements(said.get("complement_map"))
    values = ssm_options(said["ssm_cfg"]) | said | {"vocab_size": vocabulary_rows(said)}
    return foreign.model_config(values, _FIELDS, {"mixer": "bimamba", "objective": "masked_base"})


def _check_complements(said: Any) -> None:
    """Raises `InputError` unless A pairs with T and C with G."""
    pairs = {HYENADNA[base]: HYENADNA[other] for base, other in zip("ACGT", "TGCA", strict=True)}
    found = {key: said.get(str(key)) for key in pairs} if isinstance(said, dict) else None
    if found != pairs:
        raise InputError(f"complement_map: expected A to pair with T and C with G, ids {pairs}; found {found}")


class _Names:
    """The file's names of our parameters. -PS wraps modules; its norms only where they are not fused with the sum."""

    def __init__(self, wrapped: bool, stored: Collection[str]) -> None:
        self.wrapped = wrapped
        self.stored = stored

    def __call__(self, name: str) -> str:
        if name == EMBEDDING:
            return f"caduceus.backbone.embeddings.word_embeddings.{'embedding.' if self.wrapped else ''}weight"
        if name == HEAD:
            return f"lm_head.{'lm_head.' if self.wrapped else ''}weight"
        name = f"caduceus.{name}"
        if not self.wrapped:
            return name
        if ".mixer." in name:
            return name.replace(".mixer.", ".mixer.submodule.")
        inner = name.removesuffix("weight") + "submodule.weight"
        return inner if inner in self.stored else name

    def repeats(self, config: ModelConfig) -> dict[str, str]:
        """The reverse direction's copies of tied projections."""
        if not config.bidirectional_weight_tie:
            return {}
        layers = range(config.n_layer)
        originals = [
            self(f"backbone.layers.{layer}.mixer.mamba_fwd.{tied}.weight") for layer in layers for tied in _TIED
        ]
        return {name.replace("mamba_fwd", "mamba_rev"): name for name in originals}


def _is_table(name: str) -> bool:
    return name.endswith(".complement_map")


def _without_exchanges(config: ModelConfig, parameters: dict[str, Tensor]) -> ModelConfig:
    """Parameters of blocks that do not exchange the halves, in place, and the configuration that has them. In the frame
    of a block that exchanged them, the sequence's stream is the complement's with its channels in reverse order."""
    for layer in range(0, config.n_layer, 2):
        start = f"backbone.layers.{layer}."
        theirs = {name: parameters.pop(name) for name in list(parameters) if name.startswith(start)}
        for name, value in theirs.items():
            if ".norm." in name or ".out_proj." in name:
                value = value.flip(0)
            elif ".in_proj." in name:
                value = value.flip(1)
            parameters[_exchanged(name, config)] = value.contiguous()
    if config.n_layer % 2 == 0:
        return config
    head = parameters[EMBEDDING if config.tie_embeddings else HEAD]
    order = complement(torch.arange(head.shape[0], dtype=torch.uint8, device=head.device)).long()
    parameters[HEAD] = head[order].flip(1).contiguous()
    parameters["backbone.norm_f.weight"] = parameters["backbone.norm_f.weight"].flip(0).contiguous()
    return replace(config, tie_embeddings=False)


def _exchanged(name: str, config: ModelConfig) -> str:
    """The name of the other direction; projections that both share keep theirs."""
    if config.bidirectional_weight_tie and any(f".{tied}." in name for tied in _TIED):
        return name
    if "mamba_fwd" in name:
        return name.replace("mamba_fwd", "mamba_rev")
    return name.replace("mamba_rev", "mamba_fwd")


def _dialect(folder: Path | str) -> foreign.Dialect:
    folder = checkpoint_folder(Path(folder))
    said = _DEFAULTS | read_json(folder / CONFIG)
    both_strands = said["rcps"] is True
    names = _Names(both_strands, open_weights(folder).shapes)
    exchanges = both_strands and said["fused_add_norm"] is True
    kind = "Caduceus-PS" if both_strands else "Caduceus-Ph"
    return foreign.Dialect(kind, _config, names, names.repeats, _is_table, _without_exchanges if exchanges else None)


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """See `dnamamba.formats.Reader`."""
    return foreign.load(_dialect(folder), folder, device)


def read_card(folder: Path | str) -> dict[str, Any]:
    """See `dnamamba.formats.Reader`."""
    return foreign.card(_dialect(folder), folder)
