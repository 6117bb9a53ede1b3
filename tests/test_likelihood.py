"""Per-position likelihoods: equal to the model run plainly, alike on both strands, missing where nothing is known."""

import contextlib
import gzip
import itertools
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pybigtools
import pytest
import torch
from tiny_models import random_bases, tiny_model

from dnamamba import cli, likelihood, outputs
from dnamamba.alphabet import BASES, COMPLEMENT, TOKEN_BITS, encode
from dnamamba.analysis.likelihood import contig_tracks, track_files
from dnamamba.analysis.likelihood import job as likelihood_job
from dnamamba.analysis.likelihood.compute import STRANDS, likelihood_table
from dnamamba.analysis.likelihood.strand_tiles import StrandTiling
from dnamamba.analysis.likelihood.strand_values import TRACKS
from dnamamba.formats.checkpoint import save_checkpoint, save_classifier
from dnamamba.genome.intervals import Interval
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference
from dnamamba.model.classifier import HeadConfig, SequenceClassifier
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel

DATA = os.environ.get("DNAMAMBA_TEST_DATA")
CONTEXT = 64
UNLIMITED = StrandTiling(None, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("likelihood")


@pytest.fixture(scope="module")
def checkpoint(folder):
    save_checkpoint(tiny_model(embedding=12, out_proj=24), folder / "model", {"settings": {"length": CONTEXT}})
    return folder / "model"


@pytest.fixture(scope="module")
def inference(checkpoint):
    return load_for_inference(checkpoint, "cpu", "fp32")


@pytest.fixture(scope="module")
def contigs():
    """Not in the order of their names; with N at an end and within, lower case, too short for a prediction, all N."""
    first = random_bases(500, 0)
    return {
        "chr2": f"NN{first[:200]}NNNNNNN{first[200:300].lower()}{first[300:]}",
        "chr10": random_bases(131, 1),
        "chr1": "A",
        "chr3": "NNNNN",
    }


@pytest.fixture(scope="module")
def fasta(folder, contigs):
    path = folder / "genome.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()))
    return path


@pytest.fixture(scope="module")
def store(fasta):
    return open_genome(fasta)


def whole(contigs, *names):
    return [Interval(name, 0, len(contigs[name])) for name in names or contigs]


def plain_log_p(inference, tokens):
    """(length, 4) ln p of each base given all before it, in one pass; the first is missing."""
    with torch.inference_mode():
        logits = inference.model(torch.from_numpy(tokens[None].copy())).logits[0]
    return np.concatenate((np.full((1, BASES), np.nan), torch.log_softmax(logits, -1).numpy()[:-1]))


def plain_tiles(inference, tokens, context, overlap):
    """The same from tiles, one pass a tile: a base has at most `context` bases before it, and more than `overlap`."""
    found = np.full((tokens.size, BASES), np.nan)
    for begin in range(0, tokens.size, context - overlap):
        owned = 1 if begin == 0 else overlap + 1
        tile = plain_log_p(inference, tokens[begin : begin + context + 1])
        found[begin + owned : begin + context + 1] = tile[owned:]
    return found


def plain_tracks(predict, sequence):
    """All tracks of a contig, written down as the documentation says them."""
    tokens = encode(sequence) & TOKEN_BITS
    forward, reverse = predict(tokens), predict(COMPLEMENT[tokens[::-1]])[::-1, ::-1]
    is_base = tokens < BASES
    found = {}
    for strand, log_p in (("forward", forward), ("reverse", reverse)):
        log_p = np.where(is_base[:, None], log_p, np.nan).astype(np.float64)
        p = np.exp(log_p)
        found[f"{strand}_log_likelihood"] = log_p[np.arange(tokens.size), np.minimum(tokens, 3)]
        found |= {f"{strand}_p_{letter}": p[:, base] for base, letter in enumerate("ACGT")}
        found[f"{strand}_entropy"] = -(p * log_p).sum(1)
    return found | {f"mean_{t}": (found[f"forward_{t}"] + found[f"reverse_{t}"]) / 2 for t in TRACKS}


def assert_tracks(table, expected):
    assert table.columns == ["contig", "position", "ref", *(f"{s}_{t}" for s in STRANDS for t in TRACKS)]
    for name in expected:
        found = table[name].fill_null(math.nan).to_numpy()
        np.testing.assert_allclose(found, expected[name], atol=2e-5, err_msg=name)  # NaN where NaN is


@pytest.mark.parametrize("batch_tokens", [6, 14, 101, 100_000])
def test_streamed_in_chunks_equals_the_whole_contig(inference, store, contigs, batch_tokens):
    table = likelihood_table(inference, store, whole(contigs), UNLIMITED, batch_tokens=batch_tokens)
    assert table.height == store.bases
    for name, sequence in contigs.items():
        of_contig = table.filter(pl.col("contig") == name)
        assert "".join(of_contig["ref"]) == sequence.upper()
        assert_tracks(of_contig, plain_tracks(lambda tokens: plain_log_p(inference, tokens), sequence))


@pytest.mark.parametrize(("context", "overlap"), [(64, 32), (64, 0), (50, 45), (7, 3), (1, 0), (1000, 500)])
@pytest.mark.parametrize("batch_tokens", [40, 5000])
def test_tiles(inference, store, contigs, context, overlap, batch_tokens):
    for name in ("chr2", "chr10"):
        tiling = StrandTiling(context, overlap)
        table = likelihood_table(inference, store, whole(contigs, name), tiling, batch_tokens=batch_tokens)
        expected = plain_tracks(lambda tokens: plain_tiles(inference, tokens, context, overlap), contigs[name])
        assert_tracks(table, expected)


def test_missing_is_missing_and_nothing_else_is(inference, store, contigs):
    table = likelihood_table(inference, store, whole(contigs, "chr2"), StrandTiling(64, 32))
    is_n = [position for position, letter in enumerate(contigs["chr2"]) if letter == "N"]
    for name in table.columns[3:]:
        ends = [] if name.startswith("forward") else [508]  # the first base of the forward strand is N
        assert table[name].is_null().arg_true().to_list() == is_n + ends
    table = likelihood_table(inference, store, whole(contigs, "chr10"), StrandTiling(64, 32))
    for name in table.columns[3:]:
        ends = {"forward": [0], "reverse": [130], "mean": [0, 130]}[name.partition("_")[0]]
        assert table[name].is_null().arg_true().to_list() == ends
    sums = sum(table[f"reverse_p_{letter}"] for letter in "ACGT").drop_nulls()
    np.testing.assert_allclose(sums.to_numpy(), 1, atol=1e-6)
    assert table["mean_entropy"].drop_nulls().is_between(0, math.log(4)).all()


@pytest.mark.parametrize("tiling", [UNLIMITED, StrandTiling(64, 32), StrandTiling(30, 0)])
@pytest.mark.parametrize("batch_tokens", [70, 5000])
def test_regions_do_not_change_the_values(inference, store, contigs, tiling, batch_tokens):
    all_of_it = likelihood_table(inference, store, whole(contigs), tiling)
    intervals = [Interval("chr2", *p) for p in ((420, 421), (0, 1), (3, 9), (31, 33), (90, 97), (95, 100), (500, 509))]
    intervals += [Interval("chr10", 0, 1), Interval("chr10", 130, 131), Interval("chr1", 0, 1), Interval("chr3", 1, 3)]
    table = likelihood_table(inference, store, intervals, tiling, batch_tokens=batch_tokens)
    expected = pl.concat(
        all_of_it.filter((pl.col("contig") == name) & pl.col("position").is_between(start, end, closed="left"))
        for name, start, end in [
            *(("chr2", *p) for p in ((0, 1), (3, 9), (31, 33), (90, 100), (420, 421), (500, 509))),
            *(("chr10", 0, 1), ("chr10", 130, 131), ("chr1", 0, 1), ("chr3", 1, 3)),
        ]
    )
    assert table[["contig", "position", "ref"]].equals(expected[["contig", "position", "ref"]])
    assert_tracks(table, {name: expected[name].fill_null(math.nan).to_numpy() for name in table.columns[3:]})


def test_the_reverse_complement_swaps_the_strands(inference, store, contigs, tmp_path):
    complement = "".join(reversed(contigs["chr10"].translate(str.maketrans("ACGT", "TGCA"))))
    (tmp_path / "complement.fa").write_text(f">chr10\n{complement}\n")
    where, tiling = whole(contigs, "chr10"), StrandTiling(40, 20)
    here = likelihood_table(inference, store, where, tiling)
    there = likelihood_table(inference, open_genome(tmp_path / "complement.fa"), where, tiling).reverse()
    letters = {"p_A": "p_T", "p_C": "p_G", "p_G": "p_C", "p_T": "p_A"}
    swapped = {
        f"{strand}_{track}": there[f"{other}_{letters.get(track, track)}"].fill_null(math.nan).to_numpy()
        for strand, other in (("forward", "reverse"), ("reverse", "forward"), ("mean", "mean"))
        for track in TRACKS
    }
    assert_tracks(here, swapped)


def test_context_matters(inference, store, contigs):
    """Or the tests above would say little."""
    tables = [
        likelihood_table(inference, store, whole(contigs, "chr2"), tiling)
        for tiling in (UNLIMITED, StrandTiling(64, 32), StrandTiling(7, 3))
    ]
    for here, there in itertools.pairwise(tables):
        assert (here["forward_log_likelihood"] - there["forward_log_likelihood"]).abs().max() > 0.01


def test_every_base_is_described_once_and_with_enough_context():
    rng = np.random.default_rng(5)
    length = 509
    for _ in range(300):
        context = int(rng.integers(1, 90))
        overlap = int(rng.integers(0, context))
        cuts = np.sort(rng.choice(length + 1, 2 * int(rng.integers(1, 5)), replace=False)).reshape(-1, 2)
        for reverse in (False, True):
            tiles = StrandTiling(context, overlap).tiles_of_strand(reverse, cuts, length)
            described = [base for tile in tiles for base in range(tile.first, tile.end)]
            assert len(set(described)) == len(described)
            in_contig = {length - 1 - base if reverse else base for base in described}
            wanted = {base for start, end in cuts.tolist() for base in range(start, end)}
            assert wanted - in_contig <= {length - 1 if reverse else 0}  # nothing predicts a strand's first base
            for tile in tiles:
                assert tile.start < tile.first < tile.end <= tile.start + context + 1
                assert tile.start == 0 or tile.first - tile.start > overlap


def test_tiles_without_wanted_bases_are_not_read():
    tiling = StrandTiling(100, 50)
    pairs = np.array([[10, 12], [9_000, 9_010]])
    assert tiling.tiles_of_strand(False, pairs, 10_000) == [
        (False, 0, 10, 12),
        (False, 8900, 9000, 9001),
        (False, 8950, 9001, 9010),
    ]
    assert sum(tile.end - tile.start for tile in tiling.tiles_of_strand(True, pairs, 10_000)) <= 300


def run(folder, checkpoint, fasta, *flags):
    line = ["--checkpoint", checkpoint, "--genome", fasta, "--out", folder / "out", "--accelerator", "cpu", *flags]
    return cli.run(likelihood.main, [str(word) for word in line])


def test_outputs_may_lie_in_folders_of_any_name(checkpoint, fasta, tmp_path):
    """polars joins a Parquet file from its parts, and took brackets in their folder for a pattern."""
    folder = tmp_path / "a[1]*?"
    folder.mkdir()
    assert run(folder, checkpoint, fasta, "--format", "parquet", "--region", "chr10") == 0
    with (folder / "out.parquet").open("rb") as file:
        assert pl.read_parquet(file)["position"].to_list() == list(range(131))


def test_contigs_of_any_name_stay_in_the_folder_that_an_npz_is_unpacked_into(checkpoint, tmp_path, contigs):
    names = ["../../x", "..", ".", "/etc", "a/b", "a%2Fb", "c\\d", "HLA-A*01:01"]
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{contigs['chr10']}\n" for name in names))
    assert run(tmp_path, checkpoint, tmp_path / "g.fa", "--format", "npz", "--contigs", *names) == 0
    archive = zipfile.ZipFile(tmp_path / "out.npz")
    folders = dict.fromkeys(name.partition("/")[0] for name in archive.namelist())
    assert sorted(folders) == sorted(
        ["..%2F..%2Fx", "%2E%2E", "%2E", "%2Fetc", "a%2Fb", "a%252Fb", "c%5Cd", "HLA-A*01:01"]
    )
    assert {name.count("/") for name in archive.namelist()} == {1}
    archive.extractall(tmp_path / "unpacked")
    assert sorted(path.name for path in (tmp_path / "unpacked").iterdir()) == sorted(folders)
    archive.close()


def test_all_formats_say_the_same(inference, checkpoint, fasta, store, contigs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(contig_tracks, "BLOCK", 100)  # as chromosomes are: read back in many blocks
    assert run(tmp_path, checkpoint, fasta, "--format", "bigwig,parquet", "bedgraph,npz", "--contigs", "*") == 0
    files = [f"out.{s}_{t}.{end}" for s in STRANDS for t in TRACKS for end in ("bw", "bedgraph.gz")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, "out.npz", "out.parquet", "out.json"])

    table = pl.read_parquet(tmp_path / "out.parquet")
    expected = likelihood_table(inference, store, whole(contigs), StrandTiling(CONTEXT, CONTEXT // 2))
    names = sorted(contigs)
    for name in names:
        same = expected.filter(pl.col("contig") == name)
        found = table.filter(pl.col("contig") == name)
        assert found[["position", "ref"]].equals(same[["position", "ref"]])
        assert_tracks(found, {column: same[column].fill_null(math.nan).to_numpy() for column in same.columns[3:]})
    assert table["contig"].unique(maintain_order=True).to_list() == names

    archive = np.load(tmp_path / "out.npz")
    for strand in STRANDS:
        for track in TRACKS:
            bigwig = pybigtools.open(str(tmp_path / f"out.{strand}_{track}.bw"))
            assert bigwig.chroms() == {name: len(contigs[name]) for name in names}
            with gzip.open(tmp_path / f"out.{strand}_{track}.bedgraph.gz", "rt") as text:
                lines = [line.split() for line in text]
            for name in names:
                length = len(contigs[name])
                values = table.filter(pl.col("contig") == name)[f"{strand}_{track}"].fill_null(math.nan).to_numpy()
                np.testing.assert_array_equal(archive[f"{name}/{strand}_{track}"], values)
                read = bigwig.values(name, 0, length, fillna=math.nan)
                np.testing.assert_array_equal(read.astype(np.float32), values)
                spread = np.full(length, math.nan)
                for _, start, end, value in (line for line in lines if line[0] == name):
                    assert np.isnan(spread[int(start) : int(end)]).all()
                    spread[int(start) : int(end)] = float(value)
                np.testing.assert_allclose(spread, values, atol=6e-6)
    assert archive["chr2/start"].tolist() == [0] and archive["chr2/end"].tolist() == [509]
    assert (archive["chr2/tokens"] == encode(contigs["chr2"]) & TOKEN_BITS).all()

    there = table["forward_log_likelihood"].drop_nulls()
    bits = -there.cast(pl.Float64).mean() / math.log(2)
    assert f"bits/base  forward {bits:.4f}, reverse " in capsys.readouterr().out
    card = json.loads((tmp_path / "out.json").read_text())
    assert card["bases"]["forward"] == there.len() and card["bits_per_base"]["forward"] == pytest.approx(bits, abs=1e-5)


def test_some_tracks_of_some_regions(checkpoint, fasta, tmp_path):
    (tmp_path / "some.bed").write_text("chr2\t10\t20\nchr2\t15\t30\nchr10\t0\t5\n")
    flags = ["--format", "npz", "--tracks", "entropy,log_likelihood", "--strands", "reverse", "--context", "unlimited"]
    assert run(tmp_path, checkpoint, fasta, *flags, "--regions", tmp_path / "some.bed") == 0
    archive = np.load(tmp_path / "out.npz")
    members = ("start", "end", "tokens", "reverse_log_likelihood", "reverse_entropy")
    assert {*archive} == {f"{name}/{member}" for name in ("chr2", "chr10") for member in members}
    assert archive["chr2/start"].tolist() == [10] and archive["chr2/end"].tolist() == [30]
    assert archive["chr10/reverse_entropy"].shape == (5,)
    assert run(tmp_path, checkpoint, fasta, *flags, "--region", "chr2:11-30") == cli.USER_ERROR  # exists
    assert run(tmp_path, checkpoint, fasta, *flags, "--region", "chr2:11-30", "--overwrite") == 0
    again = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(again["chr2/reverse_entropy"], archive["chr2/reverse_entropy"], atol=1e-5)


def test_equal_neighbours_share_a_line_of_bedgraph(tmp_path):
    values = np.array([[0.25, 0.25, 0.250001, np.nan, 0.25, 0.5]], np.float32)
    tokens, pairs = np.zeros(9, np.uint8), np.array([[0, 1], [2, 7]])
    with contig_tracks.ContigTracks("c", tokens, pairs, ["forward"], ["entropy"], tmp_path) as tracks:
        tracks.put("forward", 2, values[:, 1:])
        tracks.put("forward", 0, values[:, :1])
        tracks.assert_complete()
        with track_files.open_bedgraph(tmp_path / "x.gz", contig_tracks.Column("forward", "entropy")) as write:
            write(tracks)
    with gzip.open(tmp_path / "x.gz", "rt") as text:
        assert text.read() == "c\t0\t1\t0.25\nc\t2\t4\t0.25\nc\t5\t6\t0.25\nc\t6\t7\t0.5\n"


@pytest.mark.parametrize("name", ['ctg"1"', "it's;2", "a,b|c=d", "track_1", "gène"])
def test_names_of_contigs_stand_in_bedgraph_as_they_are(tmp_path, name):
    with contig_tracks.ContigTracks(
        name, np.zeros(2, np.uint8), np.array([[0, 2]]), ["forward"], ["entropy"], tmp_path
    ) as tracks:
        tracks.put("forward", 0, np.full((1, 2), 0.5, np.float32))
        with track_files.open_bedgraph(tmp_path / "x.gz", contig_tracks.Column("forward", "entropy")) as write:
            write(tracks)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()).decode() == f"{name}\t0\t2\t0.5\n"


def test_all_formats_at_once_on_many_bases(tmp_path):
    """Each in its thread, two of them with polars, whose own threads must not wait for ours: this has hung."""
    bases = 1_300_000  # more than a block
    values = np.random.default_rng(0).random((2, bases)).astype(np.float32)
    columns = [contig_tracks.Column(strand, "entropy") for strand in STRANDS]
    with contig_tracks.ContigTracks(
        "c", np.zeros(bases, np.uint8), np.array([[0, bases]]), ["forward", "reverse"], ["entropy"], tmp_path
    ) as tracks:
        tracks.put("forward", 0, values[:1])
        tracks.put("reverse", 0, values[1:])
        with contextlib.ExitStack() as stack:
            files = track_files.open_files(tmp_path / "x", likelihood_job.FORMATS, columns, {"c": bases})
            likelihood_job._write_all(tracks, [stack.enter_context(open_it(path)) for path, open_it in files])
    assert len(list(tmp_path.iterdir())) == len(files) == 8
    table = pl.read_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(table["mean_entropy"].to_numpy(), values.mean(0))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("method", ["put", "values"])
def test_failure_leaves_no_files(checkpoint, fasta, tmp_path, monkeypatch, failure, method):
    (tmp_path / "out.npz").write_text("old")
    calls = 0

    def fail(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise failure
        return original(self, *arguments)

    original = getattr(contig_tracks.ContigTracks, method)
    monkeypatch.setattr(contig_tracks.ContigTracks, method, fail)
    code = run(tmp_path, checkpoint, fasta, "--format", "npz,parquet,bigwig,bedgraph", "--overwrite")
    assert code == (cli.INTERRUPTED if failure is KeyboardInterrupt else cli.USER_ERROR)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    assert (tmp_path / "out.npz").read_text() == "old"


@pytest.fixture(scope="module")
def bad(folder, checkpoint):
    """Files that are no good."""
    files = {
        "empty.fa": "",
        "protein.fa": ">p\nMKLV!\n",
        "empty.bed": "# nothing\n",
        "far.bed": "chr2\t1\t9999\n",
        "start_after_end.bed": "chr2\t9\t3\n",
        "other.bed": "77\t1\t3\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "binary.bed").write_bytes(b"\xff\xfe\x00")
    model = LanguageModel(preset("demo", n_layer=1, d_model=8, d_state=2))
    save_checkpoint(model, folder / "no_length", {})
    save_checkpoint(model, folder / "alphabet", {})
    (folder / "alphabet" / "tokens.json").write_text(json.dumps({"A": 0}))
    save_classifier(SequenceClassifier(model.config, HeadConfig("multiclass", ("a", "b"))), folder / "classifier", {})
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--format bigwigs", "--format: unknown 'bigwigs', expected one or several of bigwig, bedgraph, parquet, npz"),
        ("--format ,", "--format: expected one or several of bigwig"),
        ("--tracks p_U", "--tracks: unknown 'p_U', expected one or several of log_likelihood"),
        ("--strands both", "--strands: unknown 'both'"),
        ("--context 0", "--context: 0 is not possible"),
        ("--context all", "--context: expected"),
        ("--context 64 --overlap 64", "--overlap: 64 is not possible, expected 0 to 63"),
        ("--overlap -1", "--overlap: -1 is not possible"),
        ("--context unlimited --overlap 3", "--overlap: whole contigs are read with --context unlimited"),
        ("--batch_tokens 0", "--batch_tokens: 0 is below 1"),
        ("--region chr2:0-10", "--region: chr2:0-10: bases are counted from 1"),
        ("--region chr2:1-510", "--region: chr2:1-510 reaches beyond the contig, which has 509 bases"),
        ("--region 77:1-5", "no contig '77'; the contigs are chr"),
        ("--region chr2:1-2", "nothing to compute: the chosen regions have no base but N and contigs' ends"),
        ("--region chr10:1-1", "nothing to compute"),
        ("--region chr2:1-5 --regions DIR/empty.bed", "--region and --regions both say where"),
        ("--regions DIR/empty.bed", "DIR/empty.bed: no intervals"),
        ("--regions DIR/far.bed", "DIR/far.bed, line 1: chr2:1-9999 ends beyond the contig"),
        ("--regions DIR/start_after_end.bed", "DIR/start_after_end.bed, line 1: chr2:9-3 must have start < end"),
        ("--regions DIR/other.bed", "DIR/other.bed, line 1: the genome has no contig '77'; the contigs are chr"),
        ("--regions DIR/binary.bed", "DIR/binary.bed: text in UTF-16; expected BED in UTF-8"),
        ("--regions DIR/absent.bed", "DIR/absent.bed: no such file; expected BED"),
        ("--contigs chrX", "no contig of DIR/genome.fa.dnamamba matches 'chrX'"),
        ("--genome DIR/empty.fa", "DIR/empty.fa: "),
        ("--genome DIR/protein.fa", "DIR/protein.fa"),
        ("--genome DIR/absent.fa", "DIR/absent.fa: no such file"),
        ("--checkpoint DIR/no_length", "DIR/no_length: does not say what length it was trained at; give --context"),
        ("--checkpoint DIR/alphabet", "DIR/alphabet/tokens.json: another alphabet"),
        ("--checkpoint DIR/classifier", "DIR/classifier: a fine-tuned classifier"),
        ("--checkpoint DIR/absent", "DIR/absent: no such folder"),
        ("--out DIR/absent/x", "there is no folder DIR/absent"),
        ("--out DIR/taken", "DIR/taken.forward_log_likelihood.bw: exists already"),
        ("--out .", "--out: . is no beginning of a file's name"),
        ("--accelerator gpu", "--accelerator gpu: "),
        ("--regiones x", "unknown flag --regiones; did you mean --regions"),
    ],
)
def test_bad_input_is_reported_in_one_line(bad, tmp_path, checkpoint, fasta, capsys, flags, message):
    if "gpu" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (bad / "taken.forward_log_likelihood.bw").write_text("mine")
    here = str(bad)
    assert run(tmp_path, checkpoint, fasta, *flags.replace("DIR", here).split()) == cli.USER_ERROR
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message.replace("DIR", here) in errors[0]
    assert not any(tmp_path.iterdir())
    assert (bad / "taken.forward_log_likelihood.bw").read_text() == "mine"


def test_missing_library_is_reported_before_the_work(checkpoint, fasta, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    assert run(tmp_path, checkpoint, fasta, "--format", "bigwig,bedgraph") == cli.USER_ERROR
    assert "--format bedgraph: needs polars, which is not installed" in capsys.readouterr().err


def test_the_mean_alone(inference, store):
    where, tiling = [Interval("chr10", 50, 60)], StrandTiling(64, 32)
    alone = likelihood_table(inference, store, where, tiling, strands=["mean"], tracks=["p_G"])
    assert alone.columns == ["contig", "position", "ref", "mean_p_G"]
    assert alone.equals(likelihood_table(inference, store, where, tiling).select(alone.columns))


@pytest.mark.skipif(not DATA, reason="real data: set DNAMAMBA_TEST_DATA")
def test_the_edge_of_an_assembly_gap_of_chromosome_20(checkpoint, tmp_path):
    fasta, store = Path(DATA or "", "genomes", "human_chr20_GRCh37.fa.gz"), tmp_path / "chr20.dnamamba"
    region = ["--region", "20:59,901-60,100", "--store", store, "--context", "1024"]
    assert run(tmp_path, checkpoint, fasta, *region) == 0
    for strand in STRANDS:
        track = pybigtools.open(str(tmp_path / f"out.{strand}_log_likelihood.bw"))
        values = track.values("20", 59_900, 60_100, fillna=math.nan)
        assert np.isnan(values[:100]).all() and (values[100:] < 0).all()


@pytest.mark.gpu
def test_the_gpu_gives_the_same(checkpoint, fasta, store, contigs):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.05)):
        inference = load_for_inference(checkpoint, "gpu", precision)
        reference = load_for_inference(checkpoint, "cpu", "fp32")
        for tiling in (UNLIMITED, StrandTiling(64, 32)):
            found = likelihood_table(inference, store, whole(contigs), tiling, batch_tokens=128)
            expected = likelihood_table(reference, store, whole(contigs), tiling)
            for name in (name for name in found.columns if "_p_" in name):
                assert (found[name].is_null() == expected[name].is_null()).all()
                assert (found[name] - expected[name]).abs().max() < tolerance
