"""`dnamamba predict` and `dnamamba info` from the command line."""

import csv
import json

import numpy as np
import polars
import pytest
import torch

from dnamamba import cli, info, predict
from dnamamba.alphabet import encode
from dnamamba.finetuning.predictions import predict_logits
from dnamamba.finetuning.queries import Queries, in_blocks
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.genome.sequences import NamedSequence
from dnamamba.inference.device import Compute
from dnamamba.inference.pooling import classify
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel

TINY = ModelConfig(n_layer=2, d_model=16, d_state=4)
LENGTHS = (1, 7, 64, 65, 300, 1000)


def random_dna(length, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


SEQUENCES = [random_dna(length, length) for length in LENGTHS]


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    model = SequenceClassifier(TINY, HeadConfig("multiclass", ("ape", "fly", "worm"), "mean", "mean")).eval()
    torch.nn.init.normal_(model.head.weight)
    save_classifier(model, tmp_path / "model", {"task": "species", "length": 100, "metrics": {"test": {"mcc": 0.5}}})
    return model


@pytest.fixture
def expected(model):
    """(sequences, 3): each sequence alone."""
    with torch.no_grad():
        logits = [classify(model, torch.from_numpy(encode(s))[None], torch.tensor([len(s)])) for s in SEQUENCES]
        return torch.cat(logits).softmax(-1).numpy()


def predicted(tmp_path, name, *arguments):
    out = tmp_path / name
    flags = ["--checkpoint", str(tmp_path / "model"), "--out", str(out), "--accelerator", "cpu"]
    assert cli.run(predict.main, [*flags, *map(str, arguments)]) == 0
    if out.suffix == ".parquet":
        return polars.read_parquet(out).to_dicts()
    with out.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if out.suffix == ".tsv" else ","))


def probabilities(rows):
    return np.array([[float(row[f"p_{name}"]) for name in ("ape", "fly", "worm")] for row in rows])


