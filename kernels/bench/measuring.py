"""What the benchmarks of this folder share."""

import shutil
import subprocess


def commit() -> str:
    """The checkout's commit, or "unknown"."""
    if shutil.which("git") is None:
        return "unknown"
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or "unknown"
