"""What a run is resumed with: its files may move, what is in them may not change; settings of older versions."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dnamamba import cli, finetune, pretrain
from dnamamba.errors import InputError
from dnamamba.finetuning import run as finetuning
from dnamamba.formats.checkpoint import save_checkpoint
from dnamamba.model.config import ModelConfig
from dnamamba.model.language_model import LanguageModel
from dnamamba.model.settings import ModelSettings
from dnamamba.runs.resume import with_stored_settings
from dnamamba.settings.fields import Settings, as_plain, setting
from dnamamba.settings.parser import Parser

TINY = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
QUICK = [*TINY, "--length", "128", "--batch_tokens", "256", "--accelerator", "cpu", "--markov_order", "0"]


@dataclass(kw_only=True)
class GrownSettings(Settings):
    """Has a limit since some version; before, there was none."""

    limit: float = setting(100.0, absent=0.0)
    """Of something."""


def bases(count: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), count))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with genome.fa, its validation.bed, and the run after its first step."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "genome.fa").write_text(f">chr1\n{bases(20_000)}\n")
    (folder / "validation.bed").write_text("chr1\t0\t2000\n")
    files = ["--genome", folder / "genome.fa", "--validation", folder / "validation.bed", "--out", folder / "run"]
    assert cli.run(pretrain.main, [*map(str, files), *QUICK, "--max_steps", "1", "--validation_tokens", "512"]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy whose config.yaml names the files of the copy."""
    here = tmp_path / "moved"
    shutil.copytree(begun, here, symlinks=True)
    config = here / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(here)))
    return here


