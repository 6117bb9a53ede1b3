"""Causal convolutions as long as the sequence, by real FFTs: y_t = Σ_{j ≤ t} taps_j x_{t−j}, channel by channel.

The length is padded to twice itself, so that nothing wraps around, and on to a product of small primes. Arithmetic is
fp32 (fp64 for fp64 data): transforms of bf16 would keep two digits of sums over thousands of positions. A transform
takes 8 bytes a padded pair of positions and channel, and two or three are alive at a time; none is kept for the
backward pass, which computes them again.
"""

import math

import torch
from torch import Tensor

from dnamamba.model.precision import full_dtype, without_autocast

_ODD_FACTORS = (1, 3, 5, 9, 15)


def causal_convolution(x: Tensor, taps: Tensor, sequence_ids: Tensor | None = None) -> Tensor:
    """x (batch, length, channels) and taps (channels, at least length) in fp32 or fp64 → y like x, differentiable.

    `sequence_ids` (batch, length) int32: no sum reaches over a change of id. The host then waits for the ids, and
    segments of like length are transformed together, each padded to at most twice its length.
    """
    length = x.shape[1]
    if sequence_ids is None:
        return _convolve(x, taps[:, :length])
    flat = x.flatten(0, 1)
    positions, parts = [], []
    for first, size in _by_size(sequence_ids):
        width = int(size.max())
        position = torch.arange(width)
        index = (first[:, None] + position).clamp(max=len(flat) - 1).to(x.device)
        valid = (position < size[:, None]).to(x.device)
        y = _convolve(flat[index], taps[:, :width])  # what follows a segment reaches nothing in it
        positions.append(index[valid])
        parts.append(y[valid])
    return torch.cat(parts)[torch.cat(positions).argsort()].view_as(x)


def convolution_flops(length: int) -> int:
    """Operations a position and channel: two real transforms of twice the length, of 5 · n log₂ n / 2 operations, and
    the product. The taps' transform is shared by the batch."""
    return 10 * math.ceil(math.log2(2 * length)) + 6


def _by_size(sequence_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """First positions (in the flattened batch) and lengths of all segments, on the host, grouped by powers of two."""
    ids = sequence_ids.cpu()
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    first = starts.flatten().nonzero()[:, 0]
    sizes = torch.diff(first, append=torch.tensor([ids.numel()]))
    powers = (sizes - 1).clamp(min=1).log2().long()
    return [(first[powers == power], sizes[powers == power]) for power in powers.unique()]


def _transform_length(least: int) -> int:
    """The smallest product of few small primes from `least` on."""
    return min(odd << max((-(-least // odd) - 1).bit_length(), 1) for odd in _ODD_FACTORS)


class _Convolution(torch.autograd.Function):
    """Keeps its inputs alone for the backward pass. What a transform and its inverse multiply by is taken off the taps,
    the smallest operand."""

    @staticmethod
    def forward(ctx, x: Tensor, taps: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, taps)
        size = _size(x, taps)
        return _positions(_spectrum(x, size).mul_(torch.fft.rfft(taps, size, norm="forward")), size, x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, taps = ctx.saved_tensors
        size = _size(x, taps)
        spectrum = _spectrum(dy, size)
        dx = dtaps = None
        if ctx.needs_input_grad[0]:
            dx = _positions(spectrum * torch.fft.rfft(taps, size, norm="forward").conj(), size, x)
        if ctx.needs_input_grad[1]:
            # Σ_t dy_t x_{t−j} is a convolution with x from its end, and lag 0 stands at its last position.
            products = spectrum.mul_(_spectrum(x.flip(1), size)).sum(0)
            dtaps = torch.fft.irfft(products, size)[:, x.shape[1] - 1 :][:, : taps.shape[1]]
        return dx, dtaps


def _convolve(x: Tensor, taps: Tensor) -> Tensor:
    with without_autocast(x.device):
        return _Convolution.apply(x, taps)


def _size(x: Tensor, taps: Tensor) -> int:
    return _transform_length(x.shape[1] + taps.shape[1] - 1)


def _spectrum(x: Tensor, size: int) -> Tensor:
    """(batch, length, channels) → (batch, channels, size / 2 + 1) complex; turned, cast and padded in one pass."""
    batch, length, channels = x.shape
    padded = x.new_empty(batch, channels, size, dtype=full_dtype(x))
    padded[..., :length] = x.transpose(1, 2)
    padded[..., length:] = 0
    return torch.fft.rfft(padded)


def _positions(spectrum: Tensor, size: int, like: Tensor) -> Tensor:
    """The way back without its division by `size`: as many positions as `like` has, in its dtype and channels last."""
    values = torch.fft.irfft(spectrum, size, norm="forward")[..., : like.shape[1]]
    return like.new_empty(like.shape).copy_(values.transpose(1, 2))
