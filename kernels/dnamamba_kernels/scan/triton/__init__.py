"""The portable GPU backend of the scan: Triton kernels, which also run on the CPU when ``TRITON_INTERPRET=1`` was set
before the import of this package, which imports Triton. Launch configurations come from `tiles.py`; nothing is tuned at
run time."""

from dnamamba_kernels.scan.triton.scan import BACKEND

__all__ = ["BACKEND"]
