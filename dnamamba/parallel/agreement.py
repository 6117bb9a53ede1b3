"""All ranks of a run have the same settings: else they would wait for one another in different operations."""

from typing import Any

import torch

from dnamamba.errors import InputError


def refuse_disagreement(mine: dict[str, Any]) -> None:
    """Raises `InputError` on all ranks where one's settings, by dotted names, differ from the first's: which, and how.
    All call this, once the processes are there."""
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return
    found: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(found, mine)
    for rank, other in enumerate(found[1:], start=1):
        for name in sorted(found[0].keys() | other.keys()):
            first, here = found[0].get(name), other.get(name)
            if first != here:
                raise InputError(
                    f"--{name}: {here} on rank {rank}, but {first} on rank 0; give all processes the same flags"
                )
