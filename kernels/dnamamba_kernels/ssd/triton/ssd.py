"""SSD in Triton: this module allocates and launches; kernels are in `forward.py` and `backward.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnamamba_kernels.ssd.protocol import SSDArguments, SSDBackend, SSDGradients
from dnamamba_kernels.ssd.triton.backward import head_gradients_kernel, map_gradients_kernel
from dnamamba_kernels.ssd.triton.forward import chunk_states_kernel, outputs_kernel, propagate_kernel
from dnamamba_kernels.triton_common import dtype_refusal, on_device, optional, sum_rows

CHUNK = 64
"""Positions of a chunk, at most"""
SEGMENT = 512
"""Chunks over which a program hands states on; more than twice as many go in two levels."""


class TritonSSD(SSDBackend):
    """bfloat16, float16 and float32 on a GPU."""

    def supports(self, x: Tensor, B: Tensor) -> str | None:
        return dtype_refusal(x)

    def forward(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        sizes = _Sizes(a)
        y = torch.empty(a.x.shape, dtype=a.x.dtype, device=a.x.device)
        entering, final = sizes.entering(a)
        with on_device(a.x):
            outputs_kernel[(sizes.tasks, sizes.heads * sizes.p_blocks)](
                a.x, a.log_decay, a.weight, a.B, a.C, optional(a.D, a.weight), optional(a.sequence_ids, a.x), entering,
                y, *sizes.numbers, *a.x.stride()[:3], *a.B.stride()[:3], *a.C.stride()[:3], *_rows(a.sequence_ids),
                HAS_D=a.D is not None, BLOCK_P=sizes.block_p, BLOCK_N=sizes.block_n, N_BLOCKS=sizes.n_blocks,
                **sizes.flags,
            )  # fmt: skip
        return y, final

    def backward(self, a: SSDArguments, dy: Tensor, dfinal_state: Tensor | None) -> SSDGradients:
        sizes = _Sizes(a)
        entering, _ = sizes.entering(a)
        leaving, dinitial = sizes.leaving(a, dy, dfinal_state)
        dx, dB, dC = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (a.x, a.B, a.C))
        dlog, dweight = torch.empty_like(a.log_decay), torch.empty_like(a.weight)
        dD = a.weight.new_empty(sizes.tasks, 1, sizes.heads)
        strides = *dy.stride()[:3], *a.x.stride()[:3], *a.B.stride()[:3], *a.C.stride()[:3], *_rows(a.sequence_ids)
        ids = optional(a.sequence_ids, a.x)
        blocks: dict[str, Any] = {"BLOCK_P": sizes.block_p, "P_BLOCKS": sizes.p_blocks, "BLOCK_N": sizes.block_n}
        with on_device(a.x):
            head_gradients_kernel[(sizes.tasks, sizes.heads)](
                dy, a.x, a.log_decay, a.weight, a.B, a.C, optional(a.D, a.weight), ids, entering, leaving, dx, dlog,
                dweight, dD, *sizes.numbers, *strides,
                HAS_D=a.D is not None, N_BLOCKS=sizes.n_blocks, **blocks, **sizes.flags,
            )  # fmt: skip
            map_gradients_kernel[(sizes.tasks * a.B.shape[2], sizes.n_blocks)](
                dy, a.x, a.log_decay, a.weight, a.B, a.C, ids, entering, leaving, dB, dC, *sizes.numbers, *strides,
                STAGES=2 if sizes.operand == torch.bfloat16 else 1, **blocks, **sizes.flags,
            )  # fmt: skip
        return SSDGradients(dx, dlog, dweight, dB, dC, None if a.D is None else sum_rows(dD)[1], dinitial)


BACKEND = TritonSSD()


class _Sizes:
    """What the launches share: sizes, blocks, and the states between chunks."""

    def __init__(self, a: SSDArguments) -> None:
        self.batch, length, self.heads, self.head = a.x.shape
        groups, self.state = a.B.shape[2:]
        # bf16 products of bf16 data; fp16 has too small a range for states: its products are tf32's, as exact.
        bf16 = a.x.dtype == torch.bfloat16
        self.operand = torch.bfloat16 if bf16 else torch.float32
        self.chunk = min(CHUNK, max(16, triton.next_power_of_2(length)))
        self.chunks = -(-length // self.chunk)
        self.tasks = self.batch * self.chunks
        self.numbers = length, self.chunks, self.heads, self.head, self.state, self.heads // groups
        self.block_p, self.block_n = _block(self.head, self.operand), _block(self.state, self.operand)
        self.p_blocks, self.n_blocks = -(-self.head // self.block_p), -(-self.state // self.block_n)
        self.flags: dict[str, Any] = {
            "HAS_IDS": a.sequence_ids is not None,
            "CHUNK": self.chunk,
            "OPERAND": tl.bfloat16 if bf16 else tl.float32,
            "PRECISION": _exact() if a.x.dtype == torch.float32 else "tf32",
            "num_warps": 4,  # with eight bf16 takes up to twice as long (H200)
        }

    def entering(self, a: SSDArguments) -> tuple[Tensor, Tensor]:
        """The states that enter the chunks, as operands of products, and the final one."""
        return self._propagate(*self._states(a, a.x, a.B, adjoint=False), a.initial_state, reverse=False)

    def leaving(self, a: SSDArguments, dy: Tensor, dfinal_state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gradients of the states that leave the chunks, and of the initial one."""
        return self._propagate(*self._states(a, dy, a.C, adjoint=True), dfinal_state, reverse=True)

    def _states(self, a: SSDArguments, values: Tensor, maps: Tensor, adjoint: bool) -> tuple[Tensor, Tensor]:
        made = a.weight.new_empty(self.batch, self.chunks, self.heads, self.head, self.state)
        left = a.weight.new_empty(self.batch, self.chunks, self.heads)
        with on_device(values):
            chunk_states_kernel[(self.tasks, self.heads * self.p_blocks, self.n_blocks)](
                values, a.log_decay, a.weight, maps, optional(a.sequence_ids, values), made, left, *self.numbers,
                *values.stride()[:3], *maps.stride()[:3], *_rows(a.sequence_ids),
                ADJOINT=adjoint, BLOCK_P=self.block_p, BLOCK_N=self.block_n, **self.flags,
            )  # fmt: skip
        return made, left

    def _propagate(self, made: Tensor, left: Tensor, state: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
        """Long sequences go in two levels: segments of chunks from zero, a pass over segments, then all segments from
        their own state."""
        entering = torch.empty_like(made, dtype=self.operand)
        if self.chunks <= 2 * SEGMENT:
            return entering, _hand_on(made, left, state, entering, self.chunks, reverse)[0][:, 0]
        ends, segments_left = _hand_on(made, left, None, None, SEGMENT, reverse)
        of_segments = torch.empty_like(ends)
        final, _ = _hand_on(ends, segments_left, state, of_segments, ends.shape[1], reverse)
        _hand_on(made, left, of_segments, entering, SEGMENT, reverse)
        return entering, final[:, 0]


def _hand_on(
    made: Tensor, left: Tensor, initial: Tensor | None, entering: Tensor | None, segment: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The states (batch, segments, heads, head, state) after each segment of chunks, and what lasts over it."""
    batch, chunks, heads, *matrix = made.shape
    elements = matrix[0] * matrix[1]
    segments = -(-chunks // segment)
    final, final_left = made.new_empty(batch, segments, heads, *matrix), left.new_empty(batch, segments, heads)
    block = min(128, triton.next_power_of_2(elements))
    with on_device(made):
        propagate_kernel[(batch * segments * heads, -(-elements // block))](
            made, left, optional(initial, made), optional(entering, made), final, final_left,
            chunks, segment, heads, elements,
            HAS_INITIAL=initial is not None, ENTERING=entering is not None, REVERSE=reverse, UNROLL=16, BLOCK=block,
            num_warps=max(1, block // 32),
        )  # fmt: skip
    return final, final_left


def _block(size: int, operand: torch.dtype) -> int:
    """Of a matrix product: at most 64, and at least a row of 128 bytes, whatever is masked of it.

    Tiles with shorter rows lie in Hopper's shared memory in another order. In a kernel with both kinds, ptxas of CUDA
    12.8 (Triton 3.6 and 3.7) computes the address of a tile from registers that it has not set yet: products of any
    other memory, or a fault. `tests/triton_aot.py` reads the machine code for that.
    """
    return min(64, max(128 // operand.itemsize, triton.next_power_of_2(size)))


def _exact() -> str:
    """How products of fp32 keep their digits: three of tf32 where there are tensor cores for it."""
    return "ieee" if torch.version.hip else "tf32x3"


def _rows(sequence_ids: Tensor | None) -> tuple[int, int]:
    return (0, 0) if sequence_ids is None else (sequence_ids.stride(0), sequence_ids.stride(1))
