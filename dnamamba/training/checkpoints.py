"""Checkpoints of a run: written whole or not at all, the best and the last few kept."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dnamamba.errors import InputError
from dnamamba.formats.checkpoint import write_checkpoint
from dnamamba.outputs import replace_link, whole_folder
from dnamamba.training.module import PretrainModule

TRAINER_STATE = "trainer.ckpt"
"""Lightning's own file inside a checkpoint folder: optimiser, loops, weights. Only `--resume` reads it."""


class TrainerStateIO(TorchCheckpointIO):
    """Lightning's own goes through a copy in memory and one in the folder for temporary files, which is small on many
    machines; here nobody sees the file before it is whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


class CheckpointKeeper:
    """Writes `step-00000100/`, then turns the links `last` and `best` to it, then removes what is no longer needed.

    A crash at any point leaves the links on complete folders: a folder gets its name only when all its files are on
    disk, and a link changes by a rename. What else it may leave, `fix_links` puts right before the run is resumed.
    """

    def __init__(self, folder: Path, *, keep: int, provenance: dict[str, Any]) -> None:
        self.folder, self.keep, self.provenance = folder, keep, provenance
        self.saved_step: int | None = None

    def save(
        self,
        trainer: L.Trainer,
        module: PretrainModule,
        step: int,
        bases: int,
        metrics: dict[str, Any],
        best: bool,
    ) -> None:
        """All ranks call this. `step`, `bases` read so far and `metrics` go into provenance.json. Raises `InputError`
        when the disk is full."""
        target = self._path(step)
        tensors = module.weights.tensors(module.model)
        if not trainer.is_global_zero:
            trainer.save_checkpoint(target / TRAINER_STATE)  # takes part; the first rank writes
            self.saved_step = step
            return
        try:
            with whole_folder(target, overwrite=True) as partial:
                reached = {"step": step, "tokens": bases, "metrics": metrics}
                write_checkpoint(module.model, partial, self.provenance | reached, tensors)
                trainer.save_checkpoint(partial / TRAINER_STATE)
            replace_link(self.folder / "last", target.name)
            if best:
                replace_link(self.folder / "best", target.name)
            self._prune()
        except OSError as error:
            if error.errno is None:
                raise
            raise InputError(
                f"{target}: the checkpoint could not be written ({error.strerror}); the one before it is intact: "
                "free some and continue with --resume"
            ) from error
        self.saved_step = step

    def fix_links(self, best_step: int | None) -> None:
        """What a crash left undone: half-written and surplus checkpoints go, `best` leads to that of `best_step` again.

        Rank 0 calls this once before a run is resumed; `best_step` comes from the checkpoint that it is resumed from.
        """
        for left_over in self.folder.glob(".*"):
            if left_over.is_symlink():
                left_over.unlink()
            else:
                shutil.rmtree(left_over)
        if best_step is not None and (best := self._path(best_step)).is_dir():
            replace_link(self.folder / "best", best.name)
        self._prune()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _prune(self) -> None:
        linked = {(self.folder / name).resolve() for name in ("last", "best")}
        steps = sorted(path for path in self.folder.glob("step-*") if path.is_dir())
        for path in steps[: -self.keep]:
            if path.resolve() not in linked:
                shutil.rmtree(path)
