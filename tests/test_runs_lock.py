"""One writer a run folder: the second is refused, a dead one's lock taken over, another host known by its beat."""

import errno
import fcntl
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dnamamba import cli, pretrain
from dnamamba.errors import InputError
from dnamamba.runs import lock
from dnamamba.runs.folder import RunFolder
from dnamamba.runs.lock import LOCK, RunLock

HOLD = (
    "import os, sys, time; from pathlib import Path; from dnamamba.runs.lock import RunLock\n"
    "with RunLock(Path(sys.argv[1])) as held:\n"
    "    held.take()\n"
    "    if len(sys.argv) == 2 or os.fork() == 0: print('held', flush=True)\n"  # by a child, as a data loader's worker
    "    time.sleep(60)\n"
)


class Holder:
    """Another process that writes the run."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-c", HOLD, str(folder), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> subprocess.Popen:
        assert self.process.stdout.readline() == b"held\n"
        return self.process

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.5)


def left_by(folder: Path, host: str, age: float = 0.0) -> Path:
    """The record of a process of another host."""
    path = folder / LOCK
    path.write_text(json.dumps({"host": host, "process": 4321, "since": "2026-11-30 12:00:00"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_second_writer_is_refused_by_process_and_host_of_the_first(tmp_path):
    with Holder(tmp_path) as first, RunLock(tmp_path) as second:
        message = rf"process {first.pid} on {platform.node()} \(since 2\d\d\d-.*\) is writing this run; wait for it"
        with pytest.raises(InputError, match=message):
            second.take()
        first.kill()
        first.wait()
        second.take()  # the lock has gone with its process
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path).take()
    assert os.listdir(tmp_path) == []


def test_workers_do_not_keep_the_lock_of_a_killed_run(tmp_path):
    with Holder(tmp_path, "and a worker") as first, RunLock(tmp_path) as second:
        first.kill()
        first.wait()
        second.take()


def test_a_process_of_another_host_lives_as_long_as_it_beats(tmp_path, quick, capsys):
    path = left_by(tmp_path, "other")
    over = threading.Event()
    beats = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: over.wait(0.05), True)])
    beats.start()
    try:
        with pytest.raises(InputError, match=r"process 4321 on other \(since 2026-11-30 12:00:00\) is writing"):
            RunLock(tmp_path).take()
    finally:
        over.set()
        beats.join()
    began = time.monotonic()
    with RunLock(tmp_path) as held:
        held.take()
        assert 0.3 < time.monotonic() - began < 5
        assert json.loads(path.read_text())["process"] == os.getpid()
        assert "waiting to see whether process 4321 on other" in capsys.readouterr().err
        before = path.stat().st_mtime_ns
        time.sleep(0.2)
        assert path.stat().st_mtime_ns > before, "no sign of life"


def test_a_process_of_another_host_that_has_long_been_silent_is_not_waited_for(tmp_path):
    left_by(tmp_path, "other", age=3600)
    began = time.monotonic()
    with RunLock(tmp_path) as held:
        held.take()
    assert time.monotonic() - began < 5


def test_without_locks_of_the_file_system_the_record_decides(tmp_path, quick, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with RunLock(tmp_path) as first:
        first.take()
        with pytest.raises(InputError, match=f"process {os.getpid()} on {platform.node()}"):
            RunLock(tmp_path).take()
    left_by(tmp_path, platform.node(), age=1)
    with RunLock(tmp_path) as held:
        held.take()


@pytest.mark.parametrize("text", ["", "[]", "{", "\0" * 5000, "[" * 4000])
def test_a_damaged_record_is_no_holder(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with RunLock(tmp_path) as held:
        held.take()


def test_a_new_run_is_locked_from_its_first_moment(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.lock:
        folder.create("a: 1\n")
        with pytest.raises(InputError, match=f"run: process {os.getpid()} on"):
            RunFolder(tmp_path / "run").lock.take()
        late = RunFolder(tmp_path / "run")
        with pytest.raises(InputError, match="run: the run folder exists"):
            late.create("b: 2\n")
        assert (tmp_path / "run" / LOCK).is_file()
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "config.yaml"] and os.listdir(tmp_path) == ["run"]


def test_of_two_new_runs_of_one_name_the_later_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "refuse_existing", lambda self: None)  # both have asked before either began
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.lock, second.lock:
        first.create("a: 1\n")
        with pytest.raises(InputError, match="run: cannot make the run folder"):
            second.create("b: 2\n")
        assert first.config.read_text() == "a: 1\n" and os.listdir(tmp_path) == ["run"]


def test_two_resumptions_of_one_run(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("max_steps: 2\n")
    with Holder(run) as first:
        assert cli.run(pretrain.main, ["--resume", "--out", str(run), "--accelerator", "cpu"]) == 2
        assert f"error: {run}: process {first.pid} on {platform.node()}" in capsys.readouterr().err


def test_a_printed_command_is_what_a_shell_takes(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "it's my run; rm *")
    monkeypatch.chdir(tmp_path)
    command = folder.resume_command("pretrain")
    assert shlex.split(command) == ["python", "-m", "dnamamba.pretrain", "--resume", "--out", "it's my run; rm *"]
    monkeypatch.chdir("/")
    assert Path(shlex.split(folder.resume_command("finetune"))[-1]).resolve() == folder.path.resolve()
