"""Checkpoint folders: ours, whose checksums cover all that is read, and those of other programs, which have none."""

import json
import re
import tempfile
import zipfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import oracles
import torch
from harness import Damaged, Files
from safetensors.torch import save_file

from dnamamba import formats
from dnamamba.alphabet import TOKENS
from dnamamba.formats import hugging_face
from dnamamba.formats.checkpoint import is_classifier, load_classifier, save_checkpoint, save_classifier
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.runs.card import card_lines

CONFIG = ModelConfig(d_model=4, n_layer=1, d_state=2, norm_epsilon=1e-6)
PROVENANCE = {"kind": "pretraining", "objective": "next_base", "command": "dnamamba pretrain", "steps": 10}
HYENADNA = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"]


def _model() -> LanguageModel:
    torch.manual_seed(5)
    return LanguageModel(CONFIG)


def _files(folder: Path) -> Files:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@cache
def own_files() -> list[Files]:
    with tempfile.TemporaryDirectory() as parent:
        model, classifier = Path(parent) / "model", Path(parent) / "classifier"
        save_checkpoint(_model(), model, PROVENANCE)
        save_classifier(SequenceClassifier(CONFIG, HeadConfig("multiclass", ("a", "b"))), classifier, PROVENANCE)
        return [_files(model), _files(classifier)]


@cache
def hugging_face_files() -> list[Files]:
    with tempfile.TemporaryDirectory() as parent:
        hugging_face.save_checkpoint(_model(), Path(parent) / "model", PROVENANCE)
        files = _files(Path(parent) / "model")
        return [{name: files[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}]


@cache
def mamba_ssm_files() -> list[Files]:
    said = {"d_model": 4, "n_layer": 1, "vocab_size": 12, "ssm_cfg": {"d_state": 2}, "rms_norm": True}
    tensors = {name: value.detach().clone() for name, value in _model().state_dict().items()}
    with tempfile.TemporaryDirectory() as parent:
        save_file(tensors, Path(parent) / "model.safetensors")
        torch.save(tensors, Path(parent) / "pytorch_model.bin")
        files = _files(Path(parent))
    config = json.dumps(said, indent=1).encode()
    return [{"config.json": config, name: data} for name, data in files.items()]


def _numbers(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


def read_own(folder: Path) -> Any:
    """What is loaded; and the card, which only has to be printed."""
    model, _ = (load_classifier if is_classifier(folder) else formats.load_checkpoint)(folder)
    card = formats.read_card(folder)
    card_lines(card)
    return card["config"], card["classifier"], _numbers(model)


def read_foreign(folder: Path) -> Any:
    model, _ = formats.load_checkpoint(folder)
    card_lines(formats.read_card(folder))
    config = asdict(model.config)
    rank = model.config.rank
    keys = ("d_model", "n_layer", "d_state", "d_conv", "expand", "residual_in_fp32", "tie_embeddings", "conv_bias")
    return [*(config[key] for key in keys), config["norm_epsilon"], rank], _numbers(model)


def hugging_face_oracle(folder: Path) -> Any:
    said = {
        "hidden_size": 768, "num_hidden_layers": 32, "state_size": 16, "conv_kernel": 4, "expand": 2,
        "residual_in_fp32": True, "tie_word_embeddings": True, "use_conv_bias": True, "layer_norm_epsilon": 1e-5,
        "time_step_rank": "auto", "use_bias": False, "hidden_act": "silu", "vocab_size": 50280,
    } | oracles.json_object(folder / "config.json")  # fmt: skip
    if said["use_bias"] is not False or said["hidden_act"] not in ("silu", "swish") or said["model_type"] != "mamba":
        raise Damaged("another model")
    ids = oracles.json_object(folder / "tokenizer.json")["model"]["vocab"]
    return _oracle(folder, list(said.values())[:10], ids, "backbone.embeddings.weight")


def mamba_ssm_oracle(folder: Path) -> Any:
    said = oracles.json_object(folder / "config.json")
    mixer = {"d_state": 16, "d_conv": 4, "expand": 2, "conv_bias": True, "dt_rank": "auto"} | said.get("ssm_cfg", {})
    values = [said["d_model"], said["n_layer"], mixer["d_state"], mixer["d_conv"], mixer["expand"]]
    values += [said.get("residual_in_fp32", True), said.get("tie_embeddings", True), mixer["conv_bias"]]
    if said.get("rms_norm", True) is not True:
        raise Damaged("another model")
    ids = {name: row for row, name in enumerate(HYENADNA)}
    return _oracle(folder, [*values, 1e-5, mixer["dt_rank"]], ids, "backbone.embedding.weight")


def _oracle(folder: Path, values: list[Any], ids: dict[str, int], embedding: str) -> Any:
    if (path := folder / "pytorch_model.bin").exists():
        stored = _pickled(path)
    else:
        stored = {}
        for name, (kind, _, data) in oracles.safetensors(folder / "model.safetensors").items():
            if kind != "F32":
                raise Damaged("other numbers")
            stored[name] = data
    width = 4 * values[0]
    rows = [ids.get(name, ids.get("[UNK]") if name == "N" else None) for name in TOKENS]
    table = b"".join(
        bytes(width) if row is None else stored[embedding][row * width : (row + 1) * width] for row in rows
    )
    table += bytes(16 * width - len(table))
    stored = {re.sub("^backbone.embeddings", "backbone.embedding", name): data for name, data in stored.items()}
    for name in ("backbone.embedding.weight", "lm_head.weight"):
        stored[name] = table
    rank = -(-values[0] // 16) if values[9] == "auto" else values[9]
    return [*values[:9], rank], {name: stored[name] for name in _numbers(_model())}


def _pickled(path: Path) -> dict[str, bytes]:
    """The undamaged tensors, where the checksums of the archive hold."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise Damaged("a checksum")
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise Damaged(str(error)) from None
    return _numbers(_model())
