"""The two phases of the scan, forward and backward, for those who cut the length themselves.

A scan over a long sequence is three steps, the first and last of which are parallel over chunks of the length:

    dt_sums, end_states       = chunk_summaries(…)                 a chunk makes of a state h: exp(A·dt_sum)·h + end
    chunk_states, final_state = propagate(dt_sums, end_states, A)  the state that enters each chunk
    y                         = chunk_outputs(…, chunk_states)

and so is its gradient, against time, with g = dL/d(state):

    dt_sums, adjoint_ends     = backward_summaries(…)
    chunk_adjoints, dinitial  = propagate(dt_sums, adjoint_ends, A, dfinal_state, reverse=not reverse)
    dx, ddt, dA, …            = chunk_gradients(…, chunk_states, chunk_adjoints)

**Context parallelism.** Each rank holds a slice of the length and runs `chunk_summaries` on it. Its slice as a whole
has dt_sum = Σ_k dt_sums[:, k] and, as end state, propagate(…)'s final state from zero. The ranks gather these two
small tensors, stack them as chunks, `propagate` over ranks, and each takes its row as the initial state of its own
`propagate`, then `chunk_outputs`. The gradient is computed likewise, the ranks in the other order; dA, dD and ddt_bias
are then summed over ranks. No phase runs twice (but CUDA's `chunk_gradients` begins with one more pass of outputs,
which rebuilds the states within chunks).
With sequence ids, a rank cannot see the id before its first position: where the id changes at a border, set the
slice's dt_sum (forward: of the later slice; backward too) to +inf, and the state and the adjoint that cross the
border to zero.

**Chunked backpropagation** (a sequence too long for memory) does the same with slices visited one after the other:
states forward, adjoints back.

These functions are not differentiable themselves (they are the derivative's parts) and take `selective_scan`'s
arguments and layouts. `chunk` is the number of positions of a chunk, the last one may be shorter; chunk k holds
positions [k·chunk, (k+1)·chunk) also in reverse, where time runs from the right.
"""

import torch
from torch import Tensor

from dnamamba_kernels import backends
from dnamamba_kernels.checks import check_rows, compute_dtype
from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients, check_decay, check_state, scan_arguments
from dnamamba_kernels.scan.protocol import ScanBackend
from dnamamba_kernels.scan.selective_scan import plan


def default_chunk(x: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backend: str = "auto") -> int:
    """Positions per chunk that the backend's table gives for these shapes."""
    a = scan_arguments(x, x, A, B, C)
    return plan(a.x, a.A, a.B, a.C, backends.requested("scan", backend))[1]


