"""The portable GPU backend: selective scan, causal convolution and RMSNorm as Triton kernels.

Importing a module of this package imports ``triton``; the same kernels run on the CPU when ``TRITON_INTERPRET=1`` was
set before that import. Launch configurations come from ``tuning.py``; nothing is tuned at run time.
"""
