"""Several processes: torchrun's and srun's are as good as our own, and none outlives a peer that dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dnamamba import cli, pretrain
from dnamamba.errors import InputError
from dnamamba.finetuning.resolve import resolve as resolve_finetuning
from dnamamba.finetuning.settings import FinetuneSettings
from dnamamba.parallel.processes import chosen_devices, process_rank
from dnamamba.training.resolve import resolve
from dnamamba.training.settings import PretrainSettings

QUICK = ["--model.preset", "demo", "--model.n_layer", "1", "--model.d_model", "16", "--model.d_state", "4"]
QUICK += ["--length", "256", "--batch_tokens", "1024", "--micro_tokens", "512", "--accelerator", "cpu"]
QUICK += ["--markov_order", "0", "--validation_tokens", "2048", "--log_every", "1", "--save_every", "4"]
VARIABLES = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NODEID": "0",
}
"""What srun says to each of two tasks on this machine."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def no_process_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test learns from its variables is taken back; those of the machine do not count."""
    for name in [*VARIABLES, "MASTER_PORT", *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")  # so that what `process_rank` sets is undone
        monkeypatch.delenv(name)


def set_variables(patch: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in variables.items():
        patch.setenv(name, str(value))


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_rank() == (0, None, None)
    set_variables(monkeypatch, SLURM_JOB_ID=7, SLURM_NTASKS=4, SLURM_PROCID=0, SLURM_LOCALID=0)
    assert process_rank() == (0, None, None), "a shell of salloc, or a batch script: nobody has started four of us"


def test_torchrun_on_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, RANK=3, LOCAL_RANK=1, GROUP_RANK=1, WORLD_SIZE=4, LOCAL_WORLD_SIZE=2)
    assert process_rank() == (3, 4, 2)


def test_a_step_of_srun_on_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, **STEP | {"SLURM_STEP_NUM_TASKS": 8, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"})
    set_variables(monkeypatch, SLURM_STEP_NODELIST="gpu[03,07-09],x1", SLURM_PROCID=6, SLURM_LOCALID=2, SLURM_NODEID=1)
    assert process_rank() == (6, 8, 4)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu03", str(15_000 + 3_456))
    assert process_rank() == (6, 8, 4), "also when called again"


def test_uneven_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, **STEP | {"SLURM_STEP_NUM_TASKS": 3, "SLURM_STEP_TASKS_PER_NODE": "2,1"})
    with pytest.raises(InputError, match="--ntasks-per-node"):
        process_rank()


def test_devices_are_as_many_as_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PretrainSettings(accelerator="cpu", out=Path("run"))
    assert resolve(settings).devices == 1
    set_variables(monkeypatch, LOCAL_RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2)
    assert resolve(settings).devices == 2
    settings.devices = 4
    with pytest.raises(InputError, match="2 processes"):
        resolve(settings)
    with pytest.raises(InputError, match="2 processes"):
        resolve_finetuning(FinetuneSettings(checkpoint="none", accelerator="cpu", devices=4, out=Path("run")))
    settings.resume = True
    assert resolve(settings).devices == 2, "which had four before it was stopped"
    with pytest.raises(InputError, match="--out"):
        resolve(PretrainSettings(accelerator="cpu"))


def test_no_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_devices(2, "gpu", resumed=False) == 2 and chosen_devices(3, "cpu", resumed=False) == 3
    with pytest.raises(InputError, match=r"^--devices: 3 wanted on this machine, torch sees 2$"):
        chosen_devices(3, "gpu", resumed=False)
    set_variables(monkeypatch, LOCAL_RANK=0, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4)
    with pytest.raises(InputError, match=r"4 wanted on this machine, torch sees 2; .*--gpus-per-node"):
        chosen_devices(None, "gpu", resumed=False)


def environment(**variables: object) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in variables.items()}


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "model.safetensors").read_bytes()


def rows(run: Path, table: str) -> list[dict[str, str]]:
    with (run / table).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps in one process, in passes of half a batch as two processes have them: nothing but the sum differs."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert cli.run(pretrain.main, [*QUICK, "--max_steps", "12", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    "starter", ["devices", "torchrun", *(pytest.param(name, marks=pytest.mark.slow) for name in ("srun", "two nodes"))]
)
def test_two_processes_are_one(starter: str, alone: Path, tmp_path: Path) -> None:
    """Bit for bit, because a sum of two has no order; and validation covers each window once."""
    out = tmp_path / "run"
    command = ["-m", "dnamamba.pretrain", *QUICK, "--max_steps", "12", "--out", str(out)]
    if starter == "devices":
        started = [([*command, "--devices", "2"], environment())]
    elif starter == "torchrun":
        started = [([*TORCHRUN, *command], environment())]
    elif starter == "srun":
        started = [(command, environment(**STEP, SLURM_PROCID=rank, SLURM_LOCALID=rank)) for rank in (0, 1)]
    else:
        nodes = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        port = str(20_000 + os.getpid() % 10_000)
        nodes += ["--master-port", port, "--node-rank"]
        started = [([*nodes, str(node), *command], environment()) for node in (0, 1)]
    processes = [subprocess.Popen([sys.executable, *line], env=env) for line, env in started]
    assert [process.wait(200) for process in processes] == [0] * len(processes)
    assert weights(out) == weights(alone)
    for column in ("tokens", "train_bits_per_base", "validation_bits_per_base"):
        assert [row[column] for row in rows(out, "metrics.csv")] == [row[column] for row in rows(alone, "metrics.csv")]
    for two, one in zip(*(rows(run, "validation_by_class.csv") for run in (out, alone)), strict=True):
        assert (two["group"], two["class"], two["bases"]) == (one["group"], one["class"], one["bases"])
        assert float(two["bits_per_base"]) == pytest.approx(float(one["bits_per_base"]), rel=1e-5)
    assert rows(out, "validation_windows.csv") == rows(alone, "validation_windows.csv")


