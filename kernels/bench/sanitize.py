"""compute-sanitizer's memcheck and racecheck over small calls of every GPU kernel, each kind of kernel alone.

    python kernels/bench/sanitize.py [scan conv norm ssd rotary] [--tools memcheck racecheck]

Prints a line a kind and tool; where something was found, what it was and in which kernels. Exit code 1 then, and 2
where there is no GPU or no compute-sanitizer (it comes with the CUDA toolkit).
"""

import argparse
import collections
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare checkout, not installed

import torch
from torch import Tensor

from dnamamba_kernels import causal_conv1d, gated_rms_norm, rms_norm, rotary, selective_scan, ssd_scan

TOOLKIT = "/usr/local/cuda/bin/compute-sanitizer"
DTYPES = torch.bfloat16, torch.float16, torch.float32


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype).requires_grad_()


def every_id(length: int) -> Tensor:
    """Packed sequences of 29 positions."""
    return (torch.arange(length, device="cuda") // 29).to(torch.int32)[None]


def scan() -> int:
    """Forward and backward; aligned rows and others, ids, reverse, zero-order hold; in one pass, a chunk, many."""
    options = (False, False, False), (True, False, False), (True, True, True)
    cases = list(itertools.product(DTYPES, (1, 67, 333), (2, 72, 131), options))
    for dtype, length, channels, (ids, reverse, zoh) in cases:
        rows = {name: normal(1, length, channels, dtype=dtype) for name in ("x", "dt", "z")}
        maps = {name: normal(1, length, 16, dtype=dtype) for name in ("B", "C")}
        vectors = {name: normal(channels) for name in ("D", "dt_bias")}
        A = (-torch.exp(normal(channels, 16).detach())).requires_grad_()
        y, final = selective_scan(
            **rows, **maps, **vectors, A=A, initial_state=normal(1, channels, 16),
            sequence_ids=every_id(length) if ids else None, reverse=reverse,
            discretization="zoh" if zoh else "euler", backend="cuda",
        )  # fmt: skip
        (y.float().sum() + final.sum()).backward()
    return len(cases)


def conv() -> int:
    """Forward and backward; with ids and initial state and without, lengths with and without masks."""
    cases = list(itertools.product(DTYPES, (1, 67, 608), (3, 64, 128, 130), (False, True)))
    for dtype, length, channels, packed in cases:
        state = normal(1, 3, channels, dtype=dtype) if packed else None
        ids = every_id(length) if packed else None
        x, weight, bias = normal(1, length, channels, dtype=dtype), normal(channels, 4), normal(channels)
        y, final = causal_conv1d(x, weight, bias, initial_state=state, sequence_ids=ids)
        (y.float().sum() + final.float().sum()).backward()
    return len(cases)


def norm() -> int:
    """Forward and backward, narrow to wide, with a residual in fp32 and in the activations' dtype; and with a gate."""
    cases = list(itertools.product(DTYPES, (1, 1201), (3, 33, 64, 130, 1024), (False, True)))
    for dtype, rows, width, same in cases:
        x, residual = normal(rows, width, dtype=dtype), normal(rows, width, dtype=dtype if same else torch.float32)
        y, total = rms_norm(x, normal(width), residual=residual)
        (y.float().sum() + total.float().sum()).backward()
        gated_rms_norm(x, normal(rows, width, dtype=dtype), normal(width)).float().sum().backward()
    return 2 * len(cases)


def ssd() -> int:
    """Forward and backward; whole blocks and parts of them, several blocks of a head and of a state, ids and states."""
    sizes = (1, 64, 16), (67, 64, 16), (333, 6, 5), (200, 70, 100)
    cases = list(itertools.product(DTYPES[:2], sizes, (1, 2), (False, True)))
    for dtype, (length, head, state), groups, packed in cases:
        x, steps = normal(2, length, 4, head, dtype=dtype), normal(2, length, 4)
        B, C = (normal(2, length, groups, state, dtype=dtype) for _ in "BC")
        y, final = ssd_scan(
            x, -steps.exp(), steps, B, C, D=None if packed else normal(4),
            initial_state=normal(2, 4, head, state) if packed else None,
            sequence_ids=every_id(length).expand(2, -1) if packed else None,
        )  # fmt: skip
        (y.float().sum() + final.sum()).backward()
    return len(cases)


def rotations() -> int:
    """Forward and backward; heads of powers of two and others."""
    cases = list(itertools.product(DTYPES, (1, 67), (1, 3), (2, 64, 70)))
    for dtype, length, heads, head in cases:
        angles = torch.randn(length, head // 2, device="cuda")
        parts = rotary(normal(2, length, 3, heads, head, dtype=dtype), angles.cos(), angles.sin())
        sum(part.float().square().sum() for part in parts).backward()
    return len(cases)


KINDS = {"scan": scan, "conv": conv, "norm": norm, "ssd": ssd, "rotary": rotations}


def findings(output: str) -> collections.Counter[str]:
    """What the tool says, by kind and kernel, with its counts."""
    found = re.findall(r"^=+ (?:Error: |Warning: )?(.*?(?:hazard|[Rr]ace|Invalid|Misaligned|error).*)$", output, re.M)
    found = [line for line in found if "SUMMARY" not in line]
    return collections.Counter(re.sub(r"\+?0x[0-9a-f]+|\(\d+,\d+,\d+\)|\[\d+ hazards\]", "", line) for line in found)


def main() -> int:
    """Run the kinds of the command line; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)}; all unless said")
    parser.add_argument("--tools", nargs="+", choices=["memcheck", "racecheck"], default=["memcheck", "racecheck"])
    parser.add_argument("--inside", action="store_true", help="make the calls in this process, without a tool")
    given = parser.parse_args()
    kinds = given.kinds or list(KINDS)
    if unknown := sorted(set(kinds) - set(KINDS)):
        parser.error(f"no such kind: {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    if not torch.cuda.is_available():
        print("error: compute-sanitizer needs a GPU, and there is none", file=sys.stderr)
        return 2
    if given.inside:
        for kind in kinds:
            calls = KINDS[kind]()
            torch.cuda.synchronize()
            print(f"{kind}: {calls} calls")
        return 0
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(TOOLKIT)
    if sanitizer is None:
        print(f"error: compute-sanitizer is neither on PATH nor at {TOOLKIT}: install CUDA's toolkit", file=sys.stderr)
        return 2
    bad = 0
    for kind in kinds:
        own = [sys.executable, __file__, kind, "--inside"]
        subprocess.run(own, capture_output=True)  # compiles its kernels, as compilers are slow under the tool
        for tool in given.tools:
            done = subprocess.run([sanitizer, "--tool", tool, *own], capture_output=True, text=True)
            output = done.stdout + done.stderr
            summary = re.search(r"\w+ SUMMARY: .*", output)
            print(f"{kind}, {tool}: {summary[0] if summary else output[-2000:]}", flush=True)
            for line, count in findings(output).most_common(20):
                print(f"  {count} × {line}")
            clean = summary is not None and re.search(r": 0 (errors|hazards)", summary[0]) is not None
            bad += not (clean and done.returncode == 0)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
