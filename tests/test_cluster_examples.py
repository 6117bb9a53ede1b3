"""The examples for clusters: shells and Snakemake read them, and dnamamba takes their flags together."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dnamamba.settings.parser import Parser
from dnamamba.training.resolve import resolve
from dnamamba.training.settings import PretrainSettings

CLUSTER = Path(__file__).resolve().parent.parent / "pipelines" / "cluster"
DEVICES = {"torchrun.sh": 8, "pretrain.slurm": 16}


def pretrain_flags(script: Path) -> list[str]:
    """Of its one command, variables at their defaults."""
    text = script.read_text().replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if "-m dnamamba.pretrain" in line]
    line = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", line.replace('"${resume[@]}"', "")).replace('"$out"', "run")
    return shlex.split(line.split("-m dnamamba.pretrain")[1])


@pytest.mark.parametrize("name", DEVICES)
def test_scripts_are_shell_and_their_flags_go_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    for variable, value in {"LOCAL_RANK": 0, "WORLD_SIZE": DEVICES[name], "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(variable, str(value))
    flags = [*pretrain_flags(CLUSTER / name), "--accelerator", "cpu"]
    settings = resolve(Parser("pretrain", PretrainSettings).parse(flags))
    assert settings.devices == DEVICES[name] and settings.context_parallel in (4, 8)


def test_a_job_is_requeued_when_it_was_stopped_alone(tmp_path: Path) -> None:
    """By srun's code, with srun and scontrol that say what they are called with."""
    for name, text in {"srun": "exit $CODE", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for code in (138, 143, 0, 1, 134, 137, 139):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": str(code), "SLURM_JOB_ID": "7"}
        found = subprocess.run(
            ["bash", CLUSTER / "pretrain.slurm"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.returncode, found.stdout) == (code, "requeue 7\n" if code in (138, 143) else "")


@pytest.mark.slow
def test_snakemake_plans_the_shards(tmp_path: Path) -> None:
    config = ["checkpoint=model", "genome=genome.fa", f"out={tmp_path}/tracks", "shards=3"]
    command = [sys.executable, "-m", "snakemake", "-n", "-s", CLUSTER / "likelihood.smk", "--config", *config]
    found = subprocess.run([*command, "--cores", "1"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert re.search(r"^shard +3$", found.stdout, re.MULTILINE) and re.search(r"^files +1$", found.stdout, re.MULTILINE)
