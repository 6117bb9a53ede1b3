"""Context parallelism of a run: neighbouring ranks read the same windows, and each a part of their positions.

The ranks are a mesh, (data, context). Those of one row share windows; rows have windows of their own, as single ranks
have without. A part's last base is predicted for the next part's first one, as targets are cut where inputs are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch.distributed.device_mesh import init_device_mesh

from dnamamba.errors import InputError
from dnamamba.model.config import ModelConfig
from dnamamba.model.context_parallel import LEAST, Ranks, context_parallel, mixers_without_parts

Batch = TypeVar("Batch", bound=tuple[Any, ...])
"""A named tuple of tensors (batch, length) or None"""


class SequenceParts:
    """This rank's part of windows that so many `ranks` share; of one rank the windows as they are."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        self._ranks: Ranks | None = None

    def begin(self, device_type: str) -> None:
        """Makes the mesh, as soon as all processes are there; all of them call this."""
        if self.ranks > 1:
            shape = torch.distributed.get_world_size() // self.ranks, self.ranks
            mesh = init_device_mesh(device_type, shape, mesh_dim_names=("data", "context"))
            self._ranks = Ranks(mesh["context"].get_group())

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Forward and backward passes in here are those of whole windows."""
        with context_parallel(self._ranks):
            yield

    def of(self, batch: Batch) -> Batch:
        """The positions of this rank, of windows that begin with their inputs: those of all ranks are about equally
        many."""
        if self._ranks is None:
            return batch
        length, rank = batch[0].shape[1], self._ranks.rank
        here = slice(length * rank // self.ranks, length * (rank + 1) // self.ranks)
        return cast(Any, type(batch))._make(None if field is None else field[:, here].contiguous() for field in batch)


def refuse_parts(config: ModelConfig, ranks: int, devices: int, lengths: list[int], packed: bool) -> None:
    """Raises `InputError` where windows cannot be shared by so many ranks: `lengths` are all that go through the model
    together, of windows or of their chunks."""
    if ranks == 1:
        return
    if devices % ranks:
        raise InputError(f"--context_parallel: {ranks} ranks a window do not divide {devices} devices")
    least = max(LEAST, config.kmer - 1) * ranks
    if (shortest := min(lengths)) < least:
        raise InputError(
            f"--context_parallel: {shortest} bases, a window or the last chunk of one, are too few for {ranks} ranks; "
            f"give fewer ranks, or a --length and --chunk that leave at least {least}"
        )
    if unable := mixers_without_parts(config, packed):
        raise InputError(f"--context_parallel: {unable}; train with one rank a window")
