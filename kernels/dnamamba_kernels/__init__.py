"""Kernels of sequence models: scans, causal convolution, norms, rotary positions; PyTorch operators with gradients and
states."""

from dnamamba_kernels.backends import describe
from dnamamba_kernels.block.both_ways import mamba_block_both_ways
from dnamamba_kernels.block.computation import BlockOptions, BlockWeights
from dnamamba_kernels.block.mamba_block import mamba_block
from dnamamba_kernels.context_parallel import Ranks, before_part, context_parallel, current_ranks, enter
from dnamamba_kernels.conv.causal_conv1d import causal_conv1d, causal_conv1d_step
from dnamamba_kernels.gated_norm.gated_rms_norm import gated_rms_norm
from dnamamba_kernels.norm.rms_norm import rms_norm
from dnamamba_kernels.rotary.rotary import rotary
from dnamamba_kernels.scan import phases
from dnamamba_kernels.scan.selective_scan import selective_scan, selective_scan_step
from dnamamba_kernels.ssd.ssd_scan import ssd_scan

__all__ = [
    "BlockOptions",
    "BlockWeights",
    "Ranks",
    "before_part",
    "causal_conv1d",
    "causal_conv1d_step",
    "context_parallel",
    "current_ranks",
    "describe",
    "enter",
    "gated_rms_norm",
    "mamba_block",
    "mamba_block_both_ways",
    "phases",
    "rms_norm",
    "rotary",
    "selective_scan",
    "selective_scan_step",
    "ssd_scan",
]
