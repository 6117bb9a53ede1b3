"""Errors as numbers: how far models read from other programs' folders are from those programs, what is exported from
transformers, and reverse complements from equivariance.

    python tests/checkpoint_errors.py

Folders are of random weights. Caduceus is compared with the naive evaluation of `plain_caduceus.py` in fp64, and the
rest with transformers' own Mamba in fp32. One row each: the largest |logit|, the largest difference of logits.
"""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import plain_caduceus
import torch
from tiny_models import random_bases

from dnamamba.alphabet import MASK, encode
from dnamamba.formats import load_checkpoint
from dnamamba.formats.hugging_face import save_checkpoint
from dnamamba.formats.vocabulary import HYENADNA
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

LENGTH = 300
BASE_ROWS = [HYENADNA[base] for base in "ACGT"]


def ids_of(length):
    """Our tokens and HyenaDNA's of a random sequence whose every seventh base is masked."""
    sequence = random_bases(length, seed=3)
    ours = torch.tensor(encode(sequence).astype(np.int64))
    theirs = torch.tensor([HYENADNA[base] for base in sequence])
    masked = torch.arange(length) % 7 == 0
    return torch.where(masked, MASK, ours), torch.where(masked, HYENADNA["[MASK]"], theirs)


def shown(name, found, expected):
    largest, error = expected.abs().max().item(), (found.double() - expected.double()).abs().max().item()
    print(f"{name:64} {largest:8.3g} {error:9.1e}", flush=True)


def caduceus(folder):
    ours, theirs = ids_of(LENGTH)
    kinds = {"Ph": {"rcps": False}, "PS": {"rcps": True}, "PS, unfused norm": {"rcps": True, "fused": False}}
    for name, kind in kinds.items():
        tensors, config = plain_caduceus.write_folder(folder / name, d_model=32, n_layer=4, state=16, **kind)
        expected = plain_caduceus.logits(tensors, config, theirs)[:, BASE_ROWS]
        for precision in (torch.float64, torch.float32):
            model = load_checkpoint(folder / name)[0].to(precision)
            shown(f"Caduceus-{name}, 4 layers of 32, {precision}", model(ours[None]).logits[0], expected)


def hugging_face(folder):
    import transformers

    ours, theirs = ids_of(LENGTH)
    config = transformers.MambaConfig(vocab_size=16, hidden_size=128, num_hidden_layers=12, state_size=16)
    other = transformers.MambaForCausalLM(config).eval()
    other.save_pretrained(folder / "hf")
    found = load_checkpoint(folder / "hf")[0](ours[None]).logits
    shown("MambaForCausalLM, 12 layers of 128, read, fp32", found, other(theirs[None]).logits[..., BASE_ROWS])
    model = LanguageModel(ModelConfig(n_layer=12, d_model=128)).eval()
    save_checkpoint(model, folder / "exported", {})
    other = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    shown("ours, 12 layers of 128, exported, fp32", other(ours[None]).logits[..., :4], model(ours[None]).logits)


def equivariance():
    for precision in (torch.float64, torch.float32):
        config = ModelConfig(n_layer=12, d_model=128, mixer="bimamba", objective="masked_base", rc_equivariant=True)
        model = LanguageModel(config).to(precision)
        tokens = torch.randint(0, 4, (1, 2_047), dtype=torch.uint8)
        here, there = model(tokens).logits, model(3 - tokens.flip(1)).logits
        shown(f"equivariance, 1.4m bimamba-ps, 2 047 bases, {precision}", there, here.flip(1, 2))


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}\n{'model':64} |logit|  difference")
    with torch.no_grad(), warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as folder:
        caduceus(Path(folder))
        equivariance()
        hugging_face(Path(folder))


if __name__ == "__main__":
    main()
