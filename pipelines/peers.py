"""Caduceus, and language models of Mamba and Mamba-2, on mamba-ssm's kernels, as their users have them.

Importing this needs mamba-ssm and causal-conv1d, built for the torch at hand.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mamba_ssm import Mamba
from mamba_ssm.ops.triton.layer_norm import layer_norm_fn
from safetensors.torch import save_file
from torch import Tensor

from dnamamba.formats.caduceus import load_checkpoint
from dnamamba.formats.vocabulary import HYENADNA
from dnamamba.model.language_model import LanguageModel

ROWS = 16
"""Of the embedding: 12 tokens, up to a multiple of 8."""
EPSILON = 1e-5
MASK_ID = HYENADNA["[MASK]"]
BASE_IDS = [HYENADNA[base] for base in "ACGT"]
COMPLEMENT = list(range(ROWS))
for _base, _other in zip("ACGT", "TGCA", strict=True):
    COMPLEMENT[HYENADNA[_base]] = HYENADNA[_other]


def rc(x: Tensor) -> Tensor:
    """Reverse complement of hidden states (batch, length, channels): positions and channels in reverse order."""
    return x.flip(1, 2)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """mamba-ssm's fused kernel: (RMSNorm of the sum, the sum in fp32)."""
    return layer_norm_fn(
        x, weight, None, residual=residual, prenorm=True, residual_in_fp32=True, eps=EPSILON, is_rms_norm=True
    )


class MambaLM(nn.Module):
    """Blocks of one of mamba-ssm's mixers, as its own language model has them; parameters have its names."""

    def __init__(self, d_model: int, mixers: list[nn.Module]) -> None:
        super().__init__()
        layers = nn.ModuleList(nn.ModuleDict({"norm": Norm(d_model), "mixer": mixer}) for mixer in mixers)
        embedding = nn.Embedding(ROWS, d_model)
        nn.init.normal_(embedding.weight, std=0.02)
        self.backbone = nn.ModuleDict({"embedding": embedding, "layers": layers, "norm_f": Norm(d_model)})
        self.lm_head = nn.Linear(d_model, ROWS, bias=False)
        self.lm_head.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length) → logits (batch, length, ROWS)."""
        x, residual = self.backbone["embedding"](ids), None
        for layer in self.backbone["layers"]:
            x, residual = layer["norm"](x, residual)
            x = layer["mixer"](x)
        return self.lm_head(self.backbone["norm_f"](x, residual)[0])


class BiMamba(nn.Module):
    """One Mamba forward, another on the flipped sequence, their projections tied."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mamba_fwd, self.mamba_rev = Mamba(d_model), Mamba(d_model)
        self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
        self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.mamba_fwd(x) + self.mamba_rev(x.flip(1)).flip(1)


class OnBothStrands(nn.Module):
    """A module on the first half of the channels and, through `rc`, on the second."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((self.submodule(first), rc(self.submodule(rc(second)))), -1)


class Norm(nn.Module):
    """Add and norm. Of both strands by the released weights' rule: the halves are exchanged."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return add_norm(x, residual, self.weight)

    def exchanging(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=-1)
        residual_first, residual_second = (None, None) if residual is None else residual.chunk(2, dim=-1)
        new_first, sum_first = add_norm(second, residual_second, self.weight)
        turned = None if residual_first is None else rc(residual_first)
        new_second, sum_second = add_norm(rc(first), turned, self.weight)
        return torch.cat((new_first, rc(new_second)), -1), torch.cat((sum_first, rc(sum_second)), -1)


class Layer(nn.Module):
    def __init__(self, d_model: int, rcps: bool) -> None:
        super().__init__()
        self.rcps = rcps
        self.norm = Norm(d_model)
        self.mixer = OnBothStrands(BiMamba(d_model)) if rcps else BiMamba(d_model)

    def forward(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        x, residual = self.norm.exchanging(x, residual) if self.rcps else self.norm(x, residual)
        return self.mixer(x), residual


class Embedding(nn.Module):
    """Of the sequence and, of both strands, of its complement."""

    def __init__(self, d_model: int, rcps: bool) -> None:
        super().__init__()
        embedding = nn.Embedding(ROWS, d_model)
        self.word_embeddings: nn.Module = nn.Module() if rcps else embedding
        if rcps:
            self.word_embeddings.embedding = embedding
            self.word_embeddings.register_buffer("complement_map", torch.tensor(COMPLEMENT))

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self.word_embeddings, nn.Embedding):
            return self.word_embeddings(ids)
        embedding, complement = self.word_embeddings.embedding, self.word_embeddings.complement_map
        return torch.cat((embedding(ids), rc(embedding(complement[ids.flip(1)]))), -1)


class Caduceus(nn.Module):
    """Ph, or PS with `rcps`, from the description of its checkpoints: its parameters have their names.

    Weights are random: those that a model starts from, but norms that are not all ones, so that an exchange is seen.
    """

    def __init__(self, d_model: int = 256, n_layer: int = 16, rcps: bool = False) -> None:
        super().__init__()
        self.d_model, self.n_layer, self.rcps = d_model, n_layer, rcps
        self.caduceus = nn.Module()
        self.caduceus.backbone = nn.ModuleDict(
            {
                "embeddings": Embedding(d_model, rcps),
                "layers": nn.ModuleList(Layer(d_model, rcps) for _ in range(n_layer)),
                "norm_f": Norm(d_model),
            }
        )
        table = self._embedding()
        nn.init.normal_(table, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight")):
                nn.init.uniform_(parameter, 0.8, 1.2)

    def _embedding(self) -> Tensor:
        words = self.caduceus.backbone["embeddings"].word_embeddings
        return words.embedding.weight if self.rcps else words.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length) → logits (batch, length, ROWS) fp32."""
        backbone = self.caduceus.backbone
        x, residual = backbone["embeddings"](ids), None
        for layer in backbone["layers"]:
            x, residual = layer(x, residual)
        norm, table = backbone["norm_f"], self._embedding()
        if not self.rcps:
            return F.linear(norm(x, residual)[0], table).float()
        first, second = x.chunk(2, dim=-1)
        residual_first, residual_second = residual.chunk(2, dim=-1)
        first = norm(first, residual_first)[0]
        second = norm(rc(second), rc(residual_second))[0].flip(1)  # its channels as the head has them
        complement = backbone["embeddings"].word_embeddings.complement_map
        return (F.linear(first, table) + F.linear(second, table[complement])).float()

    def write(self, folder: Path) -> None:
        """config.json and model.safetensors as its users have them."""
        said: dict[str, Any] = {
            "model_type": "caduceus", "d_model": self.d_model, "n_layer": self.n_layer, "vocab_size": 12,
            "pad_vocab_size_multiple": 8, "ssm_cfg": {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto"},
            "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "norm_epsilon": EPSILON,
            "bidirectional": True, "bidirectional_strategy": "add", "bidirectional_weight_tie": True,
            "rcps": self.rcps, "complement_map": {str(row): other for row, other in enumerate(COMPLEMENT)},
        }  # fmt: skip
        tensors = {name: value.detach().clone().contiguous().cpu() for name, value in self.state_dict().items()}
        head = "lm_head.lm_head.weight" if self.rcps else "lm_head.weight"
        tensors[head] = self._embedding().detach().clone().cpu()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(said))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def ours(self, folder: Path, device: torch.device | str = "cpu") -> LanguageModel:
        """The same weights as this package reads them, through a folder that is written there."""
        self.write(folder)
        return load_checkpoint(folder, device)[0]
