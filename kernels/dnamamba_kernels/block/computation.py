"""A block's parameters, options and formulas, without their derivatives."""

import sys
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.block import slices
from dnamamba_kernels.block.slices import Slice
from dnamamba_kernels.checks import compute_dtype
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
    """What lies between in_proj's output and the scan, and is kept or computed again."""

    columns: Tensor
    """x_proj's output (sequences, positions, columns)"""
    x: Tensor | None = None
    """The convolution's output (sequences, positions, channels)"""
    dt: Tensor | None = None
    """dt_proj's output (sequences, positions, channels)"""


class Inner(NamedTuple):
    """A batch, or a slice of one, between in_proj's output and out_proj's input."""

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

    def add_norm(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The norm's output in the options' dtype and the residual stream, (batch, length, d_model) as both inputs, and
        rstd (positions,)."""
        before = None if residual is None else residual.flatten(0, 1)
        rows, dtype = hidden.flatten(0, 1), hidden.dtype if residual is None else residual.dtype
        dtype = compute_dtype(rows) if self.options.residual_in_fp32 else dtype
        u, stream, rstd = self.norm.forward(rows, self.w.norm, before, self.options.eps, dtype)
        return u.to(self.options.dtype).view(hidden.shape), stream.view(hidden.shape), rstd

    def normalised(self, stream: Tensor, rstd: Tensor, each: Slice) -> Tensor:
        """What `add_norm` gave of a slice."""
        rows = each.rows(rstd.view(stream.shape[:2]))
        u = self.norm.normalised(each.rows(stream), self.w.norm, rows, self.options.dtype)
        return u.view(each.of(stream).shape)

    def norm_gradients(
        self,
        stream: Tensor,
        rstd: Tensor,
        du: Tensor,
        dstream: Tensor | None,
        dtypes: tuple[torch.dtype, torch.dtype | None],
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The gradients of both inputs of `add_norm`, whose dtypes are given, and of its weight, from those of its
        outputs."""
        dtype, residual_dtype = dtypes
        passed = None if dstream is None else dstream.flatten(0, 1)
        # Both inputs have the same gradient: one tensor, unless their dtypes differ.
        second = None if residual_dtype == dtype else residual_dtype
        rows, du = stream.flatten(0, 1), du.flatten(0, 1)
        dhidden, dresidual, dweight = self.norm.backward(du, passed, rows, self.w.norm, rstd, dtype, second)
        dhidden = dhidden.view(stream.shape)
        if residual_dtype is None:
            return dhidden, None, dweight
        return dhidden, dhidden if dresidual is None else dresidual.view(stream.shape), dweight

    def project(self, u: Tensor) -> Tensor:
        """in_proj's output (sequences, positions, 2 · channels) of the norm's (sequences, positions, d_model)."""
        return (u.flatten(0, 1) @ self.w.in_proj.t()).view(*u.shape[:2], -1)

    def inner(
        self,
        xz: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        sequence_ids: Tensor | None,
        known: Values | None = None,
        reverse: bool = False,
    ) -> Inner:
        """From in_proj's output (sequences, positions, 2 · channels), and what of the others is `known`. `reverse`
        reads from the last position to the first."""
        w, shape = self.w, xz.shape[:2]
        columns, x, dt = (None,) * 3 if known is None else known
        conv = ConvArguments(xz[..., : self.channels], w.conv, w.conv_bias, conv_state, sequence_ids, "silu", reverse)
        after = None
        if x is None:
            x, after = self.conv(conv.x).forward(conv)
        if columns is None:
            columns = (x.flatten(0, 1) @ w.x_proj.t()).view(*shape, -1)
        if dt is None:
            dt = (columns[..., : self.rank].flatten(0, 1) @ w.dt_proj.t()).view(*shape, -1)
        B, C = self._maps(columns)
        z, kind = xz[..., self.channels :], self.options.discretization
        scan = scan_arguments(
            x, dt, w.A, B, C, w.D, z, w.dt_bias, ssm_state, sequence_ids, reverse=reverse, discretization=kind
        )
        return Inner(Values(columns, x, dt), conv, after, scan)

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
