"""Work of a fixed shape, recorded once as a CUDA graph and replayed: no Python and no launches between its kernels."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

Work = Callable[[], None]
"""Queues kernels; takes its inputs from tensors that stay where they are, and leaves its results in such."""


def record(work: Work, pool: Any = None) -> Work:
    """The kernels that `work` queues are recorded and not run; each call of what is returned runs them.

    `work` has run before, so that its kernels are compiled, and nothing in it makes the host wait. The memory that it
    takes in between stays its own until the recording is freed. Recordings with one `pool`, a handle of torch's, share
    that memory: none may leave there what is read after another ran.
    """
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: NCCL's and the loader's call CUDA as they please.
    recording = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    with without_collector(), own_casts("cuda"), recording:
        work()
    return graph.replay


def own_casts(device_type: str) -> AbstractContextManager[Any]:
    """Within it autocast, if it is on, casts weights anew at each use: one from its cache would stay as it was in a
    recording, and hold on to the stream on which it was made."""
    dtype, is_on = torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, dtype, enabled=is_on, cache_enabled=False)


@contextmanager
def without_collector() -> Iterator[None]:
    """Python's collector runs before the block and not within: that it frees another graph ends a recording."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
