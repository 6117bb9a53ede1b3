"""On the CPU: the reference in fp32, which PyTorch already threads and vectorises."""

from dnamamba_kernels.rotary.reference import BACKEND

__all__ = ["BACKEND"]
