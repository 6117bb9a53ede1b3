"""The Python API: its answers are those of the command line, its mistakes one clear error."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import dnamamba
from dnamamba import demo
from dnamamba.api import model as api_model
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.model import blocks, chunked_backward
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.tables import read_table

CONTIG = "K-12-MG1655"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("api") / "checkpoint"
    save_checkpoint(LanguageModel(ModelConfig(n_layer=2, d_model=64)), folder, {"settings": {"length": 512}})
    return folder


@pytest.fixture(scope="module")
def model(checkpoint):
    return dnamamba.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def genome():
    return demo.genome_path()


def run(verb, *arguments):
    command = [str(argument) for argument in arguments]
    return __import__("importlib").import_module(f"dnamamba.{verb}").main([*command, "--accelerator", "cpu"])


def test_import_is_light():
    code = "import sys, dnamamba; assert not {'torch', 'lightning', 'polars', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"load", "Genome", "pretrain", "finetune"} <= set(dir(dnamamba))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = dnamamba.no_such_thing


def test_examples_in_docstrings(model, genome):
    for module in (api_model, blocks, chunked_backward):
        tested = doctest.testmod(module, extraglobs={"model": model, "genome": genome})
        assert tested.failed == 0 and tested.attempted > 0


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean"])
def test_likelihoods_are_those_of_the_command_line(model, checkpoint, genome, strand, tmp_path):
    region = f"{CONTIG}:100,001-101,500"
    run("likelihood", "--checkpoint", checkpoint, "--genome", genome, "--region", region, "--out", tmp_path / "x",
        "--format", "parquet")  # fmt: skip
    table = read_table(tmp_path / "x.parquet")
    found = model.log_likelihood(genome=genome, regions=region, strand=strand)
    np.testing.assert_array_equal(found, table[f"{strand}_log_likelihood"].to_numpy())
    probabilities = model.base_probabilities(genome=genome, regions=region, strand=strand)
    np.testing.assert_array_equal(probabilities, table.select(f"{strand}_p_{base}" for base in "ACGT").to_numpy())


def test_sequences_are_as_contigs_of_their_own(model, genome, tmp_path):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGTacgtN"), size)) for size in (1, 2, 511, 1300, 1301)]
    fasta = tmp_path / "some.fa"
    fasta.write_text("".join(f">r{n}\n{text}\n" for n, text in enumerate(texts)))
    for strand in ("forward", "reverse", "mean"):
        together = model.log_likelihood(texts, strand=strand)
        for number, (text, found) in enumerate(zip(texts, together, strict=True)):
            as_contig = model.log_likelihood(genome=fasta, regions=(f"r{number}", 0, len(text)), strand=strand)
            np.testing.assert_allclose(found, as_contig, atol=2e-6)
            assert found.shape == (len(text),)
    one = model.log_likelihood(texts[2])
    np.testing.assert_allclose(one, together_forward := model.log_likelihood(texts)[2], atol=2e-6)
    assert np.isnan(together_forward[0])
    is_n = np.array([letter in "nN" for letter in texts[2]])
    assert np.isnan(one[is_n]).all() and not np.isnan(one[1:][~is_n[1:]]).any()
    assert model.log_likelihood([]) == []


def test_likelihood_equals_the_modules_own(model):
    text = "ACGTTGCATTAC"
    tokens = torch.tensor(["ACGT".index(letter) for letter in text])[None]
    expected = torch.log_softmax(model.module(tokens).logits[0, :-1], -1)[range(11), tokens[0, 1:]]
    np.testing.assert_allclose(model.log_likelihood(text)[1:], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(model.log_likelihood(text.replace("T", "U").lower())[1:], expected.numpy(), atol=1e-6)


def test_embeddings_are_those_of_the_command_line(model, checkpoint, genome, tmp_path):
    bed = tmp_path / "some.bed"
    bed.write_text(f"{CONTIG}\t1000\t1700\n{CONTIG}\t5000\t5100\n")
    for pool in ("mean", "last"):
        out = tmp_path / f"{pool}.npz"
        run("embed", "--checkpoint", checkpoint, "--genome", genome, "--input", bed, "--pool", pool, "--out", out)
        found = model.embed(genome=genome, regions=bed, pool=pool)
        with np.load(out) as stored:
            np.testing.assert_array_equal(found, stored["embedding"])
    positions = model.embed(["ACGTA", "GG"], pool="position")
    assert [part.shape for part in positions] == [(5, 64), (2, 64)]
    np.testing.assert_allclose(positions[0][-1], model.embed("ACGTA", pool="last"), atol=1e-6)


def test_samples_are_those_of_the_command_line(model, checkpoint, tmp_path):
    run("generate", "--checkpoint", checkpoint, "--prompt", "ACGTTG", "--length", 50, "--samples", 3, "--seed", 7,
        "--out", tmp_path / "x.fa")  # fmt: skip
    written = [line for line in (tmp_path / "x.fa").read_text().splitlines() if not line.startswith(">")]
    assert model.generate("ACGTTG", length=50, samples=3, seed=7) == written
    assert model.generate("ACGTTG", length=50, seed=7) == written[0]


VARIANTS = [(CONTIG, 1001), (CONTIG, 2001), (CONTIG, 2002), (CONTIG, 9001)]


@pytest.fixture(scope="module")
def variants(genome):
    sequence = dnamamba.Genome(genome)[CONTIG, :10_000].upper()
    other = {"A": "C", "C": "A", "G": "T", "T": "G"}
    return [(name, position, base := sequence[position - 1], other[base]) for name, position in VARIANTS]


def test_scores_are_those_of_the_command_line(model, checkpoint, genome, variants, tmp_path):
    rows = "".join(f"{c}\t{p}\tv{n}\t{r}\t{a}\t.\t.\t.\n" for n, (c, p, r, a) in enumerate(variants))
    vcf = tmp_path / "in.vcf"
    vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + rows)
    run("score", "--checkpoint", checkpoint, "--genome", genome, "--vcf", vcf, "--out", tmp_path / "x.parquet")
    written = read_table(tmp_path / "x.parquet")
    assert model.score_variants(vcf, genome=genome).equals(written)
    by_tuples = model.score_variants(variants, genome=genome)
    assert by_tuples.drop("id").equals(written.drop("id"))
    frame = pl.DataFrame(variants, schema=["chrom", "pos", "ref", "alt"], orient="row")
    assert model.score_variants(frame, genome=genome).equals(by_tuples)
    from_zero = frame.with_columns(start=pl.col("pos") - 1).drop("pos")
    assert model.score_variants(from_zero, genome=genome).equals(by_tuples)


def test_mutagenesis_is_that_of_the_command_line(model, checkpoint, genome, tmp_path):
    region = f"{CONTIG}:3,001-3,012"
    run("mutagenesis", "--checkpoint", checkpoint, "--genome", genome, "--region", region, "--out", tmp_path / "x",
        "--format", "parquet", "--check", 0)  # fmt: skip
    assert model.mutagenesis(region, genome=genome).equals(read_table(tmp_path / "x.parquet"))


def test_predictions_are_those_of_the_command_line(tmp_path):
    torch.manual_seed(1)
    head = HeadConfig("multiclass", ("a", "b"), "mean", "mean")
    folder = tmp_path / "classifier"
    save_classifier(SequenceClassifier(ModelConfig(n_layer=1, d_model=32), head), folder, {"task": "sequences"})
    texts = ["ACGTACGTTT", "GGGTACCA", "ACNNT"]
    fasta = tmp_path / "some.fa"
    fasta.write_text("".join(f">{n}\n{text}\n" for n, text in enumerate(texts, 1)))
    run("predict", "--checkpoint", folder, "--input", fasta, "--out", tmp_path / "x.parquet")
    classifier = dnamamba.load(folder, device="cpu")
    assert classifier.classes == ["a", "b"]
    assert classifier.predict(texts).equals(read_table(tmp_path / "x.parquet"))
    with pytest.raises(dnamamba.InputError, match="predicts classes and no bases"):
        classifier.log_likelihood("ACGT")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m, g: m.log_likelihood("ACGE"), "'E' at position 4"),
        (lambda m, g: m.log_likelihood(), "give sequences, or genome= and regions="),
        (lambda m, g: m.log_likelihood("ACGT", genome=g), "give sequences, or genome= and regions="),
        (lambda m, g: m.log_likelihood(genome=g, regions="chrZ:1-2"), "no contig 'chrZ'"),
        (lambda m, g: m.log_likelihood(genome=g, regions=(CONTIG, 5, 5)), "expected 0 <= start < end"),
        (lambda m, g: m.embed(""), "no bases"),
        (lambda m, g: m.generate(""), "at least one base"),
        (lambda m, g: m.generate("ACGT", length=0), "length: 0"),
        (lambda m, g: m.generate("ACGT", temperature=-1), "temperature"),
        (lambda m, g: m.predict("ACGT"), "without classes"),
        (lambda m, g: m.score_variants([(CONTIG, "x", "A", "C")], genome=g), "variant 1"),
        (lambda m, g: m.score_variants([(CONTIG, 5, "A")], genome=g), "variant 1"),
        (lambda m, g: m.score_variants(pl.DataFrame({"a": [1]}), genome=g), "columns a"),
        (lambda m, g: m.mutagenesis(f"{CONTIG}:1-10", genome=g, context=7), "even number"),
        (lambda m, g: dnamamba.load("no/such/folder"), "no/such/folder"),
    ],
)
def test_mistakes_are_one_clear_error(model, genome, call, expected):
    with pytest.raises(dnamamba.InputError, match=expected) as caught:
        call(model, genome)
    assert "\n" not in str(caught.value)


def test_block_in_ones_own_model():
    torch.manual_seed(0)
    block = dnamamba.MambaBlock(d_model=16, d_state=8)
    x = torch.randn(2, 11, 16, requires_grad=True)
    whole = block(x)
    first, state = block.scan(x[:, :4])
    second, _ = block.scan(x[:, 4:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    whole.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_a_run_from_python(tmp_path):
    run = dnamamba.pretrain(
        max_steps=2, length=128, batch_tokens=256, markov_order=2, validation_tokens=1000, accelerator="cpu",
        out=tmp_path / "run", model={"n_layer": 1, "d_model": 16},
    )  # fmt: skip
    assert run.folder == tmp_path / "run"
    assert run.summary == json.loads(Path(tmp_path / "run" / "summary.json").read_text())
    assert run.metrics["step"].to_list()[-1] == 2
    assert run.model(device="cpu").log_likelihood("ACGT").shape == (4,)
    for mistake, expected in (({"lenght": 5}, "lenght"), ({"length": "long"}, "length"), ({"length": 5}, "below 128")):
        with pytest.raises(dnamamba.InputError, match=expected):
            dnamamba.pretrain(**mistake, out=tmp_path / "other")