def test_two_processes_in_chunks_are_one(tmp_path: Path) -> None:
    """Their gradients are summed once a step, after the last chunk of the last pass."""
    flags = [*QUICK, "--max_steps", "3", "--backprop", "chunked", "--chunk", "100"]
    assert cli.run(pretrain.main, [*flags, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "dnamamba.pretrain", *flags, "--devices", "2", "--out", str(tmp_path / "two")]
    assert subprocess.run(command, env=environment(), check=False, timeout=200).returncode == 0
    for two, one in zip(*(rows(tmp_path / name, "metrics.csv") for name in ("two", "one")), strict=True):
        for column in ("tokens", "train_bits_per_base", "gradient_norm", "validation_bits_per_base"):
            assert float(two[column] or 0) == pytest.approx(float(one[column] or 0), rel=1e-5)


ONE_DIES = """
import os, signal, sys, time
import torch
from dnamamba import cli, pretrain

rank, pids = int(os.environ.get("LOCAL_RANK", 0)), sys.argv.pop(1)
dies, how, peers = int(sys.argv.pop(1)), sys.argv.pop(1), sys.argv.pop(1)
open(f"{pids}/{rank}", "w").write(str(os.getpid()))
all_reduce, calls = torch.distributed.all_reduce, 0

def dying(*arguments, **options):
    global calls
    calls += 1
    if calls == 7 and rank == dies:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a fault of ours")
    while calls == 7 and peers == "stuck":  # as within NCCL: no signal ends it, and no error comes
        time.sleep(1)
    return all_reduce(*arguments, **options)

torch.distributed.all_reduce = dying
sys.exit(cli.run(pretrain.main))
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("starter", "dies", "how", "peers", "seconds"),
    [
        ("devices", 1, "killed", "stuck", 20),
        ("devices", 0, "killed", "stuck", 10),
        ("devices", 1, "raises", "gloo", 20),
        pytest.param("torchrun", 1, "killed", "stuck", 60, marks=pytest.mark.slow),
    ],
)
def test_a_dying_rank_ends_the_run(
    starter: str, dies: int, how: str, peers: str, seconds: float, alone: Path, tmp_path: Path
) -> None:
    """Soon, with its name, without orphans, and one process continues as if nothing had been."""
    script, pids, out = tmp_path / "one_dies.py", tmp_path / "pids", tmp_path / "run"
    script.write_text(ONE_DIES)
    pids.mkdir()
    command = [*(TORCHRUN if starter == "torchrun" else []), str(script), str(pids), str(dies), how, peers]
    command += [*QUICK, "--max_steps", "12", "--devices", "2", "--out", str(out)]
    with (tmp_path / "words").open("w") as words:
        process = subprocess.Popen([sys.executable, *command], env=environment(), stdout=words, stderr=words)
        try:
            deadline = time.monotonic() + 120
            while not ((pids / str(dies)).exists() and gone(int((pids / str(dies)).read_text() or os.getpid()))):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            began = time.monotonic()
            code = process.wait(seconds)
            ranks = [int(file.read_text()) for file in pids.iterdir()]
            while not all(map(gone, ranks)):
                assert time.monotonic() < began + seconds, "an orphan"
                time.sleep(0.05)
        finally:
            process.kill()
    said = (tmp_path / "words").read_text()
    assert code == (-signal.SIGKILL if (starter, dies) == ("devices", 0) else 1), said
    if starter == "devices" and dies == 1:
        what = "was killed by SIGKILL" if how == "killed" else "ended with exit code 1"
        assert f"{what}, so the run ends; continue with: python -m dnamamba.pretrain --resume" in said
        assert said.count("Traceback") == (how == "raises"), said
    elif starter == "devices":
        assert "error: rank 1 ends with the process that started it" in said
    assert cli.run(pretrain.main, ["--resume", "--out", str(out), "--devices", "1"]) == 0
    assert weights(out) == weights(alone)


def test_a_signal_stops_both_ranks_with_a_checkpoint(alone: Path, tmp_path: Path) -> None:
    """Exit codes: 128 + the signal's number from the first process, 0 from the others, so that nobody sees a crash."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "dnamamba.pretrain", *QUICK, "--max_steps", "100000", "--out", str(out)]
    processes = [
        subprocess.Popen(
            command, env=environment(**STEP, SLURM_PROCID=rank, SLURM_LOCALID=rank), stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGUSR1)
    said = processes[0].communicate(timeout=60)[0]
    assert processes[1].communicate(timeout=60)[0] == ""
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM, 0]
    assert "continue with: python -m dnamamba.pretrain --resume" in said


@pytest.mark.slow
def test_the_measurements_for_two_gpus_run_on_the_cpu(tmp_path: Path) -> None:
    """`pipelines/two_gpus.py` with a tiny model on gloo: its faults are found without a GPU."""
    out = tmp_path / "two_gpus.json"
    script = Path(__file__).resolve().parent.parent / "pipelines" / "two_gpus.py"
    command = [sys.executable, script, "--accelerator", "cpu", "--seconds", "1", "--scratch", tmp_path, "--out", out]
    subprocess.run(command, check=True, env=environment())
    results = json.loads(out.read_text())
    assert results["equality"]["20 steps, same passes, fp32"]["losses_bit_equal"]
    assert all(death["checkpoint_whole"] for death in results["kill"].values())
    resumed = results["resume"]["on one device"]
    assert resumed["same_windows_in_same_order"] and resumed["weights_bit_equal"]
    assert len(results["scaling"]) == 3
