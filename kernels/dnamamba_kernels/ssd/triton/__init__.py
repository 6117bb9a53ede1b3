"""SSD in Triton: any head and state, deterministic (formulas: `reference.py`). Runs on the CPU, too, when
``TRITON_INTERPRET=1`` was set before the import."""

from dnamamba_kernels.ssd.triton.ssd import BACKEND

__all__ = ["BACKEND"]
