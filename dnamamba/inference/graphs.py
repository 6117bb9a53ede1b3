"""Work of a fixed shape, recorded once as a CUDA graph and replayed: no Python and no launches between its kernels."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

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


Record = Callable[[Work, Any], Work]
"""`record`, or what tests put in its place"""


class Recording:
    """A function, called again and again with inputs of the same shapes: a pytree of tensors and of what never changes.

    It reads its inputs from where those of the recording were copied to.
    """

    def __init__(self, function: Callable[..., Any], inputs: Any, record: Record = record, pool: Any = None) -> None:
        self.inputs = kept = copied(inputs)
        self.outputs: Any = None

        def work() -> None:
            self.outputs = function(*kept)

        self._run = record(work, pool)

    def replay(self, inputs: Any) -> Any:
        """The outputs, where they stand until the next replay of a recording with the same pool."""
        for kept, new in zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True):
            if isinstance(kept, Tensor):
                kept.copy_(new)
        self._run()
        return self.outputs


def copied(tree: Any) -> Any:
    """A pytree with tensors of its own."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, tree)


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
