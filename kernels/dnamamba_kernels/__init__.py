"""Kernels of selective state space models: scan, causal convolution, norm; PyTorch operators with gradients and
states."""

from dnamamba_kernels.backends import describe
from dnamamba_kernels.conv.causal_conv1d import causal_conv1d, causal_conv1d_step
from dnamamba_kernels.norm.rms_norm import rms_norm
from dnamamba_kernels.scan import phases
from dnamamba_kernels.scan.selective_scan import selective_scan, selective_scan_step

__all__ = [
    "causal_conv1d",
    "causal_conv1d_step",
    "describe",
    "phases",
    "rms_norm",
    "selective_scan",
    "selective_scan_step",
]
