"""Sequences and models that several tests share: small, random, and decided enough that a mistake shows."""

import numpy as np
import torch

from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel


def random_bases(length, seed):
    """A string of A, C, G and T."""
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def tiny_model(embedding=30.0, out_proj=1.0, d_model=16, seed=3, **options):
    """Two blocks whose weights are larger than at initialisation, so that every base matters to those after it."""
    torch.manual_seed(seed)
    model = LanguageModel(preset("demo", n_layer=2, d_model=d_model, d_state=4, **options))
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(embedding)
        for layer in model.backbone.layers:
            layer.mixer.out_proj.weight.mul_(out_proj)
    return model


def tiny_bimamba(**options):
    """The same of a model of both sides, trained by masked bases."""
    torch.manual_seed(3)
    options = {"mixer": "bimamba", "objective": "masked_base"} | options
    model = LanguageModel(preset("demo", n_layer=2, d_model=16, d_state=4, **options))
    with torch.no_grad():
        model.backbone.embedding.weight.mul_(12)
        for layer in model.backbone.layers:
            for weight in layer.mixer.output_weights():
                weight.mul_(8)
    return model
