"""The selective scan in CUDA C++: launches the kernels of the .cuh files beside it.

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
from dnamamba_kernels.scan.options import ScanOptions


def supports(x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    """None if these kernels serve the arguments, else why not."""
    if x.dtype not in DATA:
        return f"serves fp32, bf16 and fp16, not {x.dtype}"
    if x.dim() == 4:
        return None  # propagate: x holds the end states
    if 2 in (B.dim(), C.dim()):
        return "needs B and C that vary along the length"
    if A.shape[1] > MAX_STATE or A.shape[1] % 4:
        return f"serves 4, 8, 12 or {MAX_STATE} states, got {A.shape[1]}"
    if B.shape[2] != C.shape[2]:
        return "needs as many groups in B as in C"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "needs compute capability 8.0 or later"
    return None


def chunk_length(batch: int, length: int, channels: int, state: int, groups: int) -> int:
    """Positions between the states saved for the backward pass; the passes themselves cut longer chunks, see `Plan`."""
    return TILE


class _Call:
    """One scan: its tensors, brought to one dtype, and the plan that fits them. Launches on the current stream."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor | None,
        C: Tensor | None,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        sequence_ids: Tensor | None,
        options: ScanOptions,
        dy: Tensor | None = None,
        in_memory: bool = True,
    ) -> None:
        dtype = x.dtype
        if any(t is not None and t.dtype != dtype for t in (dt, z, dy, B, C)):
            # Mixed dtypes (an fp32 dt beside bf16 x, say) run in fp32: one code path, exact, rarely needed.
            dtype = torch.float32
            x, dt = x.to(dtype), dt.to(dtype)
            z, dy, B, C = (None if t is None else t.to(dtype) for t in (z, dy, B, C))
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
                next(m.shape[2] for m in (B, C) if m is not None),
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
        """Launch a kernel on the chunks that `Plan.cut` is told to take; its argument block."""
        channels, threads, shared = self.plan.blocks[name]
        grid, template = self.plan.cut(chunk, channels, **cut)
        block = self.block(template, **addresses)
        self.plan.kernel(name)(grid, threads, shared, self.stream, block)
        return block

    def walk(self, name: str, chunk: int, cut: dict[str, int] | None = None, **tensors: Tensor | None) -> None:
        """Launch one of the passes that walk chunks."""
        self.launch(name, chunk, cut or {}, **{name: _address(tensor) for name, tensor in tensors.items()})

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def summaries(self, chunks: int) -> tuple[Tensor, Tensor]:
        """Room for ΣΔ of chunks and their end states (or adjoints)."""
        return self.empty(self.batch, chunks, self.channels), self.empty(self.batch, chunks, self.channels, self.state)

    def summarize(self, name: str, chunk: int) -> tuple[Tensor, Tensor]:
        """dt_sums and ends of the chunks by scan_forward or scan_adjoints."""
        dt_sums, ends = self.summaries(self.plan.chunks(chunk))
        self.walk(name, chunk, dt_sums=dt_sums, chunk_ends=ends)
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
        """Room for y, and for the states that enter the tiles, in the kernels' own order, if they are to be kept."""
        y = torch.empty(self.x.shape, dtype=self.dtype, device=self.x.device)
        tiles = self.empty(self.batch, self.plan.tile_rows(chunk), self.channels, self.state) if keep_tiles else None
        return y, tiles

    def outputs(self, chunk: int, chunk_states: Tensor, keep_tiles: bool) -> tuple[Tensor, Tensor | None]:
        """`rows` from the states that enter the chunks."""
        y, tiles = self.rows(chunk, keep_tiles)
        cut = {"outputs": self.plan.chunks(chunk)}
        self.walk("scan_forward", chunk, cut, chunk_states=chunk_states, y=y, tile_states=tiles)
        return y, tiles

    def forward(self, initial: Tensor | None, keep_tiles: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """y of the whole sequence, the final state, and the states that enter the tiles if they are to be kept."""
        chunk, lacking = self.plan.forward_chunk, self.plan.forward_lacking
        chunks = self.plan.chunks(chunk, lacking)
        initial = None if initial is None else _dense(initial)
        y, tiles = self.rows(chunk, keep_tiles)
        final = self.empty(self.batch, self.channels, self.state)
        walk = functools.partial(self.walk, self.plan.forward_kernel, chunk, y=y, tile_states=tiles)
        if chunks == 1:
            walk({"outputs": 1}, initial_state=initial, final_state=final)
            return y, final, tiles
        # What enters the first chunk, which is shorter, is known: it gives its outputs while the others are summarized.
        # The last one needs no summary. So each launch has one chunk less, and the chip room for one chunk more.
        dt_sums, ends = self.summaries(chunks)
        begin, others = {"last": chunks - 1, "outputs": 1}, {"first": 1, "outputs": chunks}
        walk({"lacking": lacking, **begin}, initial_state=initial, dt_sums=dt_sums, chunk_ends=ends)
        self._propagate(dt_sums, ends, None, None, self.plan.layout.options.reverse)
        walk({"lacking": lacking, **others}, chunk_states=ends, final_state=final)
        return y, final, tiles

    def gradients(
        self, tile_states: Tensor, adjoints: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """scan_gradients and the sums over its blocks and chunks, all in a fixed order."""
        assert self.B is not None and self.C is not None
        chunks, columns = self.plan.chunks(chunk), self.plan.columns(BACKWARD_CHANNELS)
        shapes = self.x.shape, self.x.shape, self.B.shape, self.C.shape
        dx, ddt, dB, dC = (torch.empty(shape, dtype=self.dtype, device=self.x.device) for shape in shapes)
        dz = None if self.z is None else torch.empty_like(dx)
        dA = self.empty(self.channels, self.state)
        dD, dbias = (None if t is None else self.empty(self.channels) for t in (self.D, self.dt_bias))
        # Sums of single blocks and chunks, in one piece: dB and dC side by side, dA, dD, ddt_bias.
        maps, parts = self.batch * columns * self.length * 2 * MAX_STATE, self.batch * chunks * self.channels
        room = self.empty(maps + parts * (self.state + 2))
        dmaps = room.data_ptr()
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
        return dx, ddt, dA, dB, dC, dD, dz, dbias


def chunk_summaries(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    options: ScanOptions,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """ΣΔ of each chunk, +inf if no state survives it, and the state after it from zero."""
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, B, None, None, None, dt_bias, sequence_ids, options)
        return call.summarize("scan_forward", chunk)


def propagate(
    dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, options: ScanOptions
) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk and the final one: h ← exp(A ΣΔ) h + end."""
    with torch.cuda.device(A.device):
        dt_sums, ends = _dense(dt_sums), _dense(end_states)
        states, final = torch.empty_like(ends), torch.empty_like(ends[:, 0])
        launch = kernel(A.get_device(), "scan_propagate", (0,) * len(LAYER))
        stream = ctypes.c_void_p(torch.cuda.current_stream(A.device).cuda_stream)
        _propagate(launch, stream, dt_sums, ends, _dense(A), initial_state, states, final, options.reverse)
        return states, final


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


def chunk_outputs(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    chunk_states: Tensor,
    options: ScanOptions,
    chunk: int,
) -> Tensor:
    """y from the states that enter the chunks."""
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, B, C, D, z, dt_bias, sequence_ids, options)
        return call.outputs(chunk, _dense(chunk_states), keep_tiles=False)[0].to(x.dtype)


def backward_summaries(
    dy: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    options: ScanOptions,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """dt_sums, and dL/d(state that enters a chunk) if that of the state that leaves it is zero."""
    with torch.cuda.device(dy.device):
        call = _Call(dy, dt, A, None, C, None, z, dt_bias, sequence_ids, options, dy=dy)
        return call.summarize("scan_adjoints", chunk)


def chunk_gradients(
    dy: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    chunk_states: Tensor,
    chunk_adjoints: Tensor,
    options: ScanOptions,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """dx, ddt, dA, dB, dC, dD, dz, ddt_bias from the states that enter chunks and the adjoints of those that leave."""
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, B, C, D, z, dt_bias, sequence_ids, options, dy=dy)
        _, tiles = call.outputs(chunk, _dense(chunk_states), keep_tiles=True)
        assert tiles is not None
        return _like((x, dt, B, C, z), call.gradients(tiles, _dense(chunk_adjoints), chunk))


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    initial_state: Tensor | None,
    options: ScanOptions,
    chunk: int,
    keep_states: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The whole forward pass: y, the final state and the states that `backward` starts from, in an order of its own;
    None unless they are to be kept.

    `chunk` is the grid of those states: TILE, or the length if that is shorter.
    """
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, B, C, D, z, dt_bias, sequence_ids, options, in_memory=False)
        y, final_state, tiles = call.forward(initial_state, keep_states)
        return y.to(x.dtype), final_state, tiles


def backward(
    dy: Tensor,
    dfinal_state: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    sequence_ids: Tensor | None,
    tile_states: Tensor,
    options: ScanOptions,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The whole backward pass: (dx, ddt, dA, dB, dC, dD, dz, ddt_bias, dinitial_state)."""
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, B, C, D, z, dt_bias, sequence_ids, options, dy=dy, in_memory=False)
        coarse = call.plan.backward_chunk
        adjoints, dinitial = call.adjoints(coarse, dfinal_state)
        return *_like((x, dt, B, C, z), call.gradients(tile_states, adjoints, coarse)), dinitial


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor) -> Tensor:
    """Contiguous and aligned to 16 bytes, as the kernels read states."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _like(arguments: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """dx, ddt, dB, dC, dz in the dtypes of x, dt, B, C, z."""
    x, dt, B, C, z = arguments
    dtypes = dict(zip((0, 1, 3, 4, 6), (x, dt, B, C, z), strict=True))
    return tuple(
        g if g is None or (like := dtypes.get(i)) is None else g.to(like.dtype) for i, g in enumerate(gradients)
    )
