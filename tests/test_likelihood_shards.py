"""A genome's likelihoods by several jobs: the bytes of one job, whatever was done before."""

from pathlib import Path

import pytest
from tiny_models import random_bases, tiny_bimamba, tiny_model

from dnamamba import cli, likelihood
from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.inference.shards import Shard

SHARDS = 3


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    lengths = {"chr1": 700, "chr2": 500, "chr10": 300, "c/<5": 260, "chrN": 40}
    path.write_text("".join(f">{name}\n{random_bases(length, length)}NN\n" for name, length in lengths.items()))
    return path


@pytest.fixture(scope="module", params=["next_base", "masked_base"])
def arguments(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, fasta: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("model") / "model"
    model = tiny_model() if request.param == "next_base" else tiny_bimamba()
    save_checkpoint(model, folder, {"settings": {"length": 64}})
    flags = ["--checkpoint", str(folder), "--genome", str(fasta), "--accelerator", "cpu", "--contigs", "*"]
    return [*flags, "--format", "bedgraph,npz", "--tracks", "log_likelihood,entropy"]


def run(arguments: list[str], out: Path, *more: str) -> int:
    return cli.run(likelihood.main, [*arguments, "--out", str(out), *more])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_one_job_to_the_byte(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    assert run(arguments, alone / "track") == 0
    for number in range(1, SHARDS):  # the last one never runs: whoever writes the files computes it
        assert run(arguments, shared / "track", "--shard", f"{number}/{SHARDS}") == 0
        assert [path.name for path in shared.iterdir()] == ["track.parts"]
    before = {path: path.stat().st_mtime_ns for path in (shared / "track.parts").iterdir()}
    assert len(before) in range(4, 2 * 5)
    capsys.readouterr()
    assert run(arguments, shared / "track", "--shard", f"1/{SHARDS}") == 0
    assert "contigs before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (shared / "track.parts").iterdir()} == before
    assert run(arguments, shared / "track") == 0
    assert files(shared) == files(alone)


def test_shards_of_another_computation_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(arguments, tmp_path / "track", "--shard", "1/2") == 0
    assert run(arguments, tmp_path / "track", "--shard", "1/2", "--context", "48") == 2
    assert "of another model, genome, region or setting; remove" in capsys.readouterr().err


def test_every_contig_is_in_one_shard() -> None:
    bases = {"a": 5, "b": 900, "c": 400, "d": 300, "e": 250}
    found = [Shard(f"{number}/3").largest_first(bases) for number in (1, 2, 3)]
    assert found == [["b"], ["c", "a"], ["d", "e"]]
    assert sorted(name for names in found for name in names) == sorted(bases)


def test_more_shards_than_contigs(arguments: list[str], tmp_path: Path) -> None:
    """Those that have none write none, and end well."""
    found = [Shard(f"{number}/4").largest_first({"a": 5, "b": 900}) for number in range(1, 5)]
    assert found == [["b"], ["a"], [], []]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    assert run(arguments, alone / "track") == 0
    assert run(arguments, shared / "track", "--shard", "99/99") == 0
    assert not any((shared / "track.parts").glob("*"))
    assert run(arguments, shared / "track") == 0
    assert files(shared) == files(alone)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected I/N"):
        Shard(text)
