"""What all tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, see dnamamba/cli.py; before torch

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
