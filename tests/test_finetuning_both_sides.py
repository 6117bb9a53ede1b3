"""Classifiers on models that see both sides: sequences whole, and of equivariant models the same for both strands."""

import csv

import numpy as np
import polars as pl
import pytest
import torch
from test_finetune import data, finetuned  # noqa: F401
from test_finetuning_variants import pairs, random_tokens, row_of, stacked  # noqa: F401
from tiny_models import tiny_bimamba

import dnamamba
from dnamamba import cli, finetune, predict
from dnamamba.alphabet import COMPLEMENT, decode, encode
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference.pooling import classify
from dnamamba.model.alleles import NEAR, allele_features, allele_width
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.tokens import reverse_complement

KINDS = {"plain": {}, "equivariant": {"rc_equivariant": True}}


def classifier(kind, **head):
    model = tiny_bimamba(**KINDS[kind])
    head = {"kind": "multiclass", "names": ("a", "b", "c"), "pooling": "mean"} | head
    found = SequenceClassifier(model.config, HeadConfig(**head), model.backbone).eval().requires_grad_(False)
    torch.nn.init.normal_(found.head.weight)
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both_sides")
    for kind, options in KINDS.items():
        save_checkpoint(tiny_bimamba(**options), folder / kind, {"settings": {"length": 64}})
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_padding_batches_and_chunks_change_nothing(kind):
    model = classifier(kind)
    tokens, lengths = stacked([random_tokens(length, length) for length in (1, 40, 17)])
    whole = classify(model, tokens, lengths)
    torch.testing.assert_close(classify(model, tokens, lengths, 7), whole, atol=0, rtol=0)
    for row, (each, length) in enumerate(zip(tokens, lengths.tolist(), strict=True)):
        alone = classify(model, each[None, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [{}, {"strands": "mean"}, {"pooling": "alleles"}])
def test_an_equivariant_models_classes_are_the_same_for_both_strands(pairs, head):  # noqa: F811
    model = classifier("equivariant", **head)
    rows = [row_of(*pair) for pair in pairs] if head.get("pooling") else [random_tokens(n, n) for n in (2, 40, 17)]
    tokens, lengths = stacked(rows)
    here = classify(model, tokens, lengths)
    torch.testing.assert_close(
        classify(model, reverse_complement(tokens, lengths), lengths), here, atol=2e-4, rtol=1e-4
    )
    assert here.std(0).min() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_variants_are_those_of_plain_passes(kind, pairs):  # noqa: F811
    model = tiny_bimamba(**KINDS[kind])
    tokens, lengths = stacked([row_of(*pair) for pair in pairs])
    with torch.no_grad():
        found = allele_features(model.backbone, tokens, lengths)
    assert found.shape == (len(pairs), allele_width(model.config)) == (len(pairs), 3 * 16 + 2)
    for row, pair in zip(found, pairs, strict=True):
        left = next(i for i, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
        right = next(i for i, (a, b) in enumerate(zip(*(allele[::-1] for allele in pair), strict=False)) if a != b)
        means = []
        for allele in pair:
            with torch.no_grad():
                hidden = model(torch.from_numpy(allele)[None]).hidden[0].unflatten(-1, (-1, 16)).mean(1)
            first, end = sorted((left, len(allele) - right))
            means.append([hidden[max(first - NEAR, 0) : end + NEAR].mean(0), hidden.mean(0)])
        changes = [other - one for one, other in zip(*means, strict=True)]
        assert row[-2:].tolist() == pytest.approx([float(change.norm().log()) for change in changes], abs=1e-3)
        for number, vector in enumerate((*changes, means[0][0])):
            assert torch.corrcoef(torch.stack((row[16 * number : 16 * (number + 1)], vector)))[0, 1] > 0.9999


@pytest.mark.parametrize(("kind", "mode"), [("equivariant", "full"), ("plain", "probe"), ("equivariant", "probe")])
def test_a_run_learns_and_predicts(kind, mode, checkpoints, data, tmp_path):  # noqa: F811
    flags = ["--task", "sequences", "--data", str(data), "--checkpoint", str(checkpoints / kind), "--mode", mode]
    flags += ["--epochs", "3", "--batch_size", "16", "--learning_rate", "0.01", "--kmer", "0", "--accelerator", "cpu"]
    summary = finetuned(tmp_path / "run", *flags, "--micro_tokens", "64")  # less than a batch
    assert summary["test"]["mcc"]["mean"] > 0.5
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "pooling: mean" in config
    assert ("conjoin:\n- 'no'" in config) == (kind == "equivariant")

    with (data / "test.csv").open() as file:
        sequences = [row["sequence"] for row in csv.DictReader(file)]
    out = tmp_path / "predicted.parquet"
    arguments = ["--checkpoint", str(tmp_path / "run"), "--input", str(data / "test.csv"), "--out", str(out)]
    assert cli.run(predict.main, [*arguments, "--accelerator", "cpu", "--micro_tokens", "16"]) == 0
    found = pl.read_parquet(out)["p_GC"].to_numpy()
    written = pl.read_csv(tmp_path / "run" / "test_predictions.csv")["p_GC"].to_numpy()
    np.testing.assert_allclose(found, written, atol=1e-5)
    model = dnamamba.load(tmp_path / "run", device="cpu")
    turned = model.predict([decode(COMPLEMENT[encode(each)[::-1]]) for each in sequences])["p_GC"].to_numpy()
    np.testing.assert_allclose(turned, found, atol=2e-5)  # equivariant; of the others the mean of both strands


def test_the_last_state_is_refused(checkpoints, data, tmp_path, capsys):  # noqa: F811
    flags = [
        "--checkpoint",
        str(checkpoints / "plain"),
        "--data",
        str(data),
        "--pooling",
        "last",
        "--accelerator",
        "cpu",
    ]
    assert cli.run(finetune.main, [*flags, "--out", str(tmp_path / "run")]) == 2
    assert "--pooling last: this model sees both sides of each base" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
