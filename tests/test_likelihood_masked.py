"""Likelihoods of models of masked bases: those of each base masked alone; equivariant ones equal on both strands."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import random_bases, tiny_bimamba, tiny_model

import dnamamba
from dnamamba import cli, likelihood
from dnamamba.alphabet import COMPLEMENT, MASK, TOKEN_BITS, encode
from dnamamba.analysis.likelihood.compute import likelihood_table
from dnamamba.analysis.likelihood.masked_tiles import MaskedTiling
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference

CONTIGS = {"b": f"NN{random_bases(90, 0)}NNN{random_bases(40, 1).lower()}", "a": random_bases(61, 2), "c": "A"}
CONTEXT = 40


def make(folder, **options):
    save_checkpoint(tiny_bimamba(**options), folder, {"settings": {"length": CONTEXT}})
    return load_for_inference(folder, "cpu", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="module")
def fasta(folder):
    path = folder / "genome.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in CONTIGS.items()))
    return path


@pytest.fixture(scope="module")
def plain(folder):
    return make(folder / "plain")


@pytest.fixture(scope="module")
def equivariant(folder):
    return make(folder / "equivariant", rc_equivariant=True)


def one_by_one(inference, tokens, context, overlap):
    """(length, 4) ln p, a masked window a base, all in one pass: the window is that of the tile that describes it."""
    length, windows, masked = tokens.size, [], []
    stride = context - 2 * overlap
    final = max(-(-(length - context) // stride), 0)
    for base in range(length):
        tile = min(max(base - overlap, 0) // stride, final)
        start = min(tile * stride, max(length - context, 0))
        window = torch.from_numpy(tokens[start : start + context].copy())
        window[base - start] = MASK
        assert min(base, overlap) <= base - start
        assert min(length - 1 - base, overlap) <= len(window) - 1 - (base - start)
        windows.append(window)
        masked.append(base - start)
    with torch.inference_mode():
        logits = inference.model(torch.stack(windows)).logits[torch.arange(length), torch.tensor(masked)]
    return torch.log_softmax(logits, -1).numpy()


@pytest.mark.parametrize("kind", ["plain", "equivariant"])
@pytest.mark.parametrize(
    ("context", "overlap", "batch_tokens"),
    [(40, 10, 5000), (41, 20, 5000), (7, 3, 50), (500, 100, 5000), (1, 0, 5000), (30, 5, 100)],
)
def test_alone_equals_a_pass_for_each_base(request, fasta, kind, context, overlap, batch_tokens):
    inference, store = request.getfixturevalue(kind), open_genome(fasta)
    tiling = MaskedTiling(context, overlap, None, kind == "equivariant")
    wanted = [Interval("a", 0, 61), Interval("b", 3, 50), Interval("b", 80, 135), Interval("c", 0, 1)]
    table = likelihood_table(inference, store, wanted, tiling, batch_tokens=batch_tokens)
    known = {}
    for interval in wanted:
        tokens = encode(CONTIGS[interval.contig]) & TOKEN_BITS
        here = slice(interval.start, interval.end)
        is_base = tokens[here] < 4
        rows = table.filter(pl.col("contig").cast(pl.String) == interval.contig)
        rows = rows.filter((rows["position"] >= interval.start) & (rows["position"] < interval.end))
        if interval.contig not in known:
            known[interval.contig] = {"forward": one_by_one(inference, tokens, context, overlap)}
            if kind == "plain":  # of the other one reading serves both: tiles lie as on the forward strand
                reverse = one_by_one(inference, COMPLEMENT[tokens[::-1]], context, overlap)
                known[interval.contig]["reverse"] = reverse[::-1, ::-1]
        for strand, log_p in known[interval.contig].items():
            expected = np.where(is_base, log_p[here][np.arange(is_base.size), np.minimum(tokens[here], 3)], np.nan)
            found = rows[f"{strand}_log_likelihood"].fill_null(np.nan).to_numpy()
            np.testing.assert_allclose(found, expected, atol=2e-5)
            p = np.where(is_base, np.exp(log_p[here, 1]), np.nan)
            np.testing.assert_allclose(rows[f"{strand}_p_C"].fill_null(np.nan).to_numpy(), p, atol=2e-5)


def test_an_equivariant_model_says_the_same_of_both_strands(equivariant, fasta):
    tiling = MaskedTiling(500, 0, 3, True)
    table = likelihood_table(equivariant, open_genome(fasta), [Interval("a", 0, 61)], tiling)
    assert table["forward_log_likelihood"].equals(table["reverse_log_likelihood"], check_names=False)
    turned = MaskedTiling(500, 0, None, False)
    each = likelihood_table(equivariant, open_genome(fasta), [Interval("a", 0, 61)], turned)
    np.testing.assert_allclose(each["forward_entropy"], each["reverse_entropy"], atol=1e-5)


def test_several_masks_a_pass_are_near_and_the_difference_is_told(plain, folder, fasta, capsys):
    checkpoint = str(folder / "plain")
    arguments = ["--checkpoint", checkpoint, "--genome", str(fasta), "--format", "parquet", "--accelerator", "cpu"]
    for name, more in (("k8", ["--mask_every", "8"]), ("default", []), ("alone", ["--mask_every", "alone"])):
        assert cli.run(likelihood.main, [*arguments, "--out", str(folder / name), *more]) == 0
    shown = capsys.readouterr()
    assert "with each masked alone" in shown.out + shown.err
    cards = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("k8", "default", "alone")}
    assert [cards[name]["mask_every"] for name in cards] == [8, 16, "alone"]
    assert 0 < cards["k8"]["masking_difference_nats"] < 2
    assert "masking_difference_nats" not in cards["alone"]


def test_python_has_the_same(plain, folder, fasta):
    model = dnamamba.load(folder / "plain", device="cpu")
    table = pl.read_parquet(folder / "k8.parquet").filter(pl.col("contig").cast(pl.String) == "a")
    found = model.log_likelihood(genome=fasta, regions="a:1-61", strand="mean", mask_every=8)
    np.testing.assert_allclose(found, table["mean_log_likelihood"].to_numpy(), atol=2e-5)
    sequence = model.log_likelihood(CONTIGS["a"], strand="mean", mask_every=8)
    np.testing.assert_allclose(sequence, found, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "unlimited"}, "does not predict the next base"),
        ({"mask_every": 1}, "mask_every: 1 is not possible, expected 2 bases or more"),
        ({"mask_every": "often"}, "mask_every"),
    ],
)
def test_what_cannot_be_is_refused(plain, folder, options, message):
    with pytest.raises(InputError, match=message):
        dnamamba.load(folder / "plain", device="cpu").log_likelihood("ACGT", **options)


def test_a_causal_model_masks_nothing(folder):
    save_checkpoint(tiny_model(), folder / "causal", {"settings": {"length": 30}})
    with pytest.raises(InputError, match="mask_every: this model predicts the next base"):
        dnamamba.load(folder / "causal", device="cpu").log_likelihood("ACGT", mask_every=4)


def test_generate_says_why_not(plain, folder):
    with pytest.raises(InputError, match=r"generate: this model .*does not predict the next base"):
        dnamamba.load(folder / "plain", device="cpu").generate("ACGT")
