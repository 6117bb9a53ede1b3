"""Checkpoints of a run outlive a kill at any point of their writing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dnamamba.formats.checkpoint import load_checkpoint
from dnamamba.model.config import preset
from dnamamba.model.language_model import LanguageModel
from dnamamba.parallel.weights import WholeWeights
from dnamamba.runs.folder import RunFolder
from dnamamba.training.checkpoints import TRAINER_STATE, CheckpointKeeper

ROOT = Path(__file__).resolve().parent.parent
IMPROVED = (True, True, False, True)
"""Whether validation improved at steps 1, 2, …"""


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def crash_at(patch: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Dies before the `number`-th change of the file system; gives a function that says whether it came to that."""
    changes = 0

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes >= number:
                raise Killed
            return change(*arguments, **options)

        return wrapped

    for holder, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
        patch.setattr(holder, name, dying(getattr(holder, name)))
    for name in ("rename", "symlink_to", "unlink", "mkdir", "write_text", "write_bytes"):
        patch.setattr(Path, name, dying(getattr(Path, name)))
    return lambda: changes >= number


def run_steps(folder: Path, model: LanguageModel, last: int) -> None:
    """What `RunControl` does around the keeper: resume from the last checkpoint, save after each step."""
    first, best = 0, None
    if (folder / "last").exists():
        state = json.loads((folder / "last" / TRAINER_STATE).read_text())
        first, best = state["step"], state["best_step"]
    keeper = CheckpointKeeper(folder, keep=2, provenance={})
    keeper.fix_links(best)
    for step in range(first + 1, last + 1):
        best = step if IMPROVED[step - 1] else best
        content = json.dumps({"step": step, "best_step": best})
        trainer = SimpleNamespace(is_global_zero=True, save_checkpoint=lambda path, text=content: path.write_text(text))
        module = SimpleNamespace(model=model, weights=WholeWeights())
        keeper.save(cast(Any, trainer), cast(Any, module), step, 0, {}, best=best == step)


def test_a_kill_before_any_change_of_the_disk_loses_nothing(tmp_path: Path) -> None:
    """Step 4 (a new best; an old one goes) is saved, killed at each point in turn, and resumed from."""
    model = LanguageModel(preset("demo", n_layer=1, d_model=16, d_state=4))
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        run_steps(folder, model, 3)
        with pytest.MonkeyPatch.context() as patch:
            crashed = crash_at(patch, number)
            try:
                run_steps(folder, model, 4)
            except Killed:
                assert crashed()
        for link in ("last", "best"):
            assert (folder / link / TRAINER_STATE).is_file(), f"killed at change {number}"
            load_checkpoint(folder / link)
        run_steps(folder, model, 4)
        assert {path.name for path in folder.iterdir()} == {"last", "best", "step-00000003", "step-00000004"}
        for link in ("last", "best"):
            assert (folder / link).resolve().name == "step-00000004", f"{link}, killed at change {number}"
        if not crashed():
            break
        shutil.rmtree(folder)
    assert number > 15


def test_a_run_folder_has_its_settings_or_does_not_exist(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        folder = RunFolder(tmp_path / str(number) / "run")
        with pytest.MonkeyPatch.context() as patch:
            crashed = crash_at(patch, number)
            try:
                folder.create("seed: 1\n")
            except Killed:
                assert crashed()
        if not crashed():
            break
        assert not folder.path.exists()
    assert number > 3
    assert folder.config.read_text() == "seed: 1\n" and folder.checkpoints.is_dir()


def kill_test(table: Path, kills: int) -> list[str]:
    """The rows of the table of `pipelines/kill_test.py`."""
    command = [sys.executable, ROOT / "pipelines" / "kill_test.py", "--kills", str(kills), "--out", table]
    folders = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": folders}
    done = subprocess.run(
        [*map(str, command), "--scratch", str(table.parent)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit for bit" in done.stdout
    return table.read_text().splitlines()[1:]


def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    assert len(kill_test(tmp_path / "table.csv", 3)) == 3


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed(tmp_path: Path) -> None:
    assert len(kill_test(tmp_path / "table.csv", 20)) == 20
