"""mamba-ssm's scan function."""

from torch import Tensor

from dnamamba_kernels import selective_scan
from dnamamba_kernels.checks import compute_dtype


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn`: same names, order, layouts and results.

    Args:
        u, delta, z: (batch, channels, length).
        A: (channels, state), real.
        B, C: (batch, state, length), (batch, groups, state, length) or constant (channels, state).
        D, delta_bias: (channels,).
        delta_softplus: whether Δ = softplus(delta + delta_bias).
        return_last_state: whether to return (out, last_state (batch, channels, state) fp32) instead of out.

    Raises:
        ValueError: as `selective_scan`; A is complex.
    """
    y, last_state = selective_scan(
        _channels_last(u),
        _channels_last(delta),
        A if A.is_complex() else A.to(compute_dtype(u)),
        _map(B),
        _map(C),
        D=D,
        z=None if z is None else _channels_last(z),
        dt_bias=delta_bias,
        dt_softplus=delta_softplus,
    )
    out = y.transpose(1, 2)
    return (out, last_state) if return_last_state else out


def _channels_last(values: Tensor) -> Tensor:
    """(batch, channels, length) → (batch, length, channels) with unit channel stride."""
    return values.transpose(1, 2).contiguous()


def _map(B: Tensor) -> Tensor:
    """(batch[, groups], state, length) → (batch, length[, groups], state); a constant one stays."""
    return B.contiguous() if B.dim() == 2 else B.movedim(-1, 1).contiguous()
