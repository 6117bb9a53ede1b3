"""The three switches of a selective scan that every backend gets as one value."""

from typing import NamedTuple


class ScanOptions(NamedTuple):
    """How Δ and B̄ are made and which way time runs."""

    dt_softplus: bool = True
    """Δ = softplus(dt + dt_bias), else Δ = dt + dt_bias."""
    reverse: bool = False
    """Scan from the last position to the first; memory order stays as it is."""
    zoh: bool = False
    """B̄ = (exp(ΔA) − 1)/A · B (zero-order hold), else B̄ = ΔB (euler, Mamba's released code)."""
