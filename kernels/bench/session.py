"""All that a session on a GPU should measure, in one command: GPU tests, sanitizer, benchmarks, host times, steps.

    python kernels/bench/session.py --out results [--skip tests …]

Each part is a process of its own whose output goes into a file under --out next to its CSV and picture; the ends of the
files are printed last. A part that fails does not stop the others, but the exit code then is 1.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = [f"tests/test_{name}.py" for name in ("gpu_scan", "triton_kernels", "triton_steps", "triton_mixers")]


def parts(out: Path) -> dict[str, tuple[list[str], int]]:
    """Each part's command and how many lines of its output matter most, the last ones."""
    bench = ROOT / "kernels" / "bench"
    step, rates = (str(ROOT / "pipelines" / f"{name}.py") for name in ("training_step", "mixer_rates"))
    # Most of the tests' time goes into compiling kernels, which processes share; more than two share too little memory.
    # pytest-benchmark, where it is installed, warns of xdist, and warnings are errors.
    parallel = ["-n", "2", "-p", "no:benchmark"] if importlib.util.find_spec("xdist") else []
    return {
        "tests": (["-m", "pytest", *TESTS, "-m", "gpu", "-q", "-x", *parallel, "--durations", "5"], 12),
        "sanitize": ([str(bench / "sanitize.py")], 40),
        "scan": ([str(bench / "scan.py"), "--backends", "cuda", "--out", str(out)], 12),
        "conv_norm": ([str(bench / "conv_norm.py"), "--out", str(out / "conv_norm.csv")], 50),
        "ssd": ([str(bench / "ssd.py"), "--out", str(out / "ssd.csv")], 8),
        "host": ([str(bench / "host.py")], 5),
        "training_step": ([step, "--out", str(out / "training_step.csv")], 12),
        "mixer_rates": ([rates, "--out", str(out / "mixer_rates.csv")], 26),
        "graph": ([step, "--graph", "--lengths", "1024", "32768", "--out", str(out / "training_step_graph.csv")], 6),
    }


def main() -> None:
    """Run the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV files, pictures and output")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(parts(Path())))
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summaries, failed = [], []
    # a bare checkout, not installed
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    for name, (command, lines) in parts(out).items():
        if name in given.skip:
            continue
        began, log = time.perf_counter(), out / f"{name}.txt"
        with log.open("w") as file:
            done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=file)
        code = done.returncode
        seconds = time.perf_counter() - began
        print(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'} in {seconds:.0f} s", flush=True)
        failed += [name] if code else []
        summaries.append(f"--- {name}\n" + "\n".join(log.read_text().splitlines()[-(40 if code else lines) :]))
    print(*summaries, sep="\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
