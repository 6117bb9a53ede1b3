"""What all tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, see dnamamba/cli.py; before torch

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples every time: a failure belongs to the change that shows it. `--hypothesis-seed` draws others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    """Tiny tensors on busy machines: threads would wait for each other longer than they work."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def processes_without_transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes that tests start find a version of transformers too old for torchmetrics, which would import it.

    That took 1.4 s of the 6 s in which such a process imports Lightning; none of them uses it.
    """
    folder = tmp_path_factory.mktemp("old")
    (folder / "transformers-0.dist-info").mkdir()
    (folder / "transformers-0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 0\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        yield
