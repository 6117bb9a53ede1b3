"""Embeddings by models that see both sides: whole sequences, and of equivariant models the same on both strands."""

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import random_bases, tiny_bimamba

import dnamamba
from dnamamba import cli, embed
from dnamamba.alphabet import COMPLEMENT, decode, encode
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint

SEQUENCES = [random_bases(length, length) for length in (1, 33, 90, 34)] + ["NNACGTNACC"]
TURNED = [decode(COMPLEMENT[encode(sequence)[::-1]]) for sequence in SEQUENCES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both_sides")
    for name, options in {"plain": {}, "equivariant": {"rc_equivariant": True}}.items():
        save_checkpoint(tiny_bimamba(**options), folder / name, {})
    (folder / "sequences.fa").write_text("".join(f">{n}\n{text}\n" for n, text in enumerate(SEQUENCES)))
    return folder


@pytest.fixture(scope="module", params=["plain", "equivariant"])
def model(request, folder):
    return dnamamba.load(folder / request.param, device="cpu")


def alone(model, sequence):
    """(length, 16) of one sequence."""
    with torch.inference_mode():
        hidden = model.module(torch.from_numpy(encode(sequence))[None], logits=False).hidden[0]
    return hidden.unflatten(-1, (-1, 16)).mean(1).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 70, 10_000])
def test_they_are_those_of_each_sequence_whole(model, batch_tokens):
    mean = model.embed(SEQUENCES, batch_tokens=batch_tokens)
    position = model.embed(SEQUENCES, pool="position", batch_tokens=batch_tokens)
    for sequence, pooled, each in zip(SEQUENCES, mean, position, strict=True):
        expected = alone(model, sequence)
        np.testing.assert_allclose(each, expected, atol=2e-5)
        is_base = np.array([letter != "N" for letter in sequence])
        np.testing.assert_allclose(pooled, expected[is_base].mean(0), atol=2e-5)


def test_both_strands_of_an_equivariant_model_have_the_same(model):
    here, there = model.embed(SEQUENCES), model.embed(TURNED)
    if model.module.config.rc_equivariant:
        np.testing.assert_allclose(here, there, atol=2e-5)
        for one, other in zip(
            model.embed(SEQUENCES, pool="position"), model.embed(TURNED, pool="position"), strict=True
        ):
            np.testing.assert_allclose(one, other[::-1], atol=2e-5)
    else:
        assert np.abs(here - there).max() > 0.01
    both = [model.embed(each, both_strands=True) for each in (SEQUENCES, TURNED)]
    np.testing.assert_allclose(*both, atol=2e-5)
    np.testing.assert_allclose(both[0], (here + there) / 2, atol=2e-5)


def test_the_command_line_has_the_same(model, folder, tmp_path):
    arguments = ["--checkpoint", str(model.checkpoint), "--input", str(folder / "sequences.fa"), "--accelerator", "cpu"]
    out = tmp_path / "embedded.parquet"
    assert cli.run(embed.main, [*arguments, "--batch_tokens", "50", "--out", str(out)]) == 0
    np.testing.assert_allclose(pl.read_parquet(out)["embedding"].to_numpy(), model.embed(SEQUENCES), atol=2e-5)


def test_the_last_state_is_refused(model):
    with pytest.raises(InputError, match="--pool last: this model sees both sides of each base"):
        model.embed(SEQUENCES, pool="last")
