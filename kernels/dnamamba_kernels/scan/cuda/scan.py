"""The selective scan in CUDA C++: launches the kernels of the .cuh files next to it.

    forward    scan_forward (the first chunk's outputs, the others' summaries) → scan_propagate → scan_forward (the
               others' outputs), or scan_whole, where a batch has channels enough to fill the chip without chunks:
               y, the final state, and the state that enters every TILE positions
    backward   scan_adjoints → scan_propagate → scan_gradients → scan_sum_parts

The length is cut into chunks, just enough to fill the chip, so that the states passed between chunks are few. Gradients
start from the states at every TILE positions, which the forward pass writes as it passes them.

Serves variable B and C with 4, 8, 12 or 16 states (16 is tuned) in bf16, fp16 and fp32; A must be negative.
"""

import ctypes
import functools

import torch
from torch import Tensor

from dnamamba_kernels.scan.arguments import ScanArguments, ScanGradients
from dnamamba_kernels.scan.cuda.nvrtc import Kernel
from dnamamba_kernels.scan.cuda.plan import (
    BACKWARD_CHANNELS,
    DATA,
    LANES,
    LAYER,
    MAX_RUNS,
    MAX_STATE,
    SUM_THREADS,
    TILE,
    Arguments,
    Layout,
    kernel,
    plan_for,
)
from dnamamba_kernels.scan.protocol import Across, ScanBackend


