"""Embeddings: the model's hidden states, whatever the batch, the chunk and the other sequences are."""

import gzip

import numpy as np
import polars
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba import cli, embed, outputs
from dnamamba.alphabet import encode
from dnamamba.analysis.embedding import compute as embedding
from dnamamba.analysis.embedding import job as embed_job
from dnamamba.analysis.embedding.compute import embed_sequences
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.genome.sequences import NamedSequence, read_sequences
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference
from dnamamba.model.classifier import HeadConfig, SequenceClassifier

WIDTH = 16
COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")


def complement_of(sequence):
    return sequence.translate(COMPLEMENT)[::-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def checkpoint(folder):
    model = tiny_model(d_model=WIDTH)
    save_checkpoint(model, folder / "model", {"settings": {"length": 64}})
    save_classifier(SequenceClassifier(model.config, HeadConfig("multiclass", ("a", "b"))), folder / "classifier", {})
    return folder / "model"


@pytest.fixture(scope="module")
def inference(checkpoint):
    return load_for_inference(checkpoint, "cpu", "fp32")


@pytest.fixture(scope="module")
def genome():
    return {"chr1": random_bases(150, 0).lower() + "NNNN" + random_bases(246, 1), "chr2": random_bases(50, 2)}


@pytest.fixture(scope="module")
def fasta(folder, genome):
    path = folder / "genome.fa"
    path.write_text("".join(f">{name} words\n{sequence}\n" for name, sequence in genome.items()))
    return path


@pytest.fixture(scope="module")
def bed(folder):
    path = folder / "some.bed"
    path.write_text("# some\nchr1\t10\t70\tone\t0\t-\nchr2\t0\t50\nchr1\t140\t260\t\t0\t+\nchr1\t150\t154\tonly N\n")
    return path


def plain(inference, sequence, pool):
    """Of one sequence alone in one pass, (d_model,) or (bases, d_model)."""
    tokens = torch.from_numpy(encode(sequence.upper()))
    with torch.inference_mode():
        hidden = inference.model(tokens[None], logits=False).hidden[0].double()
    if pool == "position":
        return hidden.numpy()
    if pool == "last":
        return hidden[-1].numpy()
    return hidden[tokens < 4].mean(0).numpy() if (tokens < 4).any() else np.full(WIDTH, np.nan)


@pytest.mark.parametrize("batch_tokens", [1, 7, 130, 100_000])
@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("pool", ["mean", "last", "position"])
def test_equal_to_each_sequence_alone(inference, pool, both_strands, batch_tokens):
    sequences = [random_bases(length, length) for length in (1, 90, 3, 40, 41, 90)] + ["NACGNNT", "NN"]
    named = [NamedSequence(s, s, 0, len(s), False, encode(s)) for s in sequences]
    expected = []
    for sequence in sequences:
        one = plain(inference, sequence, pool)
        if both_strands:
            other = plain(inference, complement_of(sequence), pool)
            one = (one + (other[::-1] if pool == "position" else other)) / 2
        expected.append(one)
    expected = np.concatenate(expected) if pool == "position" else np.stack(expected)
    found = np.full(expected.shape, 7.0, np.float32)
    done = []
    embed_sequences(
        inference, named, pool, found, batch_tokens=batch_tokens, both_strands=both_strands, progress=done.append
    )
    np.testing.assert_allclose(found, expected, atol=3e-5)
    assert sum(done) == sum(map(len, sequences)) * (1 + both_strands)


def test_both_strands_are_blind_to_the_strand(inference):
    sequence = random_bases(60, 9)
    named = [NamedSequence("", "", 0, 60, reverse, encode(sequence)) for reverse in (False, True)]
    found = np.empty((2, WIDTH), np.float32)
    embed_sequences(inference, named, "mean", found, batch_tokens=1000, both_strands=True)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    embed_sequences(inference, named, "mean", found, batch_tokens=1000)
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_what_is_read(fasta, bed, genome, folder):
    store = open_genome(fasta)
    one, two, three, four = read_sequences(bed, store)
    records = list(read_sequences(fasta, None))
    assert [s.name for s in (one, two, three, four)] == ["one", "chr2:0-50", "chr1:140-260", "only N"]
    assert one.tokens().tolist() == encode(complement_of(genome["chr1"][10:70]).upper()).tolist()
    assert one.tokens(other_strand=True).tolist() == encode(genome["chr1"][10:70].upper()).tolist()
    assert three.tokens().tolist() == encode(genome["chr1"][140:260].upper()).tolist()
    assert {s.name: s.tokens().tolist() for s in records} == {
        name: encode(sequence.upper()).tolist() for name, sequence in genome.items()
    }
    (folder / "packed.fa.gz").write_bytes(gzip.compress(b">a\nAC\nGT\n>b\nA\n"))
    assert [(s.name, s.end) for s in read_sequences(folder / "packed.fa.gz", None)] == [("a", 4), ("b", 1)]


def run(checkpoint, out, *flags):
    return cli.run(
        embed.main, [str(w) for w in ("--checkpoint", checkpoint, "--out", out, "--accelerator=cpu", *flags)]
    )


def test_outputs_may_lie_in_folders_of_any_name(checkpoint, bed, fasta, tmp_path):
    """polars joins a Parquet file from its parts, and took brackets in their folder for a pattern."""
    folder = tmp_path / "a[1]*?"
    folder.mkdir()
    assert run(checkpoint, folder / "o[1].parquet", "--input", bed, "--genome", fasta) == 0
    with (folder / "o[1].parquet").open("rb") as file:
        assert polars.read_parquet(file)["name"].to_list() == ["one", "chr2:0-50", "chr1:140-260", "only N"]


@pytest.mark.parametrize("pool", ["mean", "last", "position"])
def test_files(checkpoint, inference, fasta, bed, genome, tmp_path, monkeypatch, pool):
    monkeypatch.setattr(embed_job, "PART", 37)  # several parts
    flags = ["--input", bed, fasta, "--genome", fasta, "--pool", pool]
    assert run(checkpoint, tmp_path / "out.npz", *flags) == 0
    assert run(checkpoint, tmp_path / "out.parquet", *flags) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "out.parquet"]
    first, second = genome["chr1"], genome["chr2"]
    sequences = [complement_of(first[10:70]), second, first[140:260], "NNNN", first, second]
    names = ["one", "chr2:0-50", "chr1:140-260", "only N", "chr1", "chr2"]
    expected = [plain(inference, sequence, pool) for sequence in sequences]
    expected = np.concatenate(expected) if pool == "position" else np.stack(expected)
    archive, table = np.load(tmp_path / "out.npz"), polars.read_parquet(tmp_path / "out.parquet")
    np.testing.assert_allclose(archive["embedding"], expected, atol=3e-5)
    np.testing.assert_array_equal(table["embedding"].to_numpy(), archive["embedding"])
    assert archive["name"].tolist() == names
    assert archive["strand"].tolist() == ["-", "+", "+", "+", "+", "+"]
    assert archive["start"].tolist() == [10, 0, 140, 150, 0, 0]
    assert table.schema["embedding"] == polars.Array(polars.Float32, WIDTH)
    if pool == "position":
        assert archive["offset"].tolist() == np.cumsum([0, *map(len, sequences)]).tolist()
        assert "".join(table["base"]) == "".join(sequences).upper()
        assert table["name"].to_list() == [n for n, s in zip(names, sequences, strict=True) for _ in s]
        assert table["position"].to_list()[:62] == [*range(69, 9, -1), 0, 1]
    else:
        assert table["name"].to_list() == names
        assert table["end"].to_list() == archive["end"].tolist()


