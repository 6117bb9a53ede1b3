"""Runs a function in several processes that make a gloo group, for tests of what ranks do together."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

PRELOADED = [
    "torch.distributed",
    "dnamamba.model.language_model",
    "dnamamba.model.mixers.bimamba",
    "dnamamba.training.run",
]
"""Imported once, by the process that all others are forked from"""

PATIENCE = 300
"""Seconds"""


def run_ranks(ranks: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(rank, …)` in each of so many processes; what they return, by rank. The first failure is raised."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, results, work, arguments), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        found_by_rank = {}
        for _ in processes:
            rank, value, error = results.get(timeout=PATIENCE)
            assert error is None, f"rank {rank}: {error}"
            found_by_rank[rank] = value
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [found_by_rank[rank] for rank in range(ranks)]


def _rank(rank: int, ranks: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
        value = work(rank, *arguments)
        torch.distributed.destroy_process_group()
        results.put((rank, value, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