@torch.no_grad()
def chunk_summaries(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    *,
    chunk: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    discretization: str = "euler",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """What each chunk does to a state.

    Returns:
        dt_sums (batch, chunks, channels) fp32, the sum of Δ, +inf where ids change in the chunk or at its entry, so
        that nothing survives it; end_states (batch, chunks, channels, state) fp32, the state after the chunk entered
        with zero. `cuda` leaves out of it what has decayed to less than 2⁻³² by the end of the chunk.
    """
    a = scan_arguments(x, dt, A, B, B, None, None, dt_bias, None, sequence_ids, dt_softplus, reverse, discretization)
    return _choose(backend, a, chunk).chunk_summaries(a, chunk)


@torch.no_grad()
def propagate(
    dt_sums: Tensor,
    end_states: Tensor,
    A: Tensor,
    initial_state: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run over the chunks: h ← exp(A·dt_sum)·h + end_state, from initial_state (batch, channels, state) or zero.

    Returns:
        chunk_states (batch, chunks, channels, state), the state that enters each chunk, and final_state
        (batch, channels, state). With reverse the last chunk in memory comes first.
    """
    if end_states.dim() != 4:
        raise ValueError(f"end_states must be (batch, chunks, channels, state), got {tuple(end_states.shape)}")
    batch, chunks, channels, _ = end_states.shape
    check_decay(A, channels, end_states)
    _check_computed("end_states", end_states, (batch, chunks, *A.shape), "(batch, chunks, channels, state)", end_states)
    _check_computed("dt_sums", dt_sums, (batch, chunks, channels), "(batch, chunks, channels)", end_states)
    check_state("initial_state", initial_state, batch, A, end_states)
    maps = end_states[:, :, :1]  # the chunks are the positions of a scan, with B and C of one group
    chosen: ScanBackend = backends.choose("scan", backends.requested("scan", backend), dt_sums, A, maps, maps)
    return chosen.propagate(dt_sums, end_states, A, initial_state, reverse)


@torch.no_grad()
def chunk_outputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_states: Tensor,
    *,
    chunk: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    discretization: str = "euler",
    backend: str = "auto",
) -> Tensor:
    """y (batch, length, channels) in x's dtype, from the states that enter the chunks."""
    a = scan_arguments(x, dt, A, B, C, D, z, dt_bias, None, sequence_ids, dt_softplus, reverse, discretization)
    _check_chunked("chunk_states", chunk_states, a.x, a.A, chunk)
    return _choose(backend, a, chunk).chunk_outputs(a, chunk_states, chunk)


@torch.no_grad()
def backward_summaries(
    dy: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    *,
    chunk: int,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """What each chunk does to an adjoint that arrives from later in time.

    Returns:
        dt_sums as from `chunk_summaries`, and adjoint_ends (batch, chunks, channels, state) fp32: dL/d(state that
        enters the chunk) if the adjoint of the state that leaves it is zero; `cuda` leaves out likewise.
    """
    a = scan_arguments(dy, dt, A, C, C, None, z, dt_bias, None, sequence_ids, dt_softplus, reverse)
    return _choose(backend, a, chunk).backward_summaries(a, a.x, chunk)


@torch.no_grad()
def chunk_gradients(
    dy: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_states: Tensor,
    chunk_adjoints: Tensor,
    *,
    chunk: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    sequence_ids: Tensor | None = None,
    reverse: bool = False,
    discretization: str = "euler",
    backend: str = "auto",
) -> ScanGradients:
    """All gradients of the scan's arguments, from the states that enter the chunks and dL/d(states that leave them).

    chunk_states come from the forward `propagate`, chunk_adjoints from the one over `backward_summaries`; both
    (batch, chunks, channels, state) fp32.
    """
    a = scan_arguments(x, dt, A, B, C, D, z, dt_bias, None, sequence_ids, dt_softplus, reverse, discretization)
    check_rows("dy", dy, tuple(a.x.shape), "x's shape (batch, length, channels)", a.x)
    _check_chunked("chunk_states", chunk_states, a.x, a.A, chunk)
    _check_chunked("chunk_adjoints", chunk_adjoints, a.x, a.A, chunk)
    found = _choose(backend, a, chunk).chunk_gradients(a, dy, chunk_states, chunk_adjoints, chunk)
    return found._replace(B=found.B.view(B.shape).to(B.dtype), C=found.C.view(C.shape).to(C.dtype))


def _choose(backend: str, a: ScanArguments, chunk: int) -> ScanBackend:
    _check_chunk(chunk)
    return backends.choose("scan", backends.requested("scan", backend), a.x, a.A, a.B, a.C)


def _check_chunk(chunk: int) -> None:
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk}")


def _check_chunked(name: str, states: Tensor, x: Tensor, A: Tensor, chunk: int) -> None:
    _check_chunk(chunk)
    shape = (x.shape[0], -(-x.shape[1] // chunk), *A.shape)
    _check_computed(name, states, shape, "(batch, chunks, channels, state)", x)


def _check_computed(name: str, values: Tensor, shape: tuple[int, ...], meaning: str, x: Tensor) -> None:
    """Check what an earlier phase computed: as `check_rows`, and in the compute dtype."""
    check_rows(name, values, shape, meaning, x)
    if values.dtype != compute_dtype(x):
        raise ValueError(f"{name} must be {compute_dtype(x)}, got {values.dtype}: call .to({compute_dtype(x)})")
