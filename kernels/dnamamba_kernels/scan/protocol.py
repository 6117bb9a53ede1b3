"""What a backend of the scan is: `ScanBackend`, and `ScanStep` for one position.

A backend is a module or folder next to this one, by the backend's name, whose `BACKEND` is an instance; `backends.py`
says where "auto" takes it. It gets checked arguments whose last dimensions have unit stride, and a contiguous A;
results are fresh tensors. What the phases compute is said in `phases.py`.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients

Across = Callable[[Tensor, Tensor], Tensor]
"""(ΣΔ of a part of a sequence, as of `ScanBackend.summary`, and the state after it from zero) → the state that enters
it; of a backward pass the same of adjoints, against time"""


class ScanBackend(Protocol):
    """One implementation of the scan: its phases, and passes over the whole length, which default to them."""

    def supports(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
        """None if the backend serves these arguments, else why not."""

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        """Positions between the states that a backward pass starts from; groups are 0 where B or C is constant."""

    def chunk_summaries(self, a: ScanArguments, chunk: int) -> tuple[Tensor, Tensor]:
        """ΣΔ of each chunk (batch, chunks, channels), +inf if no state survives it, and the state after it from zero
        (batch, chunks, channels, state). C, D, z and the initial state play no part."""

    def propagate(
        self, dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        """The state that enters each chunk, and the one that leaves the last (batch, channels, state)."""

    def chunk_outputs(self, a: ScanArguments, chunk_states: Tensor, chunk: int) -> Tensor:
        """y in x's shape and dtype, from the states that enter the chunks."""

    def backward_summaries(self, a: ScanArguments, dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        """ΣΔ as in `chunk_summaries`, and dL/d(state entering the chunk) if nothing arrives from later chunks. x, B, D
        and the initial state play no part."""

    def chunk_gradients(
        self, a: ScanArguments, dy: Tensor, chunk_states: Tensor, chunk_adjoints: Tensor, chunk: int
    ) -> ScanGradients:
        """From the states that enter the chunks and the adjoints of those that leave them."""

    def forward_across(
        self, a: ScanArguments, across: Across, chunk: int, keep_states: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`forward` of a part of a longer sequence, entered with what `across` gives."""
        entering = across(*self.summary(a))
        return self.forward(a._replace(initial_state=entering), chunk, keep_states)

    def backward_across(
        self, a: ScanArguments, dy: Tensor, across: Across, kept_states: Tensor, chunk: int
    ) -> ScanGradients:
        """The gradients of `backward` with the adjoint that `across` gives for the state after the part."""
        return self.backward(a, dy, across(*self.adjoint_summary(a, dy)), kept_states, chunk)[0]

    def summary(self, a: ScanArguments) -> tuple[Tensor, Tensor]:
        """ΣΔ of the whole length (batch, channels), +inf if no state survives it, and the state after it from zero
        (batch, channels, state): what `chunk_summaries` gives of one chunk."""
        return self._whole(*self.chunk_summaries(a, self._chunk(a)), a.A, a.options.reverse)

    def adjoint_summary(self, a: ScanArguments, dy: Tensor) -> tuple[Tensor, Tensor]:
        """The same of `backward_summaries`."""
        return self._whole(*self.backward_summaries(a, dy, self._chunk(a)), a.A, not a.options.reverse)

    def _chunk(self, a: ScanArguments) -> int:
        batch, length, channels = a.x.shape
        groups = 0 if 2 in (a.B.dim(), a.C.dim()) else max(a.B.shape[2], a.C.shape[2])
        return min(length, self.chunk_length(batch, length, channels, a.A.shape[1], groups))

    def _whole(self, dt_sums: Tensor, ends: Tensor, A: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        return dt_sums.sum(1), self.propagate(dt_sums, ends, A, None, reverse)[1]

    def forward(self, a: ScanArguments, chunk: int, keep_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """y, the final state, and what `backward` starts from, (batch, chunks, channels, state) in an order of the
        backend's own. The last may be anything unless `keep_states`."""
        dt_sums, end_states = self.chunk_summaries(a, chunk)
        chunk_states, final_state = self.propagate(dt_sums, end_states, a.A, a.initial_state, a.options.reverse)
        return self.chunk_outputs(a, chunk_states, chunk), final_state, chunk_states

    def backward(
        self, a: ScanArguments, dy: Tensor, dfinal_state: Tensor | None, kept_states: Tensor, chunk: int
    ) -> tuple[ScanGradients, Tensor]:
        """The gradients and dL/d(initial state); `a` holds no initial state."""
        dt_sums, ends = self.backward_summaries(a, dy, chunk)
        adjoints, dinitial_state = self.propagate(dt_sums, ends, a.A, dfinal_state, not a.options.reverse)
        return self.chunk_gradients(a, dy, kept_states, adjoints, chunk), dinitial_state


class ScanStep(Protocol):
    """One position of the scan, for generation; `reference` and `triton` have it, too."""

    def step(self, a: ScanArguments) -> tuple[Tensor, Tensor]:
        """y in x's shape and dtype, and the state after the position that has `a.initial_state` before it."""
