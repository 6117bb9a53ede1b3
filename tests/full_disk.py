"""A disk that has no room for a checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest


def disk_is_full(patch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """Writing the trainer's part of a checkpoint fails at the steps that `when` says."""
    import lightning

    save = lightning.Trainer.save_checkpoint

    def save_where_there_is_room(self: lightning.Trainer, *rest: Any, **options: Any) -> None:
        if when(self.global_step):
            raise OSError(28, "No space left on device")
        save(self, *rest, **options)

    patch.setattr(lightning.Trainer, "save_checkpoint", save_where_there_is_room)
