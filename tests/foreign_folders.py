"""A model whose generations depend on all that it has read, and its folder as mamba-ssm writes it, in HyenaDNA's
ids."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import random_bases

from dnamamba.alphabet import TOKENS, encode
from dnamamba.formats.vocabulary import HYENADNA
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

SEQUENCE = random_bases(60, seed=1) + "NNN" + random_bases(50, seed=2)


def make_model(**overrides):
    """Its mixers outweigh the residual stream, so that what it generates depends on all that it has read."""
    torch.manual_seed(5)
    model = LanguageModel(ModelConfig(**({"d_model": 24, "n_layer": 2, "d_state": 5} | overrides))).eval()
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(10)
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(100)
            layer.mixer.x_proj.weight.mul_(4)
            layer.norm.weight.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def ours(sequence=SEQUENCE):
    return torch.tensor(encode(sequence)[None].astype(np.int64))


def theirs(sequence=SEQUENCE):
    return torch.tensor([[HYENADNA[base] for base in sequence]])


def in_hyenadna_ids(weight):
    rows = torch.zeros(16, weight.shape[1])
    for token, name in enumerate(TOKENS):
        rows[HYENADNA[name]] = weight[token]
    return rows


STATE_SPACES = {
    "d_model": 24, "n_layer": 2, "vocab_size": 12, "ssm_cfg": {"d_state": 5}, "rms_norm": True,
    "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": True,
}  # fmt: skip


def write_state_spaces(folder, model, pickled=True, dtype=torch.float32, **config):
    """As mamba-ssm writes it: a tied head is in the file too."""
    tensors = {name: value.clone().to(dtype) for name, value in model.state_dict().items()}
    for name in ("backbone.embedding.weight", "lm_head.weight"):
        tensors[name] = in_hyenadna_ids(tensors[name]).to(dtype)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STATE_SPACES | config))
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder
