"""The main job through its command line: a real run, its folder, exact resume, and every kind of bad input."""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from dnamamba import cli, info, pretrain
from dnamamba.demo import genome_path
from dnamamba.runs.progress import si
from dnamamba.training.checkpoints import TRAINER_STATE
from dnamamba.training.module import PretrainModule
from dnamamba.training.resolve import resolve
from dnamamba.training.settings import PretrainSettings
from tests.full_disk import disk_is_full

QUICK = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
QUICK += ["--length", "256", "--batch_tokens", "1024", "--accelerator", "cpu", "--markov_order", "3"]
QUICK += ["--validation_tokens", "4096"]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 300 kb of E. coli."""
    path = tmp_path_factory.mktemp("genome") / "small.fa"
    with gzip.open(genome_path(), "rt") as source:
        source.readline()
        sequence = "".join(line.strip() for _, line in zip(range(6000), source, strict=False))[:300_000]
    path.write_text(f">chr1 first 300 kb\n{sequence}\n")
    return path


def train(*arguments: object) -> int:
    return cli.run(pretrain.main, [str(argument) for argument in arguments])


def weights(run: Path, name: str = "last") -> bytes:
    return (run / "checkpoints" / name / "model.safetensors").read_bytes()


def saved_step(run: Path) -> int:
    """Of the last checkpoint; 0 before the first."""
    return int((run / "checkpoints" / "last").resolve().name.removeprefix("step-").replace("last", "0"))


def rows(run: Path, table: str = "metrics.csv") -> list[dict[str, str]]:
    with (run / table).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole_run(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train("--genome", fasta, *QUICK, "--max_steps", 12, "--log_every", 2, "--out", out) == 0
    return out


def test_a_run_leaves_what_its_user_needs(whole_run: Path) -> None:
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["tokens"] == 12 * 1024
    assert 1.5 < summary["validation_bits_per_base"] < 2.3
    assert 1.8 < summary["markov_bits_per_base"] < 2.0, "E. coli at order 3 and below"
    assert summary["seconds"] > 0
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / summary["seconds"])
    assert (whole_run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    by_class = rows(whole_run, "validation_by_class.csv")
    assert (by_class[0]["step"], by_class[0]["class"]) == ("12", "all")
    assert float(by_class[0]["bits_per_base"]) == pytest.approx(summary["validation_bits_per_base"], abs=1e-5)
    windows = rows(whole_run, "validation_windows.csv")
    assert sum(int(row["bases"]) for row in windows) == int(by_class[0]["bases"]) and windows[0]["step"] == "12"
    mean = sum(float(row["bits_per_base"]) * int(row["bases"]) for row in windows) / int(by_class[0]["bases"])
    assert mean == pytest.approx(summary["validation_bits_per_base"], abs=1e-5)
    assert (whole_run / "validation_by_class.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole_run / "tensorboard").glob("events*"))
    assert yaml.safe_load((whole_run / "config.yaml").read_text())["learning_rate"] == 8e-3
    assert "torch" in json.loads((whole_run / "environment.json").read_text())["versions"]
    assert {line.split("\t")[3] for line in (whole_run / "splits.bed").read_text().splitlines()} >= {
        "train",
        "validation",
    }
    provenance = json.loads((whole_run / "checkpoints" / "best" / "provenance.json").read_text())
    assert provenance["metrics"]["validation_bits_per_base"] == pytest.approx(
        summary["best_validation_bits_per_base"], abs=1e-6
    )
    assert [row["step"] for row in rows(whole_run)] == ["2", "4", "6", "8", "10", "12"]
    assert not list(whole_run.glob("**/*.partial"))


def test_the_loss_falls(whole_run: Path) -> None:
    losses = [float(row["train_bits_per_base"]) for row in rows(whole_run)]
    assert losses[-1] < losses[0]


def test_resumed_equals_uninterrupted_bit_for_bit(fasta: Path, whole_run: Path, tmp_path: Path) -> None:
    """Killed in the middle of an epoch and of a row of metrics.csv, then resumed with another number of workers."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dnamamba.pretrain", "--genome", str(fasta), *QUICK, "--max_steps", "12"]
    command += ["--log_every", "2", "--save_every", "1", "--out", str(out)]
    same_threads = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=same_threads) as process:
        deadline = time.monotonic() + 200
        while saved_step(out) < 5:  # not that step's folder: it may come and go between two looks
            assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 5 <= saved_step(out) <= 12
    assert train("--resume", "--out", out, "--num_workers", 1) == 0
    assert weights(out) == weights(whole_run)
    assert [row["train_bits_per_base"] for row in rows(out)] == [row["train_bits_per_base"] for row in rows(whole_run)]


def test_micro_batches_change_nothing_beyond_rounding(fasta: Path, whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "micro"
    assert (
        train("--genome", fasta, *QUICK, "--max_steps", 12, "--log_every", 2, "--micro_tokens", 256, "--out", out) == 0
    )
    for one, other in zip(rows(out), rows(whole_run), strict=True):
        assert float(one["train_bits_per_base"]) == pytest.approx(float(other["train_bits_per_base"]), abs=2e-3)


def test_resume_refuses_changed_settings(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole_run, out, symlinks=True)
    before = (out / "config.yaml").read_bytes()
    assert train("--resume", "--out", out, "--seed", 7, "--length", 128) == 2
    message = capsys.readouterr().err
    assert "--seed (was 0, now 7)" in message and "--length" in message
    assert (out / "config.yaml").read_bytes() == before


def test_resume_goes_beyond_the_end(whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "longer"
    shutil.copytree(whole_run, out, symlinks=True)
    assert train("--resume", "--out", out, "--max_steps", 14) == 0
    assert json.loads((out / "summary.json").read_text())["tokens"] == 14 * 1024


def test_a_run_of_an_earlier_version_is_recognised(
    whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints do not say how many bases were read."""
    out = tmp_path / "run"
    shutil.copytree(whole_run, out, symlinks=True)
    file = out / "checkpoints" / "last" / TRAINER_STATE
    state = torch.load(file, weights_only=True)
    del state["callbacks"]["RunControl"]["tokens"]
    torch.save(state, file)
    assert train("--resume", "--out", out, "--max_steps", 14) == 2
    assert "begun by an earlier dnamamba" in capsys.readouterr().err


def test_resume_refuses_what_cannot_be_meant(
    fasta: Path, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole_run, out, symlinks=True)
    assert train("--resume", "--out", out, "--max_steps", 3) == 2
    assert "at step 12 already" in capsys.readouterr().err
    ends_plain = ["--copies", 0.5, "--copies_warmup", 0, "--copies_cooldown", 0.5]
    for flag, stages in (
        ("--length_warmup", ["--length_warmup", 0.5]),
        ("--copies_warmup", ["--copies", 0.5]),
        ("--copies_cooldown", ends_plain),
    ):
        staged = tmp_path / flag
        arguments = ["--genome", fasta, *QUICK, "--length", 2048, "--batch_tokens", 2048, *stages]
        assert train(*arguments, "--max_steps", 6, "--out", staged) == 0
        assert train("--resume", "--out", staged, "--max_steps", 8) == 2
        assert flag in capsys.readouterr().err


def test_any_length_has_a_default_batch() -> None:
    for length, devices in ((1000, 1), (129, 3), (1_000_001, 2)):
        settings = resolve(PretrainSettings(genome=[Path("x.fa")], length=length, devices=devices, accelerator="cpu"))
        assert settings.batch_tokens % (length * devices) == 0


def test_config_holds_from_any_folder(fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bed(tmp_path, "validation.bed", "chr1\t0\t20000\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    assert train("--genome", fasta, *QUICK, "--validation", "validation.bed", "--max_steps", 2, "--out", "run") == 0
    monkeypatch.chdir("/")
    assert train("--resume", "--out", out, "--max_steps", 3) == 0


FASTA_FAULTS = {
    "empty.fa": (b"", "empty"),
    "binary.fa": (bytes(range(256)) * 16, "binary.fa"),
    "headerless.fa": (b"ACGTACGTAC\nACGT\n", "headerless.fa"),
    "protein.fa": (b">p1 a protein\nMKLPEFQILVWERTYPASDFGHKLE\n" * 20, "protein.fa"),
    "twice.fa": (b">chr1\nACGT\n>chr1\nGGCC\n", "chr1"),
    "short.fa": (b">chr1\n" + b"ACGT" * 40 + b"\n", "160"),
    "truncated.fa.gz": (gzip.compress(b">chr1\n" + os.urandom(4000).hex().encode() + b"\n")[:-900], "truncated.fa.gz"),
}


@pytest.mark.parametrize("name", FASTA_FAULTS)
def test_bad_fasta(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = FASTA_FAULTS[name]
    path = tmp_path / name
    path.write_bytes(content)
    refused(capsys, tmp_path, expected, "--genome", path, *QUICK)


def refused(capsys: pytest.CaptureFixture[str], folder: Path, expected: str, *arguments: object) -> None:
    """Exit code 2, one line on stderr that says `expected`, and nothing left behind."""
    before = files(folder)
    out = ["--out", folder / "run"] if "--out" not in arguments else []
    assert train(*arguments, *out) == 2
    message = capsys.readouterr().err
    assert expected in message, message
    assert message.count("\n") == 1, message
    assert "Traceback" not in message
    assert files(folder) == before, "something half-written is left"


def files(folder: Path) -> set[Path]:
    """All but finished token stores, which are of use to the next try."""
    return {path for path in folder.rglob("*") if ".dnamamba" not in str(path)}


def bed(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_bad_arguments(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of what users get wrong on the command line itself."""
    genome = ["--genome", fasta, *QUICK]
    exists = tmp_path / "exists"
    exists.mkdir()
    not_a_folder = bed(tmp_path, "file", "")
    outside = bed(tmp_path, "outside.bed", "chr1\t0\t900000\n")
    unknown = bed(tmp_path, "unknown.bed", "chr9\t0\t900\n")
    reversed_ = bed(tmp_path, "reversed.bed", "chr1\t900\t0\n")
    words = bed(tmp_path, "words.bed", "chr1\tone\ttwo\n")
    left = bed(tmp_path, "left.bed", "chr1\t0\t150000\n")
    right = bed(tmp_path, "right.bed", "chr1\t149000\t300000\n")
    config = bed(tmp_path, "typo.yaml", "lenght: 512\n")
    not_yaml = bed(tmp_path, "broken.yaml", "length: [512\n")
    wrong = bed(tmp_path, "wrong.yaml", "length: long\n")
    cases: list[tuple[str, list[object]]] = [
        ("missing.fa", ["--genome", tmp_path / "missing.fa", *QUICK]),
        ("outside.bed", [*genome, "--validation", outside]),
        ("chr9", [*genome, "--validation", unknown]),
        ("reversed.bed", [*genome, "--exclude", reversed_]),
        ("words.bed", [*genome, "--exclude", words]),
        ("words.bed, line 1", [*genome, "--annotation", words]),
        ("overlap", [*genome, "--train", left, "--validation", right]),
        ("chrX", [*genome, "--contigs", "chrX"]),
        ("300000", [*genome, "--length", 1_000_000, "--batch_tokens", 1_000_000]),
        ("--out", [*genome, "--out", exists]),
        (str(not_a_folder), [*genome, "--out", not_a_folder / "run"]),
        ("--lenght", [*genome, "--lenght", 5]),
        ("lenght", [*genome, "--config", config]),
        ("broken.yaml", [*genome, "--config", not_yaml]),
        ("wrong.yaml", ["--genome", fasta, "--config", wrong]),
        ("no-such.yaml", [*genome, "--config", tmp_path / "no-such.yaml"]),
        ("--max_steps", [*genome, "--max_steps", "many"]),
        ("--max_steps", [*genome, "--max_steps", -1]),
        ("--tokens", [*genome, "--tokens", 0]),
        ("--markov_order", [*genome, "--markov_order", 13]),
        ("--length", [*genome, "--length", 100, "--batch_tokens", 100]),
        ("multiple", [*genome, "--batch_tokens", 1000]),
        ("3 devices", [*genome, "--devices", 3]),
        ("huge", ["--genome", fasta, "--model.preset", "huge"]),
        ("model.d_state", [*genome, "--model.d_state", 1000]),
        ("--learning_rate", [*genome, "--learning_rate", 0]),
        ("no run", ["--resume", "--out", tmp_path / "nothing"]),
        ("--accelerator", [*genome, "--accelerator", "tpu"]),
    ]
    for expected, arguments in cases:
        refused(capsys, tmp_path, expected, *arguments)
    assert train("--resume") == 2
    assert "--out" in capsys.readouterr().err


def test_help_is_instant_and_complete() -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dnamamba.pretrain", "--help"], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - began < 3, "a second on a quiet machine"
    for flag in ("genome", "length", "model.preset", "max_steps", "batch_tokens", "out", "seed", "devices"):
        assert f"--{flag} " in done.stdout
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dnamamba.pretrain", "--help"], capture_output=True, text=True
    ).stderr
    assert "torch" not in imports and "lightning" not in imports


def test_config_file_and_flags(fasta: Path, tmp_path: Path) -> None:
    """YAML gives values, flags win over it, wherever they stand; a single genome needs no list."""
    config = bed(tmp_path, "run.yaml", f"genome: {fasta}\nmax_steps: 3\nmodel:\n  preset: demo\n  n_layer: 1\n")
    out = tmp_path / "run"
    flags = ["--max_steps", 1, "--length", 256, "--batch_tokens", 512, "--markov_order", 0, "--accelerator", "cpu"]
    assert train(*flags, "--config", config, "--out", out) == 0
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert (written["max_steps"], written["model"]["n_layer"]) == (1, 1)
    assert json.loads((out / "summary.json").read_text())["markov_bits_per_base"] is None


def test_sigterm_saves_and_says_how_to_resume(fasta: Path, whole_run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "preempted"
    command = [sys.executable, "-m", "dnamamba.pretrain", "--genome", str(fasta), *QUICK, "--max_steps", "12"]
    command += ["--log_every", "2", "--validation_every", "100", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while not (out / "metrics.csv").exists() or len(rows(out)) < 1:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=100)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM" in output and "--resume" in output
    reached = json.loads((out / "summary.unfinished.json").read_text())
    assert (reached["finished"], reached["stopped_by"], reached["steps"]) == (False, "SIGTERM", 12)
    assert reached["step"] == saved_step(out) and reached["tokens"] == 1024 * reached["step"]
    assert reached["validation_bits_per_base"] is None and not (out / "summary.json").exists()
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert cli.run(info.main, [str(out / "checkpoints" / "last")]) == 0
    told = capsys.readouterr().out
    assert f"unfinished  stopped by SIGTERM after {reached['step']} of 12 steps; continue with --resume" in told
    assert f"{reached['step']} steps, {si(reached['tokens'])}bases" in told
    assert train("--resume", "--out", out) == 0
    assert weights(out) == weights(whole_run)
    assert (out / "summary.json").exists() and not (out / "summary.unfinished.json").exists()


def test_info_counts_the_bases_that_were_read(fasta, tmp_path, capsys):
    """Packed rows have padding, which is no base; a step in the middle of a row of metrics.csv counts all before it."""
    path = tmp_path / "short.fa"
    sequence = fasta.read_text().split("\n")[1]
    path.write_text("".join(f">c{n}\n{sequence[500 * n : 500 * n + 180 + n]}\n" for n in range(120)))
    flags = ["--genome", path, *QUICK, "--pack", "--validation", "c1*", "--train", "c[2-9]*", "--max_steps", 3]
    assert train(*flags, "--log_every", 2, "--save_every", 1, "--keep", 9, "--out", tmp_path / "run") == 0
    found = {row["step"]: int(row["tokens"]) for row in rows(tmp_path / "run")}
    assert found["3"] < 3 * 1024
    tokens = []
    for step in (1, 2, 3):
        place = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        tokens.append(json.loads((place / "provenance.json").read_text())["tokens"])
    assert tokens[1:] == [found["2"], found["3"]] and 0 < tokens[0] < tokens[1]
    capsys.readouterr()
    assert cli.run(info.main, [str(tmp_path / "run" / "checkpoints" / "step-00000001")]) == 0
    assert f"at length 256, 1 steps, {si(tokens[0])}bases" in capsys.readouterr().out


def test_a_loss_that_explodes_is_named_and_never_applied(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--genome", fasta, *QUICK, "--max_steps", 6, "--log_every", 1, "--learning_rate", 1e25]
    assert train(*arguments, "--out", tmp_path / "stop") == 2
    message = capsys.readouterr().err
    assert "not finite" in message and "chr1:" in message and "step" in message
    assert train(*arguments, "--out", tmp_path / "skip", "--on_fault", "skip") == 0
    assert "was not applied" in capsys.readouterr().out
    json.loads((tmp_path / "skip" / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_a_gradient_out_of_line_is_not_applied(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a limit below the usual norm the first step passes, and a later one is refused and named."""
    arguments = ["--genome", fasta, *QUICK, "--max_steps", 12, "--log_every", 1, "--gradient_outlier", 0.5]
    assert train(*arguments, "--out", tmp_path / "stop") == 2
    message = capsys.readouterr().err
    assert "has norm" in message and "chr1:" in message
    assert train(*arguments, "--out", tmp_path / "skip", "--on_fault", "skip") == 0
    assert "was not applied" in capsys.readouterr().out


def test_windows_without_a_base_do_not_divide_by_zero(tmp_path: Path) -> None:
    """Batches of N alone have nothing to count: the run continues, and weights stay finite."""
    fasta = tmp_path / "gaps.fa"
    fasta.write_text(">chr1\n" + "N" * 60_000 + "ACGTTGCA" * 5000 + "N" * 60_000 + "\n")
    out = tmp_path / "run"
    valid = bed(tmp_path, "validation.bed", "chr1\t60000\t75000\n")
    arguments = ["--genome", fasta, *QUICK, "--max_n_fraction", 1, "--validation", valid, "--log_every", 1]
    assert train(*arguments, "--batch_tokens", 256, "--max_steps", 8, "--out", out) == 0
    counted = [row["train_bits_per_base"] for row in rows(out)]
    assert "nan" in counted, "some steps had no base at all"
    assert float(rows(out)[-1]["validation_bits_per_base"]) > 0


def test_full_disk_keeps_the_last_checkpoint(
    fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_is_full(monkeypatch, lambda step: step >= 4)
    out = tmp_path / "run"
    arguments = ["--genome", fasta, *QUICK, "--max_steps", 6, "--log_every", 1, "--save_every", 1, "--out", out]
    assert train(*arguments) == 2
    message = capsys.readouterr().err
    assert "No space left" in message and "--resume" in message
    monkeypatch.undo()
    assert train("--resume", "--out", out) == 0


def test_memory_that_runs_out_is_reported(
    fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PretrainModule, "training_step", full)
    arguments = ["--genome", fasta, *QUICK, "--max_steps", 2, "--out", tmp_path / "run"]
    assert train(*arguments) == 2
    assert "out of memory: give less than --micro_tokens 16384, or --recompute all" in capsys.readouterr().err
    monkeypatch.undo()
    assert train("--resume", "--recompute", "all", "--out", tmp_path / "run") == 0


def test_length_warmup_tokens_and_patience(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--genome", fasta, *QUICK, "--length", 4096, "--batch_tokens", 4096, "--length_warmup", 0.5]
    arguments += ["--tokens", 30_000, "--soft_mask_weight", 0.1, "--log_every", 1]
    assert train(*arguments, "--dry_run", "--out", out) == 0
    shown = capsys.readouterr().out
    assert "1,024 from step 1, 2,048 from step 3, 4,096 from step 5" in shown and "bases/s" in shown
    assert float(re.search(r"([\d.]+) GiB a process", shown)[1]) > 0.1  # type: ignore[index]
    assert not out.exists()
    assert train(*arguments, "--learning_rate", 1e-12, "--patience", 1, "--validation_every", 1, "--out", out) == 0
    assert 2 <= int(rows(out)[-1]["step"]) < 8, "no improvement: patience ended it"