def resume(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a resumed run says at its beginning; it stops before the first step."""
    capsys.readouterr()
    code = cli.run(pretrain.main, ["--resume", "--dry_run", *map(str, arguments)])
    reported = capsys.readouterr()
    assert code == (2 if reported.err.startswith("error") else 0), reported
    return reported.err


def without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()


@pytest.mark.parametrize("stopped", ["after a checkpoint", "before the first checkpoint"])
def test_files_may_move_and_be_named_in_any_way(folder, tmp_path, monkeypatch, capsys, stopped):
    if stopped == "before the first checkpoint":
        without_checkpoints(folder / "run")
    run, genome, table = folder / "run", folder / "genome.fa", folder / "validation.bed"
    assert resume(capsys, "--out", run) == ""
    (folder / "link.fa").symlink_to(genome)
    assert resume(capsys, "--out", run, "--genome", folder / "link.fa") == ""
    monkeypatch.chdir(folder)
    assert resume(capsys, "--out", "run", "--genome", "genome.fa", "--validation", "validation.bed") == ""
    monkeypatch.undo()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (run, genome, table):
        path.rename(elsewhere / path.name)
    moved = ["--out", elsewhere / "run", "--genome", elsewhere / "genome.fa"]
    assert resume(capsys, *moved, "--validation", elsewhere / "validation.bed") == ""


def test_a_genome_that_is_gone_is_resumed_from_its_store(folder, capsys):
    (folder / "genome.fa").unlink()
    store = folder / "genome.fa.dnamamba"
    reported = resume(capsys, "--out", folder / "run")
    assert reported == f"{folder / 'genome.fa'}: no such file; using its token store {store}\n"


@pytest.mark.parametrize("stopped", ["after a checkpoint", "before the first checkpoint"])
def test_other_bases_or_splits_are_refused(folder, capsys, stopped):
    run = folder / "run"
    if stopped == "before the first checkpoint":
        without_checkpoints(run)
    (folder / "other.bed").write_text("chr1\t0\t3000\n")
    for changed in (["--validation", folder / "other.bed"], []):
        if not changed:
            (folder / "genome.fa").write_text(f">chr1\n{bases(20_000, seed=1)}\n")
        reported = resume(capsys, "--out", run, *changed)
        assert "a resumed run keeps its data, but a genome file" in reported and reported.count("\n") == 1


def test_without_any_fingerprint_the_names_of_files_decide(folder, capsys):
    """A run of an earlier version that was stopped before its first checkpoint."""
    run = folder / "run"
    without_checkpoints(run)
    (run / "data.json").unlink()
    assert resume(capsys, "--out", run) == ""
    (folder / "link.fa").symlink_to(folder / "genome.fa")
    reported = resume(capsys, "--out", run, "--genome", folder / "link.fa")
    assert "changed: --genome (was [" in reported and reported.count("\n") == 1


def test_a_setting_younger_than_the_run_is_as_it_was(folder, capsys):
    config = folder / "run" / "config.yaml"
    stored = yaml.safe_load(config.read_text())
    for name in ("weight_decay", "pack", "micro_tokens"):
        del stored[name]
    del stored["model"]["discretization"]
    config.write_text(yaml.safe_dump(stored))
    assert resume(capsys, "--out", folder / "run") == ""
    reported = resume(capsys, "--out", folder / "run", "--pack", "--weight_decay", 0.2, "--model.discretization", "zoh")
    assert "--pack (was False, now True)" in reported
    assert "--weight_decay (was 0.1, now 0.2)" in reported
    assert "--model.discretization (was None, now 'zoh')" in reported


def test_a_setting_that_is_no_longer_there_is_named_with_its_version(folder, capsys):
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text() + "shuffle: true\n")
    reported = resume(capsys, "--out", folder / "run")
    assert "config.yaml: unknown setting 'shuffle', written by dnamamba 0.1.0" in reported and reported.count("\n") == 1


def test_a_setting_says_what_it_was_before_it_was_there(tmp_path):
    (tmp_path / "config.yaml").write_text("{}\n")
    parser = Parser("test", GrownSettings)
    assert parser.parse([]).limit == 100
    assert with_stored_settings(parser, tmp_path, []).limit == 0
    assert with_stored_settings(parser, tmp_path, ["--limit", "5"]).limit == 5
    with pytest.raises(InputError, match="no run to resume there"):
        with_stored_settings(parser, tmp_path / "no", [])


# Fine-tuning


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """A fine-tuning stopped in its training: data/, lm/ (the pretrained model), run/."""
    data = tmp_path / "data"
    data.mkdir()
    for number, (split, count) in enumerate((("train", 24), ("dev", 8), ("test", 8))):
        rows = [f"{bases(40, 100 * number + n)},{'ab'[n % 2]}\n" for n in range(count)]
        (data / f"{split}.csv").write_text("sequence,label\n" + "".join(rows))
    torch.manual_seed(1)
    model = LanguageModel(ModelConfig(n_layer=1, d_model=16, d_state=4))
    save_checkpoint(model, tmp_path / "lm", {"settings": {"length": 64}, "genomes": []})
    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "_train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        files = ["--data", str(data), "--checkpoint", str(tmp_path / "lm"), "--out", str(tmp_path / "run")]
        assert cli.run(finetune.main, [*files, "--accelerator", "cpu", "--kmer", "0"]) == cli.INTERRUPTED
    return tmp_path


def resume_tuning(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    code = cli.run(finetune.main, ["--resume", "--dry_run", *map(str, arguments)])
    reported = capsys.readouterr().err
    assert code == (2 if reported else 0), reported
    return reported


def test_a_fine_tuning_is_resumed_wherever_its_files_lie(tuned, monkeypatch, capsys):
    assert resume_tuning(capsys, "--out", tuned / "run") == ""
    (tuned / "link").symlink_to(tuned / "lm")
    (tuned / "table").symlink_to(tuned / "data")
    assert (
        resume_tuning(capsys, "--out", tuned / "run", "--checkpoint", tuned / "link", "--data", tuned / "table") == ""
    )
    monkeypatch.chdir(tuned)
    assert resume_tuning(capsys, "--out", "run", "--checkpoint", "lm", "--data", "data") == ""
    elsewhere = tuned / "elsewhere"
    elsewhere.mkdir()
    for name in ("run", "lm", "data"):
        (tuned / name).rename(elsewhere / name)
    moved = ["--out", elsewhere / "run", "--checkpoint", elsewhere / "lm"]
    assert resume_tuning(capsys, *moved, "--data", elsewhere / "data") == ""


def test_a_fine_tuning_refuses_other_data_and_other_weights(tuned, capsys):
    other = tuned / "other"
    torch.manual_seed(2)
    save_checkpoint(
        LanguageModel(ModelConfig(n_layer=1, d_model=16, d_state=4)), other, {"settings": {}, "genomes": []}
    )
    reported = resume_tuning(capsys, "--out", tuned / "run", "--checkpoint", other)
    assert "other data than the run began with (pretrained_weights)" in reported and reported.count("\n") == 1
    table = tuned / "data" / "train.csv"
    table.write_text(table.read_text() + "ACGTACGTACGT,a\n")
    reported = resume_tuning(capsys, "--out", tuned / "run")
    assert "other data than the run began with (splits)" in reported and reported.count("\n") == 1


def test_weights_without_a_fingerprint_are_known_by_their_name(tuned, capsys):
    recorded = json.loads((tuned / "run" / "data.json").read_text())
    (tuned / "run" / "data.json").write_text(json.dumps({**recorded, "pretrained_weights": None}))
    (tuned / "link").symlink_to(tuned / "lm")
    assert "changed: --checkpoint (was " in resume_tuning(
        capsys, "--out", tuned / "run", "--checkpoint", tuned / "link"
    )


def test_genomes_of_species_may_move(tmp_path, monkeypatch, capsys):
    for number, name in enumerate(("one", "two")):
        (tmp_path / f"{name}.fa").write_text(f">chr1\n{bases(20_000, number)}\n")
    (tmp_path / "two.tsv").write_text("name\tfasta\none\tone.fa\ntwo\ttwo.fa\n")
    flags = ["--task", "species", "--species", str(tmp_path / "two.tsv"), "--checkpoint", "none", *TINY]
    flags += ["--accelerator", "cpu", "--kmer", "0", "--length", "64", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "_train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.run(finetune.main, flags) == cli.INTERRUPTED
    new = tmp_path / "new"
    new.mkdir()
    for name in ("one.fa", "two.fa", "two.tsv"):
        (tmp_path / name).rename(new / name)
    assert resume_tuning(capsys, "--out", tmp_path / "run", "--species", new / "two.tsv") == ""
    (new / "one.fa").write_text(f">chr1\n{bases(20_000, 9)}\n")
    reported = resume_tuning(capsys, "--out", tmp_path / "run", "--species", new / "two.tsv")
    assert "other data than the run began with (species)" in reported


def test_config_names_a_newer_option_of_the_model_only_where_it_is_set(folder, capsys):
    """So that an older dnamamba resumes what it can; a resumed run keeps what is not named too."""
    config = folder / "run" / "config.yaml"
    written = yaml.safe_load(config.read_text())["model"]
    assert written["mixer"] is None
    assert "pattern" not in written
    changed = as_plain(ModelSettings(pattern="mamba,attention"))
    assert changed["pattern"] == "mamba,attention"
    assert changed.keys() == written.keys() | {"pattern"}
    message = "a resumed run keeps its settings; changed: --model.pattern (was None, now 'mamba,attention')"
    assert message in resume(capsys, "--out", folder / "run", "--model.pattern", "mamba,attention")
    assert "error" not in resume(capsys, "--out", folder / "run")
