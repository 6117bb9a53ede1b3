"""A VCF's scores by several jobs: the bytes of one job, whatever was done before."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import random_bases, tiny_bimamba, tiny_model

from dnamamba import cli, score
from dnamamba.analysis.variants.plan import plan_for
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.genome import vcf
from dnamamba.genome.alleles import check
from dnamamba.genome.store import open_genome
from dnamamba.inference.load import load_for_inference
from dnamamba.inference.shards import Shard


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A genome and a VCF of single bases, insertions and deletions, too many for one batch."""
    folder = tmp_path_factory.mktemp("genome")
    contigs = {"chr1": random_bases(900, 1), "chr2": random_bases(500, 2)}
    (folder / "genome.fa").write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    drawn = np.random.default_rng(0)
    for name, bases in contigs.items():
        for position in sorted(drawn.choice(len(bases) - 10, 12, replace=False).tolist()):
            ref = bases[position : position + 1 + int(drawn.integers(3))]
            alt = "ACGT"[("ACGT".index(ref[0]) + 1) % 4] if len(ref) < 3 else ref[0]
            lines.append(f"{name}\t{position + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    (folder / "variants.vcf").write_text("\n".join(lines) + "\n")
    return {"genome": folder / "genome.fa", "vcf": folder / "variants.vcf"}


@pytest.fixture(scope="module", params=["next_base", "masked_base"])
def arguments(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, genome: dict[str, Path]
) -> list[str]:
    folder = tmp_path_factory.mktemp("model") / "model"
    model = tiny_model() if request.param == "next_base" else tiny_bimamba()
    save_checkpoint(model, folder, {"settings": {"length": 64}})
    files = [text for name, path in genome.items() for text in (f"--{name}", str(path))]
    flags = ["--embedding_distance", "true", "--state_every", "16"] if request.param == "next_base" else []
    return ["--checkpoint", str(folder), *files, "--accelerator", "cpu", "--batch_tokens", "128", *flags]


def test_shards_are_one_job_to_the_byte(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "scores.vcf" if "--state_every" in arguments else "scores.tsv"
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    assert cli.run(score.main, [*arguments, "--out", str(alone / name)]) == 0
    command = [*arguments, "--out", str(shared / name)]
    assert cli.run(score.main, [*command, "--shard", "1/2"]) == 0  # the other never runs: the last job computes it
    [part] = (shared / f"{name}.parts").iterdir()
    scored = ~np.isnan(np.load(part)["forward_at"])
    assert 0 < scored.sum() < len(scored)
    before = part.stat().st_mtime_ns
    assert cli.run(score.main, [*command, "--shard", "1/2"]) == 0
    assert part.stat().st_mtime_ns == before
    assert cli.run(score.main, [*command, "--context", "48"]) == 2
    assert "of another model, genome, VCF or setting; remove" in capsys.readouterr().err
    assert cli.run(score.main, command) == 0
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == {
        path.name: path.read_bytes() for path in alone.iterdir()
    }


@pytest.mark.parametrize("changed", ["vcf", "genome"])
def test_shards_of_an_edited_file_are_refused(
    changed: str, genome: dict[str, Path], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where it is as long as before."""
    own = tmp_path / genome[changed].name
    text = genome[changed].read_text()
    own.write_text(text)
    command = [str(own) if each == str(genome[changed]) else each for each in arguments]
    command += ["--out", str(tmp_path / "scores.tsv")]
    assert cli.run(score.main, [*command, "--shard", "1/2"]) == 0
    if changed == "vcf":
        [*others, last] = text.splitlines()
        columns = last.split("\t")
        columns[1] = str(int(columns[1]) - 1)  # in another window
        own.write_text("\n".join([*others, "\t".join(columns)]) + "\n")
    else:
        own.write_text(text[:-2] + "ACGT"["TGCA".index(text[-2])] + "\n")
    assert own.stat().st_size == len(text)
    assert cli.run(score.main, [*command, "--max_mismatches", "1"]) == 2
    assert "of another model, genome, VCF or setting; remove" in capsys.readouterr().err


@pytest.mark.parametrize("number", [1, 2])
def test_progress_reaches_the_end_whatever_a_shard_leaves_out(
    number: int, genome: dict[str, Path], arguments: list[str]
) -> None:
    inference = load_for_inference(Path(arguments[1]), "cpu")
    plan = replace(plan_for(inference, state_every=16, batch_tokens=128), shard=Shard(f"{number}/2"))
    store = open_genome(genome["genome"])
    alleles = check(vcf.read_vcf(genome["vcf"]), store, longest=32).alleles
    reported: list[tuple[int, int]] = []
    plan.score(inference, store, alleles, lambda done, total: reported.append((done, total)))
    assert reported == sorted(reported) and reported[-1] == (2 * len(alleles), 2 * len(alleles))
