"""Outputs whole or not at all, and what a disk that takes no more is reported as."""

import errno
import gzip
import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
from safetensors.numpy import save_file

from dnamamba import outputs
from dnamamba.errors import InputError
from dnamamba.outputs import bgzip_file, partial_name, refuse_existing, whole_file, whole_files, write_table

WRITERS = {
    "x.vcf.gz": "with whole_file(path) as part, bgzip_file(part) as write: [write(os.urandom(99)) for _ in 'x' * 999]",
    "x.npz": "write_arrays({'a': np.random.rand(99999)}, path)",
    "x.parquet": "write_table(polars.DataFrame({'a': np.random.rand(99999)}), path)",
    "x.tsv": "write_table(polars.DataFrame({'a': np.random.rand(99999)}), path)",
    "x.txt": "with whole_file(path) as partial: partial.write_bytes(bytes(99999))",
    "x.pt": "import torch\n    with whole_file(path) as p, p.open('wb') as file: torch.save(torch.zeros(99999), file)",
    "x.safetensors": "import torch; from safetensors.torch import save_file\n"
    "    with whole_file(path) as p: save_file({'a': torch.zeros(99999)}, p)",
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
    assert ended.stderr.splitlines() == [f"error: {tmp_path / name}: File too large"]
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


def no_hard_links(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("hard_links", [True, False])
def test_the_later_of_two_jobs_with_one_output_fails(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    path = tmp_path / "x.tsv"
    with pytest.raises(InputError, match=r"x\.tsv: exists by now, another job"), whole_file(path) as later:  # noqa: PT012
        refuse_existing([path])  # nothing is there when the second begins
        later.write_text("second")
        later.rename(tmp_path / "elsewhere")  # the two are of one process here
        with whole_file(path) as first:
            first.write_text("first")
        (tmp_path / "elsewhere").rename(later)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["x.tsv"]
    with whole_file(path, overwrite=True) as partial:
        partial.write_text("third")
    assert path.read_text() == "third" and os.listdir(tmp_path) == ["x.tsv"]


def test_of_files_that_belong_together_all_appear_or_none(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[2].write_text("mine")
    with pytest.raises(InputError, match="/c: exists by now"), whole_files(paths) as partials:  # noqa: PT012
        for partial in partials:
            partial.write_text("new")
    assert os.listdir(tmp_path) == ["c"] and paths[2].read_text() == "mine"
    with whole_files(paths, overwrite=True) as partials:
        for partial in partials:
            partial.write_text("new")
    assert {path.read_text() for path in paths} == {"new"} and len(os.listdir(tmp_path)) == 3


def test_what_killed_jobs_have_left_goes_with_the_next_job(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from dnamamba.outputs import scratch_folder, whole_file\n"
        "with whole_file(Path(sys.argv[1])) as partial, scratch_folder(partial) as folder:\n"
        "    (folder / 'part').write_text('part'); os.kill(os.getpid(), 9)"
    )
    for name in ("x[1]*.npz", "y" * 250):
        for _ in range(2):
            assert subprocess.run([sys.executable, "-c", code, tmp_path / name]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 8
    path = tmp_path / "x[1]*.npz"
    host = platform.node()
    others = [
        partial_name(tmp_path / "x1.npz").name,  # of another output
        partial_name(path).name.replace(host, f"not-{host}"),  # of another host, whose processes are not seen here
        partial_name(path).name.replace(str(os.getpid()), str(os.getppid())),  # of a process that lives
    ]
    for other in others:
        (tmp_path / other).write_text("theirs")
    refuse_existing([path, tmp_path / ("y" * 250)])
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_every_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "x.safetensors") as partial:
            save_file({"a": np.zeros(3)}, partial)
            assert partial.stat().st_mode & 0o777 == 0o600, "the library's own: for the user alone"
        write_table(polars.DataFrame({"a": [1]}), tmp_path / "x.parquet")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("suffix", [".vcf.gz", ".parquet", ".fa", "." + "s" * 200])
def test_the_longest_name_is_written_and_a_longer_one_refused_at_once(tmp_path, suffix):
    longest = tmp_path / ("ü" * ((255 - len(suffix)) // 2) + suffix)
    refuse_existing([longest])
    with whole_file(longest) as partial:
        partial.write_text("x")
    assert longest.read_text() == "x"
    with pytest.raises(InputError, match="File name too long"):
        refuse_existing([tmp_path / ("n" * (256 - len(suffix)) + suffix)])


def test_a_folder_that_goes_while_the_job_computes_is_one_line(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "x.vcf.gz"
    refuse_existing([path])
    folder.rmdir()
    with pytest.raises(FileNotFoundError) as raised, whole_file(path) as partial, bgzip_file(partial):
        pass
    assert raised.value.filename == str(path)


def test_what_is_no_regular_file_is_never_replaced():
    with pytest.raises(InputError, match=r"/dev/null: is no regular file"):
        refuse_existing([Path("/dev/null")], overwrite=True)


def test_bgzip_is_what_gzip_and_htslib_read(tmp_path):
    import pysam

    rng = np.random.default_rng(0)
    text = rng.bytes(200_000) + b"chr1\t10\n" * 50_000  # the first cannot be compressed
    path = tmp_path / "x.gz"
    with bgzip_file(path) as append:
        for first in range(0, len(text), 77_777):
            append(text[first : first + 77_777])
    packed = path.read_bytes()
    assert gzip.decompress(packed) == text and packed.endswith(outputs.BGZIP_END)
    with pysam.BGZFile(str(path)) as file:
        assert file.read(len(text) + 1) == text
    sizes, start = [], 0
    while start < len(packed):
        assert packed[start : start + 16] == bytes.fromhex("1f8b08040000000000ff060042430200")
        sizes.append(int.from_bytes(packed[start + 16 : start + 18], "little") + 1)
        start += sizes[-1]
    assert start == len(packed) and max(sizes) > 0xFF00 and len(sizes) == -(-len(text) // 0xFF00) + 1
    assert len(packed) < 210_000