def test_missing_library_is_reported_before_the_work(checkpoint, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    assert run(checkpoint, tmp_path / "out.parquet", "--input", fasta) == cli.USER_ERROR
    assert "out.parquet: needs polars, which is not installed" in capsys.readouterr().err


def test_failure_leaves_no_files(checkpoint, fasta, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "_pooled", fail)
    assert run(checkpoint, tmp_path / "out.npz", "--input", fasta) == cli.INTERRUPTED
    assert not any(tmp_path.iterdir())


def test_the_array_on_disk_takes_all_its_space_at_once(tmp_path):
    """A sparse one under a mapping would end the process by SIGBUS when the disk fills up."""
    array = embed_job._array_on_disk(tmp_path / "a.npy", (1000, 100))
    assert array.shape == (1000, 100) and array.dtype == np.float32
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--input: give FASTA files"),
        ("--input DIR/some.bed", "DIR/some.bed: a BED file needs its genome; name it with --genome"),
        ("--input DIR/far.bed --genome DIR/genome.fa", "DIR/far.bed, line 1: chr2:1-99 ends beyond the contig"),
        ("--input DIR/empty.bed --genome DIR/genome.fa", "DIR/empty.bed: no intervals"),
        ("--input DIR/absent.bed --genome DIR/genome.fa", "DIR/absent.bed: no such file; expected BED"),
        ("--input DIR/absent.fa", "DIR/absent.fa: no such file"),
        ("--input DIR/empty.fa", "DIR/empty.fa: "),
        ("--input DIR/hollow.fa", "DIR/hollow.fa, record 'b', line 3: the sequence is empty"),
        ("--input DIR/protein.fa", "DIR/protein.fa"),
        ("--input DIR/cut.fa.gz", "DIR/cut.fa.gz"),
        ("--input DIR/genome.fa --pool max", "--pool: expected one of 'mean', 'last', 'position'"),
        ("--input DIR/genome.fa --batch_tokens 0", "--batch_tokens: 0 is below 1"),
        ("--input DIR/genome.fa --out DIR/x.csv", "DIR/x.csv: unknown kind of file '.csv'; expected .parquet or .npz"),
        ("--input DIR/genome.fa --out DIR/absent/x.npz", "there is no folder DIR/absent"),
        ("--input DIR/genome.fa --out DIR/taken.npz", "DIR/taken.npz: exists already"),
        ("--input DIR/genome.fa --checkpoint DIR/classifier", "DIR/classifier: a fine-tuned classifier"),
        ("--input DIR/genome.fa --checkpoint DIR/absent", "DIR/absent: no such folder"),
    ],
)
def test_bad_input_is_reported_in_one_line(folder, checkpoint, fasta, bed, tmp_path, capsys, flags, message):
    texts = {
        "far.bed": "chr2\t1\t99\n",
        "empty.bed": "\n",
        "empty.fa": "",
        "hollow.fa": ">a\nAC\n>b\n>c\nA\n",
        "protein.fa": ">p\nMKLV!\n",
        "taken.npz": "mine",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "cut.fa.gz").write_bytes(gzip.compress(b">a\n" + b"ACGT" * 1000)[:-20])
    assert run(checkpoint, tmp_path / "out.npz", *flags.replace("DIR", str(folder)).split()) == cli.USER_ERROR
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message.replace("DIR", str(folder)) in errors[0]
    assert not any(tmp_path.iterdir())
    assert (folder / "taken.npz").read_text() == "mine"
