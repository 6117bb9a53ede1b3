"""Saturation mutagenesis: equal to whole sequences computed plainly and to `score`, in every file, and drawn."""

from dataclasses import replace

import numpy as np
import polars
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from tiny_models import random_bases, tiny_model

from dnamamba import cli, mutagenesis, score
from dnamamba.alphabet import COMPLEMENT, TOKEN_BITS, encode
from dnamamba.analysis.variants.mutagenesis import saturate
from dnamamba.analysis.variants.scores import ScorePlan
from dnamamba.analysis.variants.tiles import Tiling
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.pictures.mutagenesis import LETTERS_UP_TO, importance, plot_mutagenesis

SUFFIX = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutagenesis")


@pytest.fixture(scope="module")
def checkpoint(folder):
    model = tiny_model()
    save_checkpoint(model, folder / "model", {"settings": {"length": 400}})
    save_checkpoint(model, folder / "no_length", {})
    save_classifier(SequenceClassifier(model.config, HeadConfig("multiclass", ("a", "b"))), folder / "classifier", {})
    return folder / "model"


@pytest.fixture(scope="module")
def inference(checkpoint):
    return load_for_inference(checkpoint, "cpu", "fp32")


@pytest.fixture(scope="module")
def sequence():
    return random_bases(30, 0) + "NN" + random_bases(88, 1).lower()


@pytest.fixture(scope="module")
def fasta(folder, sequence):
    path = folder / "genome.fa"
    path.write_text(f">chr0\n{random_bases(70, 4)}\n>chr1\n{sequence}\n")
    return path


@pytest.fixture(scope="module")
def store(fasta):
    return open_genome(fasta)


def plain_scores(inference, tokens, position):
    """ln p over the base at `position` and SUFFIX bases after it, for the four bases there, minus the reference's."""
    rows = np.repeat(tokens[None], 4, 0)
    rows[:, position] = range(4)
    with torch.inference_mode():
        log_p = torch.log_softmax(inference.model(torch.from_numpy(rows)).logits.double(), -1).numpy()[:, :-1]
    log_likelihood = np.take_along_axis(log_p, np.minimum(rows[:, 1:], 3).astype(int)[..., None], -1)[..., 0]
    log_likelihood[rows[:, 1:] > 3] = 0
    sums = log_likelihood[:, position - 1 : position + SUFFIX].sum(1)
    return sums - sums[tokens[position]]


def plain_matrix(inference, tokens):
    found = np.full((tokens.size, 4), np.nan)
    for position in range(1, tokens.size):
        if tokens[position] < 4:
            found[position] = plain_scores(inference, tokens, position)
    return found


PLAN = ScorePlan(Tiling(400, SUFFIX), 16, 1000)


def test_equal_to_whole_sequences(inference, store, sequence):
    tokens = encode(sequence) & TOKEN_BITS
    forward = plain_matrix(inference, tokens)
    reverse = plain_matrix(inference, COMPLEMENT[tokens[::-1]])[::-1, ::-1]
    found = saturate(inference, store, Interval("chr1", 0, 120), PLAN)
    np.testing.assert_allclose(found.llr_forward, forward, atol=5e-5)
    np.testing.assert_allclose(found.llr_reverse, reverse, atol=5e-5)
    np.testing.assert_allclose(found.llr, (forward + reverse) / 2, atol=5e-5)
    missing = np.flatnonzero(np.isnan(found.llr).any(1))
    assert missing.tolist() == [0, 30, 31, 119]  # N, and where a strand begins
    assert np.isnan(found.llr[missing]).all()
    assert np.nanmax(np.abs(found.llr)) > 0.5  # the changes do matter to this model


def test_regions_batches_and_states_change_nothing(inference, store):
    whole = saturate(inference, store, Interval("chr1", 0, 120), PLAN)
    for plan in (replace(PLAN, batch_tokens=1), replace(PLAN, state_every=7), replace(PLAN, check=5)):
        part = saturate(inference, store, Interval("chr1", 25, 60), plan)
        np.testing.assert_allclose(part.llr, whole.llr[25:60], atol=5e-5)


def run(checkpoint, fasta, out, *flags):
    line = ["--checkpoint", checkpoint, "--genome", fasta, "--region", "chr1:26-60", "--out", out, "--accelerator=cpu"]
    return cli.run(mutagenesis.main, [str(word) for word in (*line, "--suffix", SUFFIX, *flags)])


