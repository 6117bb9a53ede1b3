"""The scan on CPU cores, compiled on the user's machine by numba, which is imported at the first scan."""

from dnamamba_kernels.scan.cpu.scan import BACKEND

__all__ = ["BACKEND"]
