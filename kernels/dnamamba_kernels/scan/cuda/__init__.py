"""The scan in CUDA C++, compiled at first use by NVRTC."""

from dnamamba_kernels.scan.cuda.scan import BACKEND

__all__ = ["BACKEND"]