class CudaScan(ScanBackend):
    """4, 8, 12 or 16 states, B and C that vary along the length and have equally many groups; no fp64."""

    def supports(self, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
        if x.dtype not in DATA:
            return f"serves fp32, bf16 and fp16, not {x.dtype}"
        if 2 in (B.dim(), C.dim()):
            return "needs B and C that vary along the length"
        if A.shape[1] > MAX_STATE or A.shape[1] % 4:
            return f"serves 4, 8, 12 or {MAX_STATE} states, got {A.shape[1]}"
        if B.shape[2] != C.shape[2]:
            return "needs as many groups in B as in C"
        if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
            return "needs compute capability 8.0 or later"
        return None

    def chunk_length(self, batch: int, length: int, channels: int, state: int, groups: int) -> int:
        """Between the states saved for the backward pass; the passes themselves cut longer chunks, see `Plan`."""
        return TILE

    def chunk_summaries(self, a: ScanArguments, chunk: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(a.x.device):
            return _Call(a).summarize("scan_forward", chunk)

    def summary(self, a: ScanArguments) -> tuple[Tensor, Tensor]:
        return self._whole(*self.chunk_summaries(a, _Call(a).plan.forward_chunk), a.A, a.options.reverse)

    def backward_across(
        self, a: ScanArguments, dy: Tensor, across: Across, kept_states: Tensor, chunk: int
    ) -> ScanGradients:
        """One pass of adjoints gives the part's summary and, from what arrives, those of the chunks."""
        with torch.cuda.device(a.x.device):
            call = _Call(a, dy, in_memory=False)
            coarse = call.plan.backward_chunk
            dt_sums, ends = call.summarize("scan_adjoints", coarse)
            summary = self._whole(dt_sums, ends, a.A, not a.options.reverse)
            adjoints, _ = self.propagate(dt_sums, ends, a.A, across(*summary), not a.options.reverse)
            return _as_given(call.gradients(kept_states, adjoints, coarse), a)

    def propagate(
        self, dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(A.device):
            dt_sums, ends = _dense(dt_sums), _dense(end_states)
            states, final = torch.empty_like(ends), torch.empty_like(ends[:, 0])
            launch = kernel(A.get_device(), "scan_propagate", (0,) * len(LAYER))
            stream = ctypes.c_void_p(torch.cuda.current_stream(A.device).cuda_stream)
            _propagate(launch, stream, dt_sums, ends, _dense(A), initial_state, states, final, reverse)
            return states, final

    def chunk_outputs(self, a: ScanArguments, chunk_states: Tensor, chunk: int) -> Tensor:
        with torch.cuda.device(a.x.device):
            return _Call(a).outputs(chunk, _dense(chunk_states), keep_tiles=False)[0].to(a.x.dtype)

    def backward_summaries(self, a: ScanArguments, dy: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
        with torch.cuda.device(dy.device):
            return _Call(a, dy).summarize("scan_adjoints", chunk)

    def chunk_gradients(
        self, a: ScanArguments, dy: Tensor, chunk_states: Tensor, chunk_adjoints: Tensor, chunk: int
    ) -> ScanGradients:
        """One more pass of outputs rebuilds the states that enter the tiles."""
        with torch.cuda.device(a.x.device):
            call = _Call(a, dy)
            _, tiles = call.outputs(chunk, _dense(chunk_states), keep_tiles=True)
            assert tiles is not None
            return _as_given(call.gradients(tiles, _dense(chunk_adjoints), chunk), a)

    def forward(self, a: ScanArguments, chunk: int, keep_states: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """`chunk` is the grid of the kept states: TILE, or the length if that is shorter."""
        with torch.cuda.device(a.x.device):
            y, final_state, tiles = _Call(a, in_memory=False).forward(a.initial_state, keep_states)
            return y.to(a.x.dtype), final_state, tiles

    def backward(
        self, a: ScanArguments, dy: Tensor, dfinal_state: Tensor | None, kept_states: Tensor, chunk: int
    ) -> tuple[ScanGradients, Tensor]:
        with torch.cuda.device(a.x.device):
            call = _Call(a, dy, in_memory=False)
            coarse = call.plan.backward_chunk
            adjoints, dinitial_state = call.adjoints(coarse, dfinal_state)
            return _as_given(call.gradients(kept_states, adjoints, coarse), a), dinitial_state


BACKEND = CudaScan()


class _Call:
    """One scan: its tensors, brought to one dtype, and the plan that fits them. Launches on the current stream."""

    def __init__(self, a: ScanArguments, dy: Tensor | None = None, in_memory: bool = True) -> None:
        x, dt, A, B, C, D, z, dt_bias, _, sequence_ids, options = a
        dtype = x.dtype
        if any(t is not None and t.dtype != dtype for t in (dt, z, dy, B, C)):
            # Mixed dtypes (fp32 dt with bf16 x, say) run in fp32: one code path, exact, rarely needed.
            dtype = torch.float32
            x, dt = x.to(dtype), dt.to(dtype)
            B, C = B.to(dtype), C.to(dtype)
            z, dy = (None if t is None else t.to(dtype) for t in (z, dy))
        ids = None if sequence_ids is None else sequence_ids.contiguous()
        data = x, dt, z, dy, B, C
        self.x, self.dt, self.z, self.B, self.C = x, dt, z, B, C
        self.A, self.D, self.dt_bias = _dense(A), D, dt_bias
        self.dtype, self.state = dtype, A.shape[1]
        own = self.A, D, dt_bias, ids, dy  # kept alive: the launches know addresses only
        self._kept = own
        addresses = [None if t is None else t.data_ptr() for t in data]

        def aligned(addresses: list[int | None], size: int) -> bool:
            return all(address is None or address % size == 0 for address in addresses)

        self.plan = plan = plan_for(
            Layout(
                x.get_device(),
                dtype,
                aligned(addresses, 2 * x.element_size()),
                aligned(addresses[:4], 16),
                tuple(x.shape),
                self.state,
                B.shape[2],
                tuple(None if t is None else t.stride() for t in (*data, ids)),
                D is not None,
                options,
                in_memory,
            )
        )
        self.batch, self.length, self.channels = plan.batch, plan.length, plan.channels
        names = "x", "dt", "z", "dy", "B", "C", "A", "D", "dt_bias", "ids"
        self.addresses = dict(zip(names, (*addresses, *(_address(t) for t in own[:4])), strict=True))
        self.stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)

    def block(self, template: bytes, **addresses: int | None) -> Arguments:
        """The argument block with the addresses of the scan's arguments and these."""
        arguments = Arguments.from_buffer_copy(template)
        for name, address in (self.addresses | addresses).items():
            setattr(arguments, name, address)
        return arguments

    def launch(self, name: str, chunk: int, cut: dict[str, int], **addresses: int | None) -> Arguments:
        """Launch a kernel on the chunks that `cut` gives to `Plan.cut`; its argument block."""
        channels, threads, shared = self.plan.blocks[name]
        grid, template = self.plan.cut(chunk, channels, **cut)
        block = self.block(template, **addresses)
        self.plan.kernel(name)(grid, threads, shared, self.stream, block)
        return block

    def run_pass(self, name: str, chunk: int, cut: dict[str, int] | None = None, **tensors: Tensor | None) -> None:
        """Launch one of the passes that scan chunks."""
        self.launch(name, chunk, cut or {}, **{name: _address(tensor) for name, tensor in tensors.items()})

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def summaries(self, chunks: int) -> tuple[Tensor, Tensor]:
        """Memory for ΣΔ of chunks and their end states (or adjoints)."""
        return self.empty(self.batch, chunks, self.channels), self.empty(self.batch, chunks, self.channels, self.state)

    def summarize(self, name: str, chunk: int) -> tuple[Tensor, Tensor]:
        """dt_sums and ends of the chunks by scan_forward or scan_adjoints."""
        dt_sums, ends = self.summaries(self.plan.chunks(chunk))
        self.run_pass(name, chunk, dt_sums=dt_sums, chunk_ends=ends)
        return dt_sums, ends

    def adjoints(self, chunk: int, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """dL/d(state that leaves a chunk) for each chunk, and dL/d(initial state)."""
        dt_sums, ends = self.summarize("scan_adjoints", chunk)
        final = self.empty(self.batch, self.channels, self.state)
        self._propagate(dt_sums, ends, initial, final, not self.plan.layout.options.reverse)
        return ends, final

    def _propagate(
        self, dt_sums: Tensor, ends: Tensor, initial: Tensor | None, final: Tensor | None, backwards: bool
    ) -> None:
        # in place: scan_propagate reads a chunk's end before it writes what enters that chunk
        launch = self.plan.kernel("scan_propagate")
        _propagate(launch, self.stream, dt_sums, ends, self.A, initial, ends, final, backwards)

    def rows(self, chunk: int, keep_tiles: bool) -> tuple[Tensor, Tensor | None]:
        """Memory for y, and for the states that enter the tiles, in the kernels' own order, if they are to be kept."""
        y = torch.empty(self.x.shape, dtype=self.dtype, device=self.x.device)
        tiles = self.empty(self.batch, self.plan.tile_rows(chunk), self.channels, self.state) if keep_tiles else None
        return y, tiles

    def outputs(self, chunk: int, chunk_states: Tensor, keep_tiles: bool) -> tuple[Tensor, Tensor | None]:
        """`rows` from the states that enter the chunks."""
        y, tiles = self.rows(chunk, keep_tiles)
        cut = {"outputs": self.plan.chunks(chunk)}
        self.run_pass("scan_forward", chunk, cut, chunk_states=chunk_states, y=y, tile_states=tiles)
        return y, tiles

    def forward(self, initial: Tensor | None, keep_tiles: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """y of the whole sequence, the final state, and the states that enter the tiles if they are to be kept."""
        chunk, lacking = self.plan.forward_chunk, self.plan.forward_lacking
        chunks = self.plan.chunks(chunk, lacking)
        initial = None if initial is None else _dense(initial)
        y, tiles = self.rows(chunk, keep_tiles)
        final = self.empty(self.batch, self.channels, self.state)
        run = functools.partial(self.run_pass, self.plan.forward_kernel, chunk, y=y, tile_states=tiles)
        if chunks == 1:
            run({"outputs": 1}, initial_state=initial, final_state=final)
            return y, final, tiles
        # What enters the first chunk, which is shorter, is known: it gives its outputs while the others are summarized.
        # The last one needs no summary. So each launch has one chunk less, and the chip takes one chunk more.
        dt_sums, ends = self.summaries(chunks)
        begin, others = {"last": chunks - 1, "outputs": 1}, {"first": 1, "outputs": chunks}
        run({"lacking": lacking, **begin}, initial_state=initial, dt_sums=dt_sums, chunk_ends=ends)
        self._propagate(dt_sums, ends, None, None, self.plan.layout.options.reverse)
        run({"lacking": lacking, **others}, chunk_states=ends, final_state=final)
        return y, final, tiles

    def gradients(self, tile_states: Tensor, adjoints: Tensor, chunk: int) -> ScanGradients:
        """scan_gradients and the sums over its blocks and chunks, all in a fixed order."""
        chunks, columns = self.plan.chunks(chunk), self.plan.columns(BACKWARD_CHANNELS)
        shapes = self.x.shape, self.x.shape, self.B.shape, self.C.shape
        dx, ddt, dB, dC = (torch.empty(shape, dtype=self.dtype, device=self.x.device) for shape in shapes)
        dz = None if self.z is None else torch.empty_like(dx)
        dA = self.empty(self.channels, self.state)
        dD, dbias = (None if t is None else self.empty(self.channels) for t in (self.D, self.dt_bias))
        # Sums of single blocks and chunks, in one tensor: dB and dC side by side, dA, dD, ddt_bias.
        maps, parts = self.batch * columns * self.length * 2 * MAX_STATE, self.batch * chunks * self.channels
        sums = self.empty(maps + parts * (self.state + 2))
        dmaps = sums.data_ptr()
        dA_parts = dmaps + 4 * maps
        dD_parts = dA_parts + 4 * parts * self.state
        addresses = {"dmaps": dmaps, "dA_parts": dA_parts, "dD_parts": dD_parts, "dbias_parts": dD_parts + 4 * parts}
        outputs = {"dx": dx, "ddt": ddt, "dz": dz, "dB": dB, "dC": dC, "dA": dA, "dD": dD, "ddt_bias": dbias}
        addresses |= {name: _address(tensor) for name, tensor in outputs.items()}  # type: ignore[misc]
        states = {"tile_states": tile_states.data_ptr(), "chunk_adjoints": adjoints.data_ptr()}
        block = self.launch("scan_gradients", chunk, {}, **states, **addresses)
        grid = -(-self.batch * self.plan.layout.groups * self.length * 8 // SUM_THREADS)
        grid += -(-self.channels * (self.state + 2) // LANES)
        self.plan.kernel("scan_sum_parts")(grid, SUM_THREADS, 0, self.stream, block)
        return ScanGradients(dx, ddt, dA, dB, dC, dD, dz, dbias)


def _propagate(
    launch: Kernel,
    stream: ctypes.c_void_p,
    dt_sums: Tensor,
    ends: Tensor,
    A: Tensor,
    initial: Tensor | None,
    states: Tensor,
    final: Tensor | None,
    backwards: bool,
) -> None:
    """Launch scan_propagate; `states` may be `ends`."""
    batch, chunks, channels, state = ends.shape
    initial = None if initial is None else _dense(initial)
    launch(
        -(-batch * channels * state // LANES), LANES * min(MAX_RUNS, -(-chunks // 6)), 0, stream,
        *(ctypes.c_void_p(_address(t)) for t in (dt_sums, ends, A, initial, states, final)),
        *(ctypes.c_int(v) for v in (batch, chunks, channels, state, int(backwards))),
    )  # fmt: skip


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor) -> Tensor:
    """Contiguous and aligned to 16 bytes, as the kernels read states."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _as_given(found: ScanGradients, a: ScanArguments) -> ScanGradients:
    """In the dtypes of x, dt, B, C and z; the others are fp32 both ways."""
    return found._replace(
        x=found.x.to(a.x.dtype),
        dt=found.dt.to(a.dt.dtype),
        B=found.B.to(a.B.dtype),
        C=found.C.to(a.C.dtype),
        z=None if found.z is None or a.z is None else found.z.to(a.z.dtype),
    )
