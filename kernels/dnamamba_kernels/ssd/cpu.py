"""On the CPU: the reference in fp32, whose matrix products PyTorch already threads and vectorises."""

from dnamamba_kernels.ssd.reference import BACKEND

__all__ = ["BACKEND"]
