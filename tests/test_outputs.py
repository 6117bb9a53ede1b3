"""Outputs whole or not at all, and what a disk that takes no more is reported as."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dnamamba.errors import InputError
from dnamamba.outputs import refuse_existing, whole_file

WRITERS = {
    "x.vcf.gz": "with whole_file(path) as part, bgzip_file(part) as write: [write(os.urandom(99)) for _ in 'x' * 999]",
    "x.npz": "write_arrays({'a': np.random.rand(99999)}, path)",
    "x.parquet": "write_table(polars.DataFrame({'a': np.random.rand(99999)}), path)",
    "x.tsv": "write_table(polars.DataFrame({'a': np.random.rand(99999)}), path)",
    "x.txt": "with whole_file(path) as partial: partial.write_bytes(bytes(99999))",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(tmp_path, name):
    """A limit on the size of files stands for the full disk: writing fails in the middle, by the system."""
    code = (
        "import os, sys; import numpy as np; import polars; from pathlib import Path\n"
        "from dnamamba import cli; from dnamamba.outputs import *; from dnamamba.outputs import bgzip_file\n"
        f"def main(_):\n    path = Path({str(tmp_path / name)!r})\n    {WRITERS[name]}\n"
        "sys.exit(cli.run(main))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2, ended.stderr
    reported = "is the disk full" if name == "x.vcf.gz" else "File too large"
    assert ended.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: ")
    assert reported in ended.stderr
    assert "Traceback" not in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_program_leaves_nothing(tmp_path, number):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from dnamamba import cli; from dnamamba.outputs import whole_file\n"
        "def main(_):\n"
        f"    with whole_file(Path({str(tmp_path / 'x')!r})) as partial:\n"
        "        partial.write_text('half'); print('begun', flush=True); time.sleep(60)\n"
        "sys.exit(cli.run(main))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(number)
        assert process.stderr.read().decode() == f"ended by {number.name}\n"
        assert process.wait() == 128 + number
    assert os.listdir(tmp_path) == []


def test_an_error_of_ours_passes_as_it_is(tmp_path):
    with pytest.raises(OSError, match="no number") as raised, whole_file(tmp_path / "x"):
        raise OSError("no number")
    assert raised.value.errno is None and raised.value.filename is None


def test_a_folder_that_takes_no_file_is_reported_at_once():
    if not Path("/proc/version").exists():
        pytest.skip("no /proc here: as root every other folder can be written")
    with pytest.raises(InputError, match=r"^/proc: no file can be written there"):
        refuse_existing([Path("/proc/x.parquet")])
