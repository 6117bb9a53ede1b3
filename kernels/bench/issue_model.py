"""Cycles an element of a kernel of the CUDA scan, from its machine code alone: no GPU.

    python kernels/bench/issue_model.py scan_forward scan_whole --set POLYNOMIAL_OUTPUT=2

Needs nvcc; nvdisasm comes with Triton. Takes the longest loop that holds no other one and runs it with 1, 2 and 3 warps
a scheduler: warps issue in order, when the stall count of the instruction before has passed and the barriers that it
waits for are clear, both as the compiler wrote them. A special-function instruction keeps its unit for 8 cycles and the
scheduler from issuing for 3, and nothing queues before it; these and the latencies are the values with which the model
agrees best (2.8 % root mean square) with 54 timings of a scan's inner loop on an H200, 9 to 22 cycles an element:
LOG.md, 2026-11-28. It leaves out what lies outside that loop, memory, and uneven ends of blocks; on GPUs those added
0.8 to 1 cycle an element.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import triton

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dnamamba_kernels.scan.cuda import nvrtc, plan

ELEMENTS = {"scan_forward": 128, "scan_whole": 128, "scan_adjoints": 128, "scan_gradients": 32}
"""(position, channel, state) triples of a thread in an iteration of the loop"""
LAYER = {"DATA": 1, "ALIGNED": 1, "WIDE": 1, "STATE": 16, "SOFTPLUS": 1, "ZOH": 0, "HAS_Z": 1, "HAS_D": 1, "HAS_IDS": 0}
OTHER, SPECIAL, SHARED, SHARED_16, INTEGER, BRANCH = range(6)
UNITS = {
    "MUFU": SPECIAL,
    **dict.fromkeys(("LDS", "STS", "LDGSTS", "STG", "LDG", "SHFL", "S2R"), SHARED),
    **dict.fromkeys(("LEA", "FMNMX", "SHF", "LOP3", "IADD3", "FSEL", "ISETP", "PRMT", "SEL", "FSETP", "F2FP"), INTEGER),
    "BRA": BRANCH,
}
ITERATIONS, WARM_UP = 14, 2


class Instruction(NamedTuple):
    """A line of machine code with the control bits of its upper word (bits 41 on)."""

    text: str
    stall: int
    sets: tuple[int, int]
    """barriers that clear when its result is there, and when its operands have been read; 7 for none"""
    waits: int
    """mask of the barriers that must be clear"""

    @property
    def opcode(self) -> str:
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @property
    def unit(self) -> int:
        unit = UNITS.get(self.opcode.split(".")[0], OTHER)
        return SHARED_16 if unit == SHARED and self.opcode.startswith("LDS.128") else unit


def machine_code(kernel: str, switches: dict[str, int]) -> str:
    """nvdisasm's listing for sm_90; CalledProcessError if nvcc fails."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "scan.cu"), Path(folder, "scan.cubin")
        source.write_text(plan.source())
        flags = "-cubin", "-arch=sm_90", *nvrtc.LANGUAGE, *plan.defines(kernel, switches)
        subprocess.run(["nvcc", *flags, source, "-o", cubin], check=True)
        return subprocess.run([nvdisasm, "-hex", cubin], check=True, capture_output=True, text=True).stdout


def main_loops(listing: str, least: int) -> list[list[Instruction]]:
    """The loops that hold no other one and at least so many special instructions, in the order of the code."""
    lines, code, labels = listing.splitlines(), [], {}
    for line, following in itertools.pairwise(lines):
        if match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = len(code)
        elif (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line)) and (
            word := re.search(r"0x\w{16}", following)
        ):
            bits = int(word[0], 16) >> 41
            code.append(Instruction(match[1], bits & 15, (bits >> 5 & 7, bits >> 8 & 7), bits >> 11 & 63))
    loops = [
        (labels[match[1]], end)
        for end, instruction in enumerate(code)
        if (match := re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction.text)) and labels[match[1]] < end
    ]
    inner = [(a, b) for a, b in loops if not any((a, b) != (c, d) and a <= c and d <= b for c, d in loops)]
    found = [code[begin : end + 1] for begin, end in sorted(inner)]
    return [loop for loop in found if sum(instruction.unit == SPECIAL for instruction in loop) >= least]


@numba.njit
def waiting(clear: np.ndarray, mask: int, now: int) -> bool:
    """Is one of the barriers of the mask not clear yet?"""
    latest = now
    for barrier in range(6):
        if mask >> barrier & 1:
            latest = max(latest, clear[barrier])
    return latest > now


@numba.njit
def cycles(rows: np.ndarray, warps: int) -> int:
    """Cycles of a scheduler for ITERATIONS − WARM_UP iterations of each warp; rows: unit, stall, two barriers, mask."""
    at, done_by, ready = np.zeros(warps, np.int64), np.zeros(warps, np.int64), np.arange(warps) * 37
    clear = np.zeros((warps, 8), np.int64)
    special_free = shared_free = integer_free = port_free = now = last = done = begun = 0
    while done < warps:
        for k in range(warps):
            w = (last + k) % warps
            unit, stall, result, read, mask = rows[at[w]]
            if now < port_free or done_by[w] == ITERATIONS or ready[w] > now:
                continue
            if waiting(clear[w], mask, now):
                continue
            if unit == SPECIAL:
                if special_free > now:
                    continue
                special_free, port_free, clear[w, result], clear[w, read] = now + 8, now + 3, now + 16, now + 6
            elif unit in (SHARED, SHARED_16):
                if shared_free > now:
                    continue
                shared_free = now + (4 if unit == SHARED_16 else 2)
                clear[w, result], clear[w, read] = now + 30, now + 8
            elif unit == INTEGER:
                if integer_free > now:
                    continue
                integer_free = now + 2
            ready[w] = now + max(stall, 1) + (8 if unit == BRANCH else 0)
            at[w] += 1
            if at[w] == len(rows):
                at[w], done_by[w] = 0, done_by[w] + 1
                begun = now if w == 0 and done_by[w] == WARM_UP else begun
                done += done_by[w] == ITERATIONS
            last = w
            break
        now += 1
    return now - begun


def main() -> None:
    """Print a line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="+", choices=ELEMENTS, metavar="KERNEL", help=", ".join(ELEMENTS))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other compile-time switches")
    given = parser.parse_args()
    switches = {**LAYER, **plan.CUT, **{name: int(value) for name, value in (pair.split("=") for pair in given.set)}}
    for kernel in given.kernels:
        elements = ELEMENTS[kernel]
        for loop in main_loops(machine_code(kernel, switches), elements // 2):
            special = sum(instruction.unit == SPECIAL for instruction in loop)
            rows = np.array([(i.unit, i.stall, *i.sets, i.waits) for i in loop], np.int64)
            times = (cycles(rows, warps) / ((ITERATIONS - WARM_UP) * warps * elements) for warps in (1, 2, 3))
            print(
                f"{kernel}: {len(loop) / elements:.2f} instructions, {special / elements:.2f} special ones an element;",
                f"cycles with 1, 2, 3 warps a scheduler {', '.join(f'{time:.2f}' for time in times)}",
            )


if __name__ == "__main__":
    main()
