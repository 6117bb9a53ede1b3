"""The scan's arguments as one value: what the public functions check, and what backends get."""

from typing import NamedTuple

from torch import Tensor

from dnamamba_kernels.checks import check_rows, check_sequence_ids, compute_dtype

MAX_STATE = 256


class ScanOptions(NamedTuple):
    """How Δ and B̄ are made and which way time runs."""

    dt_softplus: bool = True
    """Δ = softplus(dt + dt_bias), else Δ = dt + dt_bias."""
    reverse: bool = False
    """Scan from the last position to the first; memory order stays as it is."""
    zoh: bool = False
    """B̄ = (exp(ΔA) − 1)/A · B (zero-order hold), else B̄ = ΔB (euler, Mamba's released code)."""


class ScanArguments(NamedTuple):
    """The arguments of a scan, as `scan_arguments` has checked them.

    "Parameters" are fp32, or fp64 for fp64 data. A step (`ScanStep`) has the same fields without the length.
    """

    x: Tensor
    """(batch, length, channels)"""
    dt: Tensor
    """x's shape"""
    A: Tensor
    """(channels, state), a parameter"""
    B: Tensor
    """(batch, length, groups, state), or constant (channels, state), then a parameter"""
    C: Tensor
    """as B"""
    D: Tensor | None
    """(channels,), a parameter"""
    z: Tensor | None
    """x's shape"""
    dt_bias: Tensor | None
    """(channels,), a parameter"""
    initial_state: Tensor | None
    """(batch, channels, state) in the parameters' dtype"""
    sequence_ids: Tensor | None
    """(batch, length) int32"""
    options: ScanOptions


class ScanGradients(NamedTuple):
    """Gradients of a scan's arguments, each in its argument's shape and dtype; None where the argument was absent."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None


def scan_options(dt_softplus: bool, reverse: bool, discretization: str) -> ScanOptions:
    """The options as one value; ValueError for an unknown discretization."""
    if discretization not in ("euler", "zoh"):
        raise ValueError(f"discretization must be 'euler' or 'zoh', got {discretization!r}")
    return ScanOptions(dt_softplus, reverse, discretization == "zoh")


def check_decay(A: Tensor, channels: int, x: Tensor) -> None:
    """Check A (channels, state): real, fp32 (fp64 for fp64 data), at most MAX_STATE states."""
    if A.is_complex():
        raise ValueError("A must be real: complex A (S4D) is not served by selective_scan")
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A must be (channels={channels}, state), got {tuple(A.shape)}")
    if not 1 <= A.shape[1] <= MAX_STATE:
        raise ValueError(f"state must be 1…{MAX_STATE}, got {A.shape[1]}")
    if A.dtype != compute_dtype(x):
        raise ValueError(f"A must be {compute_dtype(x)}, got {A.dtype}: call .to({compute_dtype(x)})")
    if A.device != x.device:
        raise ValueError(f"A is on {A.device}, x on {x.device}: move one of them")


def canonical_map(name: str, B: Tensor, batch: int, length: int | None, channels: int, x: Tensor, state: int) -> Tensor:
    """B or C as (batch, length, groups, state), or as contiguous (channels, state) in the compute dtype if constant.

    With length None (one token) the length dimension is absent.
    """
    lead, meaning = ((batch,), "(batch") if length is None else ((batch, length), "(batch, length")
    if (B.dim() == 2 and len(lead) == 2) or (B.dim() == 2 and tuple(B.shape) != (batch, state)):
        check_rows(name, B, (channels, state), "(channels, state), being constant,", x)
        return B.to(compute_dtype(x)).contiguous()
    if B.dim() == len(lead) + 1:
        check_rows(name, B, (*lead, state), f"{meaning}, state)", x)
        return B.unsqueeze(-2)
    if B.dim() != len(lead) + 2:
        raise ValueError(f"{name} must be {meaning}[, groups], state) or (channels, state), got {tuple(B.shape)}")
    groups = B.shape[-2]
    check_rows(name, B, (*lead, groups, state), f"{meaning}, groups, state)", x)
    if groups < 1 or channels % groups:
        raise ValueError(f"{name} has {groups} groups, which do not divide {channels} channels")
    return B


def canonical_vector(name: str, values: Tensor | None, channels: int, x: Tensor) -> Tensor | None:
    """D or dt_bias (channels,) in the compute dtype."""
    if values is None:
        return None
    check_rows(name, values, (channels,), "(channels,)", x)
    return values.to(compute_dtype(x))


def check_state(name: str, state: Tensor | None, batch: int, A: Tensor, x: Tensor) -> None:
    """Check a state (batch, channels, state) in the compute dtype."""
    if state is None:
        return
    check_rows(name, state, (batch, *A.shape), "(batch, channels, state)", x)
    if state.dtype != compute_dtype(x):
        raise ValueError(f"{name} must be {compute_dtype(x)}, got {state.dtype}: call .to({compute_dtype(x)})")


def scan_arguments(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    sequence_ids: Tensor | None = None,
    dt_softplus: bool = True,
    reverse: bool = False,
    discretization: str = "euler",
) -> ScanArguments:
    """Check everything; ValueError says which argument is wrong, what was expected and what to do."""
    if x.dim() != 3:
        raise ValueError(f"x must be (batch, length, channels), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")
    batch, length, channels = x.shape
    shape, meaning = tuple(x.shape), "x's shape (batch, length, channels)"
    check_rows("x", x, shape, meaning, x)
    check_rows("dt", dt, shape, meaning, x)
    if z is not None:
        check_rows("z", z, shape, meaning, x)
    check_decay(A, channels, x)
    check_state("initial_state", initial_state, batch, A, x)
    check_sequence_ids(sequence_ids, x)
    return ScanArguments(
        x,
        dt,
        A,
        canonical_map("B", B, batch, length, channels, x, A.shape[1]),
        canonical_map("C", C, batch, length, channels, x, A.shape[1]),
        canonical_vector("D", D, channels, x),
        z,
        canonical_vector("dt_bias", dt_bias, channels, x),
        initial_state,
        sequence_ids,
        scan_options(dt_softplus, reverse, discretization),
    )
