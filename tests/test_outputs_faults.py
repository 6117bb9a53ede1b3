"""Writing fails at every point in turn: outputs are whole or absent, and one line says where, whichever library writes.

The faults come from `faults.c`, which is compiled here and preloaded into `faults_jobs.py`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(COMPILER is None or platform.system() != "Linux", reason="needs a C compiler, and Linux"),
    pytest.mark.timeout(900),
]

LEAST = {"tracks": 40, "embed npz": 30, "embed parquet": 25, "score vcf.gz": 8, "score parquet": 8, "predict tsv": 8}
LEAST |= {"mutagenesis": 15, "generate": 8, "picture": 8, "run folder": 20, "checkpoint": 20, "kept checkpoint": 50}
"""Points at which each job can fail, as a check that the faults reach it"""


def run(folder: Path, *jobs: str) -> tuple[dict[str, int], list[str]]:
    """How many points of each job have failed, and what was wrong at which of them."""
    shim = folder / "faults.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", shim, HERE / "faults.c", "-ldl"], check=True)
    paths = os.pathsep.join(map(str, (HERE.parent, HERE.parent / "kernels", HERE)))
    ended = subprocess.run(
        [sys.executable, HERE / "faults_jobs.py", folder / "here", *jobs],
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    points: dict[str, int] = {}
    wrong = []
    for line in map(json.loads, ended.stdout.splitlines()):
        if "problem" in line:
            wrong.append(f"{line['job']}: {line['kind']} {line['n']}: {line['problem'][:300]}")
        else:
            points[line["job"]] = points.get(line["job"], 0) + line["points"]
    return points, wrong


def test_outputs_are_whole_or_absent_wherever_writing_fails(tmp_path):
    (tmp_path / "here").mkdir()
    points, wrong = run(tmp_path)
    assert not wrong, "\n".join(wrong)
    assert points.keys() == LEAST.keys()
    assert all(points[job] >= least for job, least in LEAST.items()), points


@pytest.mark.slow
@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_a_run_resumes_wherever_writing_fails(tmp_path, job):
    (tmp_path / "here").mkdir()
    points, wrong = run(tmp_path, job)
    assert not wrong, "\n".join(wrong)
    assert points[job] > 150
