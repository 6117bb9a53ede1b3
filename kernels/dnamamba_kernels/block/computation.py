"""A block's parameters, options and formulas, without their derivatives."""

import sys
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.block import slices
from dnamamba_kernels.context_parallel import current_ranks
from dnamamba_kernels.conv.protocol import ConvArguments, ConvBackend
from dnamamba_kernels.norm.protocol import NormBackend
from dnamamba_kernels.scan.arguments import ScanArguments, scan_arguments
from dnamamba_kernels.scan.protocol import ScanBackend
from dnamamba_kernels.scan.selective_scan import plan


class BlockWeights(NamedTuple):
    """The parameters of a block, in any floating dtype; A is negative."""

    norm: Tensor
    """(d_model,)"""
    in_proj: Tensor
    """(2 · channels, d_model): x first, then the gate z"""
    conv: Tensor
    """(channels, width), the newest input's tap last"""
    conv_bias: Tensor | None
    """(channels,)"""
    x_proj: Tensor
    """(columns, channels): the step's low rank, then B and C unless they are constant"""
    dt_proj: Tensor
    """(channels, rank)"""
    dt_bias: Tensor
    """(channels,)"""
    A: Tensor
    """(channels, state)"""
    B: Tensor | None
    """(channels, state) where it is constant"""
    C: Tensor | None
    """as B"""
    D: Tensor
    """(channels,)"""
    out_proj: Tensor
    """(d_model, channels)"""


class BlockOptions(NamedTuple):
    """How a block computes."""

    recompute: Literal["none", "cheap", "all"]
    """What the backward pass computes again (`dnamamba_kernels.block.mamba_block`)"""
    dtype: torch.dtype
    """Of the matrix products and what they give; parameters of other dtypes are cast to it"""
    eps: float
    """Of the norm"""
    residual_in_fp32: bool
    discretization: str


class Values(NamedTuple):
    """What lies between a block's first and last product and is kept or computed again."""

    columns: Tensor
    """x_proj's output (sequences, positions, columns)"""
    xz: Tensor | None = None
    """in_proj's output (sequences, positions, 2 · channels)"""
    x: Tensor | None = None
    """The convolution's output (sequences, positions, channels)"""
    dt: Tensor | None = None
    """dt_proj's output (sequences, positions, channels)"""


class Inner(NamedTuple):
    """A batch, or a slice of one, between a block's first and last product."""

    values: Values
    conv: ConvArguments
    conv_state: Tensor | None
    """after the last position, where the convolution was computed"""
    scan: ScanArguments


class Computation:
    """A block's formulas, with its weights cast and the backends that its data take."""

    def __init__(
        self, weights: BlockWeights, options: BlockOptions, rows: Tensor, requested: dict[str, str] | None = None
    ) -> None:
        """`rows` (positions, d_model) are the data, by which a backend of the norm is chosen. `requested` are the
        backends by their operators, in a backward pass those of its forward pass; None takes what is preferred now."""
        self.requested = requested or {name: backends.requested(name, "auto") for name in ("norm", "conv", "scan")}
        names = "in_proj", "x_proj", "dt_proj", "out_proj"
        self.w = weights._replace(**{name: getattr(weights, name).to(options.dtype) for name in names})
        self.options = options
        self.channels, self.state = weights.A.shape
        self.rank = weights.dt_proj.shape[1]
        self.back = weights.conv.shape[1] - 1
        self.most = max(slices.LARGEST[options.recompute] // self.channels, 1)
        if current_ranks() is not None:  # their parts, of different lengths, are not cut: all have as many slices
            self.most = sys.maxsize
        self.norm: NormBackend = backends.choose("norm", self.requested["norm"], rows)

    def inner(
        self,
        u: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        sequence_ids: Tensor | None,
        known: Values | None = None,
    ) -> Inner:
        """From the norm's output (sequences, positions, d_model), and what of the others is `known`."""
        w, shape = self.w, u.shape[:2]
        columns, xz, x, dt = (None,) * 4 if known is None else known
        if xz is None:
            xz = (u.flatten(0, 1) @ w.in_proj.t()).view(*shape, -1)
        conv = ConvArguments(xz[..., : self.channels], w.conv, w.conv_bias, conv_state, sequence_ids, "silu", False)
        after = None
        if x is None:
            x, after = self.conv(conv.x).forward(conv)
        if columns is None:
            columns = (x.flatten(0, 1) @ w.x_proj.t()).view(*shape, -1)
        if dt is None:
            dt = (columns[..., : self.rank].flatten(0, 1) @ w.dt_proj.t()).view(*shape, -1)
        B, C = self._maps(columns)
        z, kind = xz[..., self.channels :], self.options.discretization
        scan = scan_arguments(x, dt, w.A, B, C, w.D, z, w.dt_bias, ssm_state, sequence_ids, discretization=kind)
        return Inner(Values(columns, xz, x, dt), conv, after, scan)

    def _maps(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """B and C of x_proj's output, those that vary as views."""
        varying = columns[..., self.rank :]
        B = varying[..., : self.state] if self.w.B is None else self.w.B
        C = varying[..., -self.state :] if self.w.C is None else self.w.C
        return B, C

    def conv(self, x: Tensor) -> ConvBackend:
        """The backend of the convolution."""
        return backends.choose("conv", self.requested["conv"], x)

    def scan(self, a: ScanArguments) -> tuple[ScanBackend, int]:
        """The backend of the scan, and positions between the states that it keeps."""
        return plan(a.x, a.A, a.B, a.C, self.requested["scan"])
