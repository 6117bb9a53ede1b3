"""What the benchmarks of this folder share."""

import shutil
import statistics
import subprocess
from collections.abc import Callable

import torch


def replay_ms(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call's work on the GPU: the call is captured once and its replays are timed by events."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # its outputs live as long as the graph
    times = []
    for _ in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    del kept
    return statistics.median(begin.elapsed_time(end) for begin, end in times[2:])


def commit() -> str:
    """The checkout's commit, or "unknown"."""
    if shutil.which("git") is None:
        return "unknown"
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"
