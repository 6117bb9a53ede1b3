"""A small thread pool for compiled code that releases the interpreter lock.

Not numba's own threads: its workqueue layer aborts when two Python threads use it at once and its OpenMP layer when a
process forked after first use (a DataLoader worker) does. These are plain Python threads, as many as
torch.get_num_threads() says, idle between calls, made anew after a fork.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


def run_tasks(task: Callable[..., None], arguments: Iterable[tuple]) -> None:
    """Call task(*a) for each a, on several threads; which thread takes which must not matter."""
    calls = list(arguments)
    threads = min(torch.get_num_threads(), len(calls))
    if threads == 1:
        for call in calls:
            task(*call)
        return
    for done in [_pool(os.getpid(), threads).submit(task, *call) for call in calls]:
        done.result()


@lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="dnamamba-kernels")