def write_input(tmp_path, kind):
    path = tmp_path / f"input.{kind}"
    if kind == "fa":
        path.write_text("".join(f">s{n} some words\n{text.lower()}\n" for n, text in enumerate(SEQUENCES)))
    elif kind == "parquet":
        polars.DataFrame({"sequence": SEQUENCES, "name": [f"s{n}" for n in range(6)]}).write_parquet(path)
    else:
        rows = [("name", "seq"), *((f"s{n}", text) for n, text in enumerate(SEQUENCES))]
        path.write_text("".join(("\t" if kind == "tsv" else ",").join(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["fa", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("out", ["out.csv", "out.tsv", "out.parquet"])
def test_every_format_gives_what_each_sequence_alone_gives(tmp_path, expected, kind, out):
    rows = predicted(tmp_path, out, "--input", write_input(tmp_path, kind))
    assert [row["name"] for row in rows] == [f"s{n}" for n in range(6)]
    assert [int(row["end"]) for row in rows] == list(LENGTHS)
    np.testing.assert_allclose(probabilities(rows), expected, rtol=0, atol=1e-5)
    assert [row["predicted"] for row in rows] == [("ape", "fly", "worm")[k] for k in expected.argmax(1)]


@pytest.mark.parametrize("micro_tokens", [1, 50, 64, 999, 4000])
def test_batch_size_padding_and_chunks_change_nothing(tmp_path, expected, micro_tokens):
    path = write_input(tmp_path, "fa")
    rows = predicted(tmp_path, "out.parquet", "--input", path, "--micro_tokens", micro_tokens)
    np.testing.assert_allclose(probabilities(rows), expected, rtol=0, atol=1e-5)


def test_a_long_sequence_goes_through_in_chunks(model):
    tokens = encode(random_dna(40_000, 1))
    queries = Queries([NamedSequence("long", "long", 0, len(tokens), False, tokens)])
    whole, chunked = (
        predict_logits(model, queries, Compute(torch.device("cpu"), "fp32", micro)) for micro in (40_000, 1024)
    )
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


def test_intervals_of_a_genome_on_both_strands(tmp_path, model):
    genome = random_dna(500, 9)
    other = genome[::-1].translate(str.maketrans("ACGT", "TGCA"))
    (tmp_path / "genome.fa").write_text(f">chr1\n{genome}\n")
    (tmp_path / "in.bed").write_text("chr1\t100\t350\tx\t0\t-\nchr1\t100\t350\n")
    flags = ["--input", tmp_path / "in.bed", "--genome", tmp_path / "genome.fa", "--window", 100]
    rows = predicted(tmp_path, "out.csv", *flags)
    intervals = [(row["name"], int(row["start"]), int(row["end"]), row["strand"]) for row in rows]
    minus = [(250, 350), (150, 250), (100, 150)]
    plus = [(100, 200), (200, 300), (300, 350)]
    assert intervals == [("chr1", *p, "-") for p in minus] + [("chr1", *p, "+") for p in plus]
    texts = [other[500 - end : 500 - start] for start, end in minus] + [genome[start:end] for start, end in plus]
    with torch.no_grad():
        logits = [classify(model, torch.from_numpy(encode(s))[None], torch.tensor([len(s)])) for s in texts]
    np.testing.assert_allclose(probabilities(rows), torch.cat(logits).softmax(-1), rtol=0, atol=1e-5)


def test_windows_cover_a_sequence_without_gap_or_overlap(tmp_path, model):
    (tmp_path / "in.fa").write_text(f">a\n{random_dna(250, 2)}NN\n>b\nACG\n")
    rows = predicted(tmp_path, "out.csv", "--input", tmp_path / "in.fa", "--window", 100)
    intervals = [(row["name"], int(row["start"]), int(row["end"])) for row in rows]
    assert intervals == [("a", 0, 100), ("a", 100, 200), ("a", 200, 252), ("b", 0, 3)]
    assert [float(row["n_share"]) for row in rows] == pytest.approx([0, 0, 2 / 52, 0])


def test_sequences_are_held_in_blocks():
    queries = [NamedSequence("", "", 0, 30_000_000, False, np.zeros(30_000_000, np.uint8)) for _ in range(5)]
    assert [len(block) for block in in_blocks(iter(queries))] == [3, 2]


@pytest.mark.parametrize(
    ("content", "name", "flags", "message"),
    [
        (">a\nACGT\n", "in.fa", ["--out", "x.xlsx"], "unknown kind of table '.xlsx'"),
        (">a\nACGT\n", "in.fa", ["--window", "0"], "--window: 0 is below 1"),
        (">a\nACGT\n", "in.fa", ["--out", "taken.csv"], "taken.csv: exists already"),
        (">a\nACGT\n", "in.fa", ["--checkpoint", "lm"], "lm: a language model without classes"),
        (">a\nACGT\n", "in.fa", ["--checkpoint", "nowhere"], "nowhere: no such folder"),
        ("words\n", "in.doc", [], "in.doc, line 1: no FASTA header"),
        (">a\n>b\nACGT\n", "in.fa", [], "record 'a', line 1: the sequence is empty"),
        ("chr1\t0\t9\n", "in.bed", [], "in.bed: a BED file needs its genome"),
        ("chr1\t0\t9\n", "in.bed", ["--genome", "genome.fa"], "chr1:0-9 ends beyond the contig"),
        ("text,class\nACGT,1\nAXGU!\n", "in.csv", ["--sequence_column", "text"], "in.csv, line 3: 1 columns"),
        ("text\nACGT\nACG!\n", "in.csv", [], "in.csv, line 3: '!' at position 4"),
        ("a,b\n1,2\n", "in.csv", [], "in.csv: no sequence column sequence or seq among a, b"),
        ("sequence\n", "in.csv", [], "in.csv: no sequences"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, model, capsys, monkeypatch, content, name, flags, message):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(LanguageModel(TINY), tmp_path / "lm", {})
    (tmp_path / "taken.csv").write_text("mine")
    (tmp_path / "genome.fa").write_text(">chr1\nACGT\n")
    (tmp_path / name).write_text(content)
    before = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--checkpoint", "model", "--input", name, "--out", "out.csv", *flags]
    assert cli.run(predict.main, arguments) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error
    after = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("genome.fa."))
    assert after == before and (tmp_path / "taken.csv").read_text() == "mine"


def test_overwriting_takes_a_flag(tmp_path, model):
    (tmp_path / "in.fa").write_text(">a\nACGT\n")
    (tmp_path / "out.csv").write_text("old")
    assert len(predicted(tmp_path, "out.csv", "--input", tmp_path / "in.fa", "--overwrite")) == 1


def test_cards_of_all_kinds(tmp_path, model, capsys):
    assert cli.run(info.main, [str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    for text in (
        "multiclass classifier, task species",
        "3: ape, fly, worm",
        "mean state, mean of both strands",
        "mcc 0.5000",
    ):
        assert text in shown
    source = [{"path": "/data/hg38.fa", "size": 1, "mtime_ns": 1, "sha256": "ab" * 32}]
    provenance = {
        "settings": {"length": 8192, "batch_tokens": 262_144, "learning_rate": 0.008, "validation": ["chr20"]},
        "genomes": [{"name": "", "source": source, "fingerprint": "cd" * 32, "weight": 1.0}],
        "splits": "ef" * 32,
        "step": 1000,
        "metrics": {"validation_bits_per_base": 1.9},
        "command": ["python", "-m", "dnamamba.pretrain", "--genome", "hg38.fa"],
        "git_commit": "b0b0",
    }
    save_checkpoint(LanguageModel(TINY), tmp_path / "lm", provenance)
    assert cli.run(info.main, [str(tmp_path / "lm")]) == 0
    shown = capsys.readouterr().out
    for text in (
        "language model",
        "/data/hg38.fa (sha256 abababababababab…)",
        "validation  chr20",
        "at length 8,192, 1,000 steps, 262.14 Mbases, learning rate 0.008",
        "validation_bits_per_base 1.9",
        "python -m dnamamba.pretrain --genome hg38.fa",
        "commit  b0b0",
    ):
        assert text in shown, text
    assert cli.run(info.main, [str(tmp_path / "lm"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["step"] == 1000
    assert cli.run(info.main, [str(tmp_path / "nothing")]) == cli.USER_ERROR
    assert "no such folder" in capsys.readouterr().err