def test_files_and_score(checkpoint, fasta, inference, store, sequence, tmp_path, capsys):
    assert run(checkpoint, fasta, tmp_path / "out", "--format", "parquet,npz", "tsv", "png") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.json",
        "out.npz",
        "out.parquet",
        "out.png",
        "out.tsv",
    ]
    assert "35 bases" in capsys.readouterr().out
    expected = saturate(inference, store, Interval("chr1", 25, 60), PLAN)
    archive = np.load(tmp_path / "out.npz")
    assert (str(archive["contig"]), int(archive["start"])) == ("chr1", 25)
    assert str(archive["sequence"]) == sequence[25:60].upper()
    table, text = polars.read_parquet(tmp_path / "out.parquet"), polars.read_csv(tmp_path / "out.tsv", separator="\t")
    assert table["position"].to_list() == [*range(25, 60)]
    assert "".join(table["ref"]) == sequence[25:60].upper()
    for name in ("llr", "llr_forward", "llr_reverse"):
        np.testing.assert_allclose(archive[name], getattr(expected, name), atol=5e-5)
        for base, letter in enumerate("ACGT"):
            column = table[f"{name}_{letter}"]
            assert column.null_count() == 2
            np.testing.assert_array_equal(column.to_numpy(), archive[name][:, base])
            np.testing.assert_allclose(text[f"{name}_{letter}"].to_numpy(), archive[name][:, base], rtol=1e-6)
    picture = imread(tmp_path / "out.png")
    assert picture.ndim == 3 and picture.std() > 0.05

    # The same changes as a VCF, scored by `score`.
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for position in (25, 33, 59):
        ref = sequence[position].upper()
        lines.append(f"chr1\t{position + 1}\t.\t{ref}\t{','.join(sorted(set('ACGT') - {ref}))}\t.\t.\t.")
    (tmp_path / "same.vcf").write_text("\n".join(lines) + "\n")
    words = ["--checkpoint", checkpoint, "--genome", fasta, "--vcf", tmp_path / "same.vcf", "--suffix", SUFFIX]
    assert cli.run(score.main, [str(word) for word in (*words, "--out", tmp_path / "same.tsv")]) == 0
    scored = polars.read_csv(tmp_path / "same.tsv", separator="\t")
    assert len(scored) == 9
    for row in scored.iter_rows(named=True):
        for name in ("llr", "llr_forward", "llr_reverse"):
            value = archive[name][row["start"] - 25, "ACGT".index(row["alt"])]
            assert row[name] == pytest.approx(value, abs=5e-5)


def test_importance_is_the_mean_loss_of_the_changes():
    llr = np.array([[0, -1, -2, -6], [1, 0, 1, 1], [np.nan] * 4])
    np.testing.assert_array_equal(importance(llr, np.array(list("ACN"))), [3, -1, np.nan])


@pytest.mark.parametrize("length", [1, LETTERS_UP_TO, LETTERS_UP_TO + 1])
@pytest.mark.parametrize("kind", ["numbers", "missing", "zero"])
def test_pictures_of_any_region(tmp_path, length, kind):
    llr = {"numbers": np.random.default_rng(1).normal(size=(length, 4)), "missing": np.full((length, 4), np.nan)}
    values = llr.get(kind, np.zeros((length, 4)))
    columns = {f"llr_{base}": pl.Series(values[:, i]).fill_nan(None) for i, base in enumerate("ACGT")}
    bases = {"contig": ["c"] * length, "position": range(5, 5 + length), "ref": list(random_bases(length, 2))}
    plot_mutagenesis(pl.DataFrame({**bases, **columns}), tmp_path / "x.png")
    assert imread(tmp_path / "x.png").shape[0] == 600


def test_failure_leaves_no_files(checkpoint, fasta, tmp_path, monkeypatch):
    def fail(self, path, **options):
        path.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", fail)
    assert run(checkpoint, fasta, tmp_path / "out", "--format", "png") == cli.INTERRUPTED
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--region chr1:100-121", "--region: chr1:100-121 reaches beyond the contig, which has 120 bases"),
        ("--region chr1:0-5", "--region: chr1:0-5: bases are counted from 1"),
        ("--region chr1:9-5", "--region: chr1:9-5: the start lies behind the end"),
        ("--region chr1:x-5", "--region: 'chr1:x-5' is no region"),
        ("--region 9:1-5", "no contig '9'; the contigs are chr0"),
        ("--genome DIR/n.fa --region chr1:5-8", "--region: chr1:5-8 holds no A, C, G or T to change"),
        ("--format pdf", "--format: unknown 'pdf', choose among parquet, npz, tsv, png"),
        ("--format ,", "--format: nothing is chosen"),
        ("--context 3", "--context: 3 is not possible, expected an even number"),
        ("--suffix 201", "--suffix: 201 is not possible, expected 0 to 200"),
        ("--suffix -1", "--suffix: -1 is not possible"),
        ("--state_every 0", "--state_every: 0 is below 1"),
        ("--batch_tokens 0", "--batch_tokens: 0 is below 1"),
        ("--check -1", "--check: -1 is below 0"),
        ("--genome DIR/absent.fa", "DIR/absent.fa: no such file"),
        ("--genome DIR/empty.fa", "DIR/empty.fa: "),
        ("--checkpoint DIR/no_length", "DIR/no_length: does not say what length it was trained at; give --context"),
        ("--checkpoint DIR/classifier", "DIR/classifier: a fine-tuned classifier"),
        ("--out DIR/absent/x", "there is no folder DIR/absent"),
        ("--out DIR/taken", "DIR/taken.png: exists already"),
    ],
)
def test_bad_input_is_reported_in_one_line(folder, checkpoint, fasta, tmp_path, capsys, flags, message):
    (folder / "empty.fa").write_text("")
    (folder / "n.fa").write_text(">chr1\nACGTNNNNACGT\n")
    (folder / "taken.png").write_text("mine")
    assert run(checkpoint, fasta, tmp_path / "out", *flags.replace("DIR", str(folder)).split()) == cli.USER_ERROR
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message.replace("DIR", str(folder)) in errors[0]
    assert not any(tmp_path.iterdir())
    assert (folder / "taken.png").read_text() == "mine"
