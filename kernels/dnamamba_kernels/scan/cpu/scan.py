"""The selective scan on CPU cores: PyTorch tensors in, compiled numba code (`kernels.py`) on a thread pool, tensors
out.

Work is cut into tasks by shape alone (never by the number of threads), and what tasks add up is added in task order,
so the bits do not depend on threads. A whole scan with enough channels is one pass (`forward`, `backward`): each task
takes some channels over the whole length, keeping the state that enters every chunk. With few channels, tasks are
also cut along the length and the scan takes two passes, like the public phases. Half precision is converted to fp32
first. The first call compiles (seconds), later processes load the code from numba's cache: next to this file, else in
the user's cache folder, or where NUMBA_CACHE_DIR says.
"""

import functools
import importlib.util
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients
from dnamamba_kernels.scan.cpu.threads import run_tasks
from dnamamba_kernels.scan.protocol import ScanBackend

CHUNK = 64  # positions between kept states
MAX_CHANNEL_TASKS = 8  # parts of the channels; each has its own sum of dB and dC
ENOUGH_TASKS = 4  # with fewer parts × batch the length is cut, too
LENGTH_TASKS = 8  # parts of the length when it is
SMALLEST_DECAY = 1e-20  # |A| from which on zoh divides by it


class CpuScan(ScanBackend):
    """Data on the CPU in at most fp32, where numba is installed."""

    def supports(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
        if not _has_numba():
            return "numba is not installed: pip install numba, or pass backend='reference'"
        if torch.float64 in (x.dtype, B.dtype, C.dtype):
            return "float64 is not served: pass backend='reference'"
        return None

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        """A tile of the backward pass."""
        return CHUNK

    def chunk_summaries(self, a: ScanArguments, chunk: int) -> tuple[Tensor, Tensor]:
        p = _Problem(a._replace(C=a.B, D=None), chunk)
        dt_sums, ends = p.empty(p.channels), p.empty(*a.A.shape)
        p.forward(p.code.SUMMARIES, a.x, None, None, ends, None, dt_sums)
        return dt_sums, ends

    def propagate(
        self, dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        state = torch.zeros_like(end_states[:, 0]) if initial_state is None else initial_state.clone()
        chunk_states = torch.empty_like(end_states)
        chunks = dt_sums.shape[1]
        alive = dt_sums[..., None].isfinite()
        decays = torch.exp(torch.where(alive, dt_sums[..., None], 0.0) * A)
        for k in range(chunks - 1, -1, -1) if reverse else range(chunks):
            chunk_states[:, k] = state
            state = torch.addcmul(end_states[:, k], decays[:, k], torch.where(alive[:, k], state, 0.0))
        return chunk_states, state

    def chunk_outputs(self, a: ScanArguments, chunk_states: Tensor, chunk: int) -> Tensor:
        p = _Problem(a, chunk)
        y = torch.empty(a.x.shape)
        p.forward(p.code.FROM_STATES, a.x, a.z, y, chunk_states.contiguous(), None, None)
        return y.to(a.x.dtype)

    def backward_summaries(self, a: ScanArguments, dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        p = _Problem(a._replace(B=a.C, D=None), chunk)
        dt_sums, ends = p.empty(p.channels), p.empty(*a.A.shape)
        p.adjoint_summaries(dy, a.z, ends, dt_sums)
        return dt_sums, ends

    def chunk_gradients(
        self, a: ScanArguments, dy: Tensor, chunk_states: Tensor, chunk_adjoints: Tensor, chunk: int
    ) -> ScanGradients:
        p = _Problem(a, chunk)
        return p.backward(p.code.FROM_STATES, dy, a.x, a.z, chunk_states.contiguous(), chunk_adjoints.contiguous())

    def forward(self, a: ScanArguments, chunk: int, keep_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pass, or two where there are few channels. The states are written even if not kept: they are few."""
        p = _Problem(a, chunk)
        if p.few_channels:
            return super().forward(a, chunk, keep_states)
        y, chunk_states, final_state = torch.empty(a.x.shape), p.empty(*a.A.shape), p.state_from(a.initial_state)
        p.forward(p.code.FUSED, a.x, a.z, y, chunk_states, final_state, None)
        return y.to(a.x.dtype), final_state, chunk_states

    def backward(
        self, a: ScanArguments, dy: Tensor, dfinal_state: Tensor | None, kept_states: Tensor, chunk: int
    ) -> tuple[ScanGradients, Tensor]:
        """One pass, or two where there are few channels."""
        p = _Problem(a, chunk)
        if p.few_channels:
            return super().backward(a, dy, dfinal_state, kept_states, chunk)
        adjoint = p.state_from(dfinal_state)
        return p.backward(p.code.FUSED, dy, a.x, a.z, kept_states, adjoint), adjoint


BACKEND = CpuScan()


class _Problem:
    """What all passes over one problem share: the arrays as the compiled code wants them, and the cut into tasks."""

    def __init__(self, a: ScanArguments, chunk: int) -> None:
        _, dt, A, B, C, D, _, dt_bias, _, sequence_ids, options = a
        self.code = _kernels()
        self.dt, self.D, self.dt_bias = dt, D, dt_bias
        self.given_B, self.given_C = B, C
        self.options, self.chunk = options, chunk
        self.batch, self.length, self.channels = dt.shape
        self.states = A.shape[1]
        self.chunks = -(-self.length // chunk)
        self.const_B, self.const_C = B.dim() == 2, C.dim() == 2
        groups = [1 if m.dim() == 2 else m.shape[2] for m in (B, C)]
        # a block must lie in one group of B and one of C: where their numbers differ, both are repeated
        self.groups = math.lcm(*groups)
        B, C = (
            m if m.dim() == 2 or m.shape[2] == self.groups else m.repeat_interleave(self.groups // m.shape[2], dim=2)
            for m in (B, C)
        )
        self.ids = torch.zeros(0, dtype=torch.int32) if sequence_ids is None else sequence_ids.contiguous().view(-1)
        self.has_ids = sequence_ids is not None

        lanes, group_channels = self.code.LANES, self.channels // self.groups
        self.blocks = torch.tensor(
            [
                (group, group * group_channels + start, min(lanes, group_channels - start))
                for group in range(self.groups)
                for start in range(0, group_channels, lanes)
            ],
            dtype=torch.int64,
        )
        lane = torch.arange(lanes)
        self.lane_channels = (self.blocks[:, 1:2] + lane).clamp(max=self.channels - 1)  # (blocks, lanes)
        self.lane_used = lane < self.blocks[:, 2:3]
        parts = min(len(self.blocks), MAX_CHANNEL_TASKS)
        self.few_channels = self.batch * parts < ENOUGH_TASKS and self.chunks > LENGTH_TASKS
        self.channel_parts = _cut(len(self.blocks), parts)

        self.A2 = self._by_state(A * math.log2(math.e))
        self.inverse = self.A2
        if options.zoh:
            tame = torch.where(A.abs() < SMALLEST_DECAY, -SMALLEST_DECAY, A)
            self.A2, self.inverse = self._by_state(tame * math.log2(math.e)), self._by_state(1 / tame)
        self.bias, self.skip = self._by_channel(dt_bias), self._by_channel(D)
        self.sizes = chunk, self.length, self.channels, self.states, options.reverse
        self.parameters = self.blocks.numpy(), self.A2, self.inverse, self.bias, self.skip
        self.rules = self.ids.numpy(), self.has_ids, options.dt_softplus
        self.B_view, self.C_view = self._map_view(B), self._map_view(C)

    def empty(self, *of_chunk: int) -> Tensor:
        """Unset (batch, chunks, …)."""
        return torch.empty(self.batch, self.chunks, *of_chunk)

    def state_from(self, given: Tensor | None) -> Tensor:
        """A copy to write into (batch, channels, state), zeros if none is given."""
        if given is None:
            return torch.zeros(self.batch, self.channels, self.states)
        return given.clone(memory_format=torch.contiguous_format)

    def forward(
        self,
        mode: int,
        x: Tensor,
        z: Tensor | None,
        y: Tensor | None,
        chunk_states: Tensor,
        final_state: Tensor | None,
        dt_sums: Tensor | None,
    ) -> None:
        x_view, dt_view, z_view = _view(x), _view(self.dt), _view(z)
        flags = *self._flags(), None if y is None else True
        outputs = [_flat(t) for t in (y, chunk_states, final_state, dt_sums)]
        run_tasks(
            self.code.forward_blocks,
            (
                (
                    mode, batch, blocks, chunks, *self.sizes, *self.parameters, x_view, dt_view, z_view, z is not None,
                    self.B_view, self.C_view, *self.rules, *flags, *outputs,
                )
                for batch, _, blocks, _, chunks in self._tasks(mode)
            ),
        )  # fmt: skip

    def adjoint_summaries(self, dy: Tensor, z: Tensor | None, ends: Tensor, dt_sums: Tensor) -> None:
        dy_view, dt_view, z_view = _view(dy), _view(self.dt), _view(z)
        run_tasks(
            self.code.adjoint_summaries,
            (
                (
                    batch, blocks, chunks, *self.sizes,
                    self.blocks.numpy(), self.A2, self.bias, dt_view, dy_view, z_view, z is not None, self.C_view,
                    *self.rules, _flag(self.const_C), _flat(ends), _flat(dt_sums),
                )
                for batch, _, blocks, _, chunks in self._tasks(self.code.SUMMARIES)
            ),
        )  # fmt: skip

    def backward(
        self, mode: int, dy: Tensor, x: Tensor, z: Tensor | None, chunk_states: Tensor, adjoints: Tensor
    ) -> ScanGradients:
        shape = self.batch, self.length, self.channels
        dx, ddt = torch.empty(shape), torch.empty(shape)
        dz = None if z is None else torch.empty(shape)
        length_parts = len(_cut(self.chunks, self._length_parts(mode)))
        own = self.batch, length_parts, len(self.blocks)  # each task's own sums, added up below in order
        sums = torch.zeros(*own, 2, self.code.LANES, dtype=torch.float64)
        dA = torch.zeros(*own, self.states, self.code.LANES, dtype=torch.float64)
        const_dB, const_dC = (torch.zeros_like(dA if constant else dA[:0]) for constant in (self.const_B, self.const_C))
        maps = len(self.channel_parts), self.batch, self.length, self.groups, self.states
        dB, dC = (torch.zeros((0,) if constant else maps) for constant in (self.const_B, self.const_C))
        position = self.groups * self.states
        views = [_view(t) for t in (x, self.dt, z, dy)]
        calls = []
        for batch, part, blocks, length_part, chunks in self._tasks(mode):
            offset = (part * self.batch + batch) * self.length * position
            own_sums = [(t[batch, length_part] if len(t) else t).view(-1).numpy() for t in (const_dB, const_dC)]
            calls.append(
                (
                    mode, batch, blocks, chunks, *self.sizes, *self.parameters, *views[:3], z is not None,
                    self.B_view, self.C_view, *self.rules, *self._flags(),
                    views[3], _flat(chunk_states), _flat(adjoints), _flat(dx), _flat(ddt), _flat(dz),
                    _flat(dA[batch, length_part]), _flat(dB), _flat(dC), (offset, position),
                    *own_sums, sums[batch, length_part].numpy(),
                )
            )  # fmt: skip
        run_tasks(self.code.backward_blocks, calls)
        dD, ddt_bias = (self._of_channels(sums[..., kind, :].sum((0, 1))) for kind in (0, 1))
        return ScanGradients(
            dx.to(x.dtype),
            ddt.to(self.dt.dtype),
            self._of_states(dA),
            self._of_states(const_dB) if self.const_B else self._of_map(dB, self.given_B),
            self._of_states(const_dC) if self.const_C else self._of_map(dC, self.given_C),
            None if self.D is None else dD,
            None if dz is None or z is None else dz.to(z.dtype),
            None if self.dt_bias is None else ddt_bias,
        )

    def _flags(self) -> tuple[bool | None, bool | None, bool | None]:
        return _flag(self.const_B), _flag(self.const_C), _flag(self.options.zoh)

    def _length_parts(self, mode: int) -> int:
        return 1 if mode == self.code.FUSED else min(self.chunks, LENGTH_TASKS)

    def _tasks(self, mode: int) -> list[tuple[int, int, tuple[int, int], int, tuple[int, int]]]:
        """(index of the sequence, part of the channels, its blocks, part of the length, its chunks) of each task."""
        return [
            (batch, part, blocks, length_part, chunks)
            for batch in range(self.batch)
            for part, blocks in enumerate(self.channel_parts)
            for length_part, chunks in enumerate(_cut(self.chunks, self._length_parts(mode)))
        ]

    def _by_channel(self, values: Tensor | None) -> Any:
        """(channels,) → flat (blocks, lanes), zero in unused lanes."""
        if values is None:
            return torch.zeros(self.lane_used.numel()).numpy()
        return (values.detach()[self.lane_channels] * self.lane_used).view(-1).numpy()

    def _by_state(self, values: Tensor) -> Any:
        """(channels, state) → flat (blocks, state, lanes), zero in unused lanes."""
        lanes = values.detach()[self.lane_channels] * self.lane_used[..., None]
        return lanes.transpose(1, 2).contiguous().view(-1).numpy()

    def _of_channels(self, lanes: Tensor) -> Tensor:
        """(blocks, lanes) → (channels,)."""
        return lanes[self.lane_used].float()

    def _of_states(self, lanes: Tensor) -> Tensor:
        """(batch, parts, blocks, state, lanes) summed → (channels, state)."""
        return lanes.sum((0, 1)).transpose(1, 2)[self.lane_used].float()

    def _map_view(self, B: Tensor) -> tuple:
        """B or C: flat array and strides (batch, length, groups)."""
        if B.dim() == 2:
            return self._by_state(B), 0, 0, 0
        B = B.detach().float()
        return _span(B), *B.stride()[:3]

    def _of_map(self, gradient: Tensor, like: Tensor) -> Tensor:
        """(parts, batch, length, groups of both, state) summed → the gradient of B or C."""
        return gradient.sum(0).unflatten(2, (like.shape[2], -1)).sum(3).to(like.dtype)


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _kernels() -> ModuleType:
    """The compiled code; numba is imported here, at the first scan."""
    from dnamamba_kernels.scan.cpu import kernels

    return kernels


def _cut(count: int, parts: int) -> list[tuple[int, int]]:
    """[0, count) in nearly equal half-open ranges."""
    return [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def _flag(value: bool) -> bool | None:
    """True or None: compiled code is made for each separately."""
    return True if value else None


def _span(values: Tensor) -> Any:
    """The memory from a tensor's first to its last element as a flat array, whatever its strides."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    return values.as_strided((extent,), (1,)).numpy()


def _view(values: Tensor | None) -> tuple:
    """(batch, length, channels) as flat fp32 array and strides (batch, length)."""
    if values is None:
        values = torch.zeros(1, 1, 1)
    values = values.detach().float()
    return _span(values), values.stride(0), values.stride(1)


def _flat(values: Tensor | None) -> Any:
    return torch.zeros(0).numpy() if values is None else values.view(-1).numpy()
