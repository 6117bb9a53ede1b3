"""What measurements share: calls captured as CUDA graphs, medians of events, kept results, what a figure depends on."""

import csv
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from dnamamba.inference.graphs import record
from dnamamba.outputs import whole_file
from dnamamba_kernels import backends

Result = TypeVar("Result")
Row = dict[str, Any]
"""Column → value."""


class KeptResults:
    """Part → name → result, in a JSON file that is written anew with each of them. Threads may share it."""

    def __init__(self, out: Path, is_writer: bool = True) -> None:
        self.out = out
        self.is_writer = is_writer
        """Of several ranks one is."""
        self.results: dict[str, Row] = json.loads(out.read_text()) if out.exists() else {}
        self.lock = threading.Lock()

    def keep(self, part: str, name: str, measure: Callable[[], Row]) -> bool:
        """One result, unless it is there already: whether it is none of an error, which is a result too, but is tried
        again the next time."""
        known = self.results.setdefault(part, {})
        if name in known and "error" not in known[name]:
            return True
        began = time.perf_counter()
        try:
            found = measure()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        found["wall_seconds"] = round(time.perf_counter() - began, 1)
        with self.lock:
            known[name] = found
            if self.is_writer:
                print(f"[{part}] {name}: {json.dumps(found)}", file=sys.stderr, flush=True)
                self.out.write_text(json.dumps(self.results, indent=1) + "\n")
        return "error" not in found


def captured(run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
    """The call as one CUDA graph, and what it returned: a replay does the GPU's work again, without Python's, and
    writes to the same tensors. The call runs once before."""
    side, results = torch.cuda.Stream(), []
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    replay = record(lambda: results.append(run()))
    return replay, results[0]


def median_ms(run: Callable[[], object], repeats: int, most: float = 2000.0) -> float:
    """Median time of a call by CUDA events, after one call that is not counted. Calls follow one another, `repeats` of
    them, or fewer where they would take more than `most` ms in all; of one longer than that the first counts."""
    first = _event_ms(run, 1)[0]
    repeats = min(repeats, int(most / max(first, 1e-3)))
    return statistics.median(_event_ms(run, repeats)) if repeats else first


def _event_ms(run: Callable[[], object], repeats: int) -> list[float]:
    pairs = []
    for _ in range(repeats):
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        run()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in pairs]


def conditions() -> dict[str, str]:
    """What a time depends on: GPU, versions, backends, and the commit of the checkout that this lies in, if any."""
    commit = ""
    if shutil.which("git") is not None:
        line = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "torch": torch.__version__, "kernels": backends.describe("cuda"), "commit": commit or "unknown"}


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> None:
    """A CSV of rows that have the same columns: these, or those of the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, overwrite=True) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns or rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def kept_rows(path: Path | None) -> list[Row]:
    """Those of a CSV that is there already, of texts: what measurements that go on need not measure again."""
    if path is None or not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    return rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
