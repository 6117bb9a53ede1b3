"""The selective scan in Triton: every shape and option, chunk-parallel, deterministic (formulas: `reference.py`).

This module allocates and launches; kernels are in `forward.py`, `backward.py` and `step.py`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from dnamamba_kernels.checks import unit_stride
from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients, ScanOptions
from dnamamba_kernels.scan.protocol import ScanBackend, ScanStep
from dnamamba_kernels.scan.triton import tiles
from dnamamba_kernels.scan.triton.backward import backward_summaries_kernel, chunk_gradients_kernel
from dnamamba_kernels.scan.triton.forward import chunk_outputs_kernel, chunk_summaries_kernel, propagate_kernel
from dnamamba_kernels.scan.triton.step import scan_step
from dnamamba_kernels.triton_common import dtype_refusal, on_device, optional, sum_partials


class TritonScan(ScanBackend, ScanStep):
    """1 to 256 states in bfloat16, float16 and float32, every option; B and C have equally many groups."""

    def supports(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
        if not 1 <= A.shape[1] <= 256:
            return f"the Triton scan takes 1 to 256 states, not {A.shape[1]}"
        if B.dim() == 4 and C.dim() == 4 and B.shape[2] != C.shape[2]:
            return f"the Triton scan takes equal groups for B and C, not {B.shape[2]} and {C.shape[2]}"
        return dtype_refusal(x)

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        return tiles.chunk_length(batch, length, channels, state)

    def chunk_summaries(self, a: ScanArguments, chunk: int) -> tuple[Tensor, Tensor]:
        x, dt, A, B, _, _, _, dt_bias, _, sequence_ids, options = a
        grid = _Grid(x, A, B, B, chunk, backward=False)
        dt_sums, end_states = grid.per_channel(), grid.per_state()
        with on_device(x):
            chunk_summaries_kernel[(grid.tasks,)](
                x, dt, A, B, optional(dt_bias, A), optional(sequence_ids, x), dt_sums, end_states, *grid.sizes,
                *_rows(x), *_rows(dt), *_map_strides(B), *_rows(sequence_ids),
                B_CONSTANT=B.dim() == 2, **_flags(dt_bias, sequence_ids, options), ZOH=options.zoh, **grid.tile,
            )  # fmt: skip
        return dt_sums, end_states

    def propagate(
        self, dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Long sequences go in two levels: segments of chunks from zero, a pass over segments, then all segments from
        their own state."""
        dt_sums, end_states = dt_sums.contiguous(), end_states.contiguous()
        states = torch.empty_like(end_states)
        chunks = end_states.shape[1]
        if chunks <= 2 * tiles.PROPAGATE_SEGMENT:
            return states, _propagate(dt_sums, end_states, A, initial_state, states, chunks, reverse)
        segments = triton.cdiv(chunks, tiles.PROPAGATE_SEGMENT)
        segment_sums = dt_sums.new_empty(dt_sums.shape[0], segments, dt_sums.shape[2])
        ends = end_states.new_empty(end_states.shape[0], segments, *end_states.shape[2:])
        _launch_propagate(
            dt_sums, end_states, A, None, None, segment_sums, ends, tiles.PROPAGATE_SEGMENT, segments, reverse
        )
        entering, _ = self.propagate(segment_sums, ends, A, initial_state, reverse)
        return states, _propagate(dt_sums, end_states, A, entering, states, tiles.PROPAGATE_SEGMENT, reverse)

    def chunk_outputs(self, a: ScanArguments, chunk_states: Tensor, chunk: int) -> Tensor:
        x, dt, A, B, C, D, z, dt_bias, _, sequence_ids, options = a
        grid = _Grid(x, A, B, C, chunk, backward=False)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        with on_device(x):
            chunk_outputs_kernel[(grid.tasks,)](
                x, dt, A, B, C, optional(D, A), optional(z, x), optional(dt_bias, A), optional(sequence_ids, x),
                chunk_states.contiguous(), y, *grid.sizes,
                *_rows(x), *_rows(dt), *_map_strides(B), *_map_strides(C), *_rows(z), *_rows(sequence_ids),
                B_CONSTANT=B.dim() == 2, C_CONSTANT=C.dim() == 2, HAS_D=D is not None, HAS_Z=z is not None,
                **_flags(dt_bias, sequence_ids, options), ZOH=options.zoh, **grid.tile,
            )  # fmt: skip
        return y

    def backward_summaries(self, a: ScanArguments, dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        _, dt, A, _, C, _, z, dt_bias, _, sequence_ids, options = a
        grid = _Grid(dt, A, C, C, chunk, backward=False)
        dt_sums, adjoint_ends = grid.per_channel(), grid.per_state()
        dy = unit_stride(dy)
        with on_device(dy):
            backward_summaries_kernel[(grid.tasks,)](
                dy, dt, A, C, optional(z, dy), optional(dt_bias, A), optional(sequence_ids, dy), dt_sums, adjoint_ends,
                *grid.sizes, *_rows(dy), *_rows(dt), *_map_strides(C), *_rows(z), *_rows(sequence_ids),
                C_CONSTANT=C.dim() == 2, HAS_Z=z is not None, **_flags(dt_bias, sequence_ids, options), **grid.tile,
            )  # fmt: skip
        return dt_sums, adjoint_ends

    def chunk_gradients(
        self, a: ScanArguments, dy: Tensor, chunk_states: Tensor, chunk_adjoints: Tensor, chunk: int
    ) -> ScanGradients:
        """dA, dD and ddt_bias are fp32 sums a chunk, dB and dC a channel block, each then added in a fixed order."""
        x, dt, A, B, C, D, z, dt_bias, _, sequence_ids, options = a
        grid = _Grid(x, A, B, C, chunk, backward=True)
        dy = unit_stride(dy)
        dx, ddt = _like(x), _like(dt)
        dz = None if z is None else _like(z)
        dA, dD, dbias = grid.per_state(), grid.per_channel(), grid.per_channel()
        rows = (grid.blocks, grid.batch, grid.length, grid.groups, grid.state)
        dB, dC = (grid.per_state() if M.dim() == 2 else x.new_empty(rows, dtype=torch.float32) for M in (B, C))
        tile = dict(grid.tile, SPAN=grid.config.span)
        checkpoint_bytes = 4 * triton.cdiv(chunk, grid.config.span) * grid.states_of_program
        programs = max(1, min(grid.tasks, tiles.BACKWARD_PROGRAMS, tiles.CHECKPOINT_BYTES // checkpoint_bytes))
        checkpoints = x.new_empty(programs * checkpoint_bytes // 4, dtype=torch.float32)
        with on_device(x):
            chunk_gradients_kernel[(programs,)](
                dy, x, dt, A, B, C, optional(D, A), optional(z, x), optional(dt_bias, A), optional(sequence_ids, x),
                chunk_states.contiguous(), chunk_adjoints.contiguous(),
                dx, ddt, optional(dz, dx), dA, dB, dC, dD, dbias, checkpoints, *grid.sizes, grid.tasks, grid.batch,
                *_rows(dy), *_rows(x), *_rows(dt), *_map_strides(B), *_map_strides(C), *_rows(z), *_rows(sequence_ids),
                B_CONSTANT=B.dim() == 2, C_CONSTANT=C.dim() == 2, HAS_D=D is not None, HAS_Z=z is not None,
                **_flags(dt_bias, sequence_ids, options), ZOH=options.zoh, **tile,
            )  # fmt: skip
        return ScanGradients(
            dx,
            ddt,
            dA.sum((0, 1)),
            _sum_map(dB, B),
            _sum_map(dC, C),
            None if D is None else dD.sum((0, 1)),
            dz,
            None if dt_bias is None else dbias.sum((0, 1)),
        )

    def step(self, a: ScanArguments) -> tuple[Tensor, Tensor]:
        return scan_step(a)


BACKEND = TritonScan()


def _propagate(
    dt_sums: Tensor,
    end_states: Tensor,
    A: Tensor,
    entering: Tensor | None,
    states: Tensor,
    segment: int,
    reverse: bool,
) -> Tensor:
    """Fill ``states`` from the states that enter the segments; returns the final state (batch, channels, state)."""
    final = end_states.new_empty(end_states.shape[0], *A.shape)
    segments = triton.cdiv(end_states.shape[1], segment)
    entering = None if entering is None else entering.contiguous()
    _launch_propagate(dt_sums, end_states, A, entering, states, None, final, segment, segments, reverse)
    return final


def _launch_propagate(
    dt_sums: Tensor,
    end_states: Tensor,
    A: Tensor,
    entering: Tensor | None,
    states: Tensor | None,
    sums_out: Tensor | None,
    final: Tensor,
    segment: int,
    segments: int,
    reverse: bool,
) -> None:
    batch, chunks, channels, state = end_states.shape
    elements, block = channels * state, 128
    with on_device(end_states):
        propagate_kernel[(batch * segments * triton.cdiv(elements, block),)](
            dt_sums, end_states, A.contiguous(), optional(entering, A), optional(states, final),
            optional(sums_out, final), final, channels, state, chunks, segment, segments, elements,
            HAS_ENTERING=entering is not None, SUMMARIZE=states is None, REVERSE=reverse,
            BLOCK=block, num_warps=4,
        )  # fmt: skip


class _Grid:
    """Tasks of a launch (batch × chunks × groups × channel blocks) and the tile of one program."""

    def __init__(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, backward: bool):
        self.batch, self.length, self.channels = x.shape
        self.state = A.shape[1]
        self.groups = B.shape[2] if B.dim() == 4 else C.shape[2] if C.dim() == 4 else 1
        self.chunks = triton.cdiv(self.length, chunk)
        tile = tiles.backward_tile if backward else tiles.forward_tile
        self.config = tile(self.state, self.channels // self.groups)
        self.blocks = triton.cdiv(self.channels // self.groups, self.config.block_r * self.config.block_c)
        self.tasks = self.batch * self.chunks * self.groups * self.blocks
        self.states_of_program = self.config.block_r * self.config.block_n * self.config.block_c
        self.sizes = (self.length, self.channels, self.state, self.groups, chunk, self.chunks, self.blocks, 0)
        self.tile: dict[str, Any] = {
            "BLOCK_R": self.config.block_r,
            "BLOCK_N": self.config.block_n,
            "BLOCK_C": self.config.block_c,
            "num_warps": 1,
        }
        self.device = x.device

    def per_channel(self) -> Tensor:
        """An unset fp32 tensor (batch, chunks, channels)."""
        return torch.empty((self.batch, self.chunks, self.channels), dtype=torch.float32, device=self.device)

    def per_state(self) -> Tensor:
        """An unset fp32 tensor (batch, chunks, channels, state)."""
        return torch.empty(
            (self.batch, self.chunks, self.channels, self.state), dtype=torch.float32, device=self.device
        )


def _rows(tensor: Tensor | None) -> tuple[int, int]:
    """Batch and row strides; zeros for an absent tensor."""
    return (0, 0) if tensor is None else (tensor.stride(0), tensor.stride(1))


def _map_strides(B: Tensor) -> tuple[int, int, int]:
    """Batch, row and group strides of B or C; of a constant one (channels, state) the channel stride is the row's."""
    return (0, B.stride(0), 0) if B.dim() == 2 else (B.stride(0), B.stride(1), B.stride(2))


def _flags(dt_bias: Tensor | None, sequence_ids: Tensor | None, options: ScanOptions) -> dict[str, bool]:
    return {
        "HAS_BIAS": dt_bias is not None,
        "HAS_IDS": sequence_ids is not None,
        "SOFTPLUS": options.dt_softplus,
        "REVERSE": options.reverse,
    }


def _like(tensor: Tensor) -> Tensor:
    """An unset contiguous tensor of the same shape, dtype and device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _sum_map(partials: Tensor, like: Tensor) -> Tensor:
    """The gradient of B or C: over channel blocks, or over batch and chunks if constant; rounded once."""
    return partials.sum((0, 1)).to(like.dtype) if like.dim() == 2 else sum_partials(partials, like.dtype)
