"""Inputs of sequences through pipes: the same output as of the file, or one line; never a wait for ever."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

import dnamamba
from dnamamba import cli, embed, generate, likelihood, pretrain
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome.indexed import open_for
from dnamamba.genome.species_table import read_species
from dnamamba.genome.store import TokenStore, open_genome
from dnamamba.training.mixture_file import read_mixture

pytestmark = pytest.mark.timeout(60)
LETTERS = np.frombuffer(b"ACGT", np.uint8)
FASTA = b"".join(
    b">%s of a test\n%s\n" % (name, LETTERS[np.random.default_rng(size).integers(4, size=size)].tobytes())
    for name, size in ((b"chr1", 3000), (b"chr2", 700))
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipes") / "checkpoint"
    save_checkpoint(tiny_model(), folder, {"settings": {"length": 64}})
    return folder


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "g.fa"
    path.write_bytes(FASTA)
    return path


@pytest.fixture
def pipe(tmp_path):
    """A FIFO through which the FASTA comes once."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(FASTA,), daemon=True).start()
    return path


def test_a_genome(pipe, fasta, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = open_for([pipe], None, lambda genome: 1)
    assert isinstance(store, TokenStore) and store.fingerprint == open_genome(fasta).fingerprint
    again = open_genome(pipe)
    assert again.path == store.path and again.tokens.tobytes() == store.tokens.tobytes()
    assert not (tmp_path / "cache").exists() and pipe.parent not in store.path.parents
    kept = open_genome(pipe, tmp_path / "kept.dnamamba")
    assert kept.fingerprint == store.fingerprint and kept.source[0]["size"] == len(FASTA)
    assert dnamamba.Genome(pipe)["chr2", 1:5] == FASTA.splitlines()[-1].decode()[1:5]


VERBS = {
    "likelihood": (likelihood, ["--genome", "{}", "--format", "npz", "--out", "{out}"]),
    "likelihood of a region": (
        likelihood,
        ["--genome", "{}", "--region", "chr2:1-300", "--format", "npz", "--out", "{out}"],
    ),
    "embed": (embed, ["--input", "{}", "--out", "{out}.npz"]),
    "generate": (generate, ["--prompts", "{}", "--length", "5", "--out", "{out}.fa"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs(verb, checkpoint, pipe, fasta, tmp_path):
    module, flags = VERBS[verb]
    results = []
    for number, source in enumerate((fasta, pipe)):
        given = [flag.format(source, out=tmp_path / f"out{number}") for flag in flags]
        assert cli.run(module.main, ["--checkpoint", str(checkpoint), *given, "--accelerator", "cpu"]) == 0
        (out,) = (path for path in tmp_path.glob(f"out{number}*") if path.suffix != ".json")
        results.append(out)
    if results[0].suffix == ".npz":
        expected, found = (dict(np.load(path)) for path in results)
        assert expected.keys() == found.keys()
        assert all(
            np.array_equal(expected[name], found[name], equal_nan=expected[name].dtype.kind == "f") for name in found
        )
    else:
        assert results[0].read_bytes() == results[1].read_bytes()


def test_training(pipe, tmp_path):
    size = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--markov_order", "1"]
    flags = [*size, "--length", "128", "--batch_tokens", "128", "--max_steps", "1", "--accelerator", "cpu"]
    assert cli.run(pretrain.main, ["--genome", str(pipe), *flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "given", ["<(gzip -c {})", "/dev/stdin < {}", "/dev/stdin <<< $(cat {})", "<(cat {}; sleep 1)"]
)
def test_a_shells_pipes(given, fasta):
    code = "import sys, dnamamba; print(dnamamba.Genome(sys.argv[1])['chr2', 690:])"
    command = f'{sys.executable} -c "{code}" {given.format(fasta)}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == FASTA.decode().strip()[-10:]


@pytest.mark.parametrize("given", ["<(true)", "/dev/null", "<(head -c 100 /dev/urandom)", "/dev/zero", "/dev/fd/77"])
def test_a_shells_bad_pipes(given):
    code = "import sys; from dnamamba import Genome, cli; sys.exit(cli.run(lambda _: Genome(sys.argv[1])))"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}' {given}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: /dev/") and "None" not in done.stderr


def test_names_within_what_a_pipe_gives_are_relative_to_the_current_folder(fasta, tmp_path, monkeypatch):
    """Its own folder is /dev/fd."""
    monkeypatch.chdir(tmp_path)
    for name, text, read in (
        ("species", "name\tfasta\none\tg.fa\ntwo\tg.fa\n", lambda path: [s.fasta[0] for s in read_species(path)]),
        (
            "mixture",
            "one: {genome: g.fa}\ntwo: {genome: g.fa}\n",
            lambda path: [g.genome[0] for g in read_mixture(path)],
        ),
    ):
        os.makedirs("elsewhere", exist_ok=True)
        path = tmp_path / "elsewhere" / name
        os.mkfifo(path)
        threading.Thread(target=path.write_text, args=(text,), daemon=True).start()
        assert [os.path.samefile(found, fasta) for found in read(path)] == [True, True]
