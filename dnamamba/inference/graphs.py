"""Work of a fixed shape, recorded once as a CUDA graph and replayed: no Python and no launches between its kernels."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    # Casts of weights belong to the recording: none is taken from autocast's cache, where it would stay as it was.
    dtype, is_on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    own_casts = torch.autocast("cuda", dtype, enabled=is_on, cache_enabled=False)
    # Of this thread alone: NCCL's and the loader's call CUDA as they please.
    with without_collector(), own_casts, torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        work()
    return graph.replay


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
