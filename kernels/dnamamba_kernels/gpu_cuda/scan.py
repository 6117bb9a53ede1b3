"""The selective scan in CUDA C++: launches the kernels of scan_forward.cuh and scan_backward.cuh.

    forward    scan_summaries → scan_propagate → scan_outputs (writes y and the state that enters every TILE positions)
    backward   scan_adjoints → scan_propagate → scan_gradients → scan_sum_maps

The length is cut into chunks, just enough to fill the chip, so that the states passed between chunks are few. Gradients
start from the states at every TILE positions, which the forward pass writes as it passes them.

Serves variable B and C with 4, 8, 12 or 16 states (16 is tuned) in bf16, fp16 and fp32; A must be negative.
"""

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dnamamba_kernels.gpu_cuda.nvrtc import Kernel, Module
from dnamamba_kernels.options import ScanOptions

TILE = 32  # positions between saved states, as in scan_common.cuh
MAX_STATE = 16
SHORT_CHUNK = 256  # positions
BACKWARD_CHANNELS = 64  # channels of a block of scan_gradients
BACKWARD_THREADS = 128
BACKWARD_SHARED = 4 * (3 * TILE * 64 + 2 * TILE * 16 + (TILE // 4) * 4 * 256 + TILE)  # struct BackwardShared
LAYER = ("DATA", "ALIGNED", "STATE", "SOFTPLUS", "ZOH", "HAS_Z", "HAS_D", "HAS_IDS")
SCALARS = ("DATA", "ALIGNED", "STATE", "SOFTPLUS", "HAS_IDS")
WALK = (*SCALARS, "WARPS", "MIN_BLOCKS")
KERNELS = {  # the compile-time switches that each kernel depends on; the others are 0
    "scan_summaries": (*WALK, "ZOH", "POLYNOMIAL_SUMMARY"),
    "scan_outputs": (*WALK, "ZOH", "HAS_Z", "HAS_D", "POLYNOMIAL_OUTPUT"),
    "scan_adjoints": (*WALK, "HAS_Z", "POLYNOMIAL_SUMMARY"),
    "scan_propagate": (),
    "scan_gradients": (*SCALARS, "ZOH", "HAS_Z", "HAS_D", "BACKWARD_BLOCKS"),
    "scan_sum_maps": ("DATA", "STATE"),
}
DATA = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SOURCES = ("scan_common.cuh", "scan_forward.cuh", "scan_backward.cuh")


class Shape(NamedTuple):
    """How the kernels are cut; measured on an H100, see kernels/README.md."""

    warps: int = 4
    """Warps of a block in the forward passes; a thread has two channels."""
    blocks: int = 3
    """Blocks of a forward pass that a multiprocessor holds."""
    polynomial_summary: int = 2
    """Of 16 exponentials, how many go to the FMA pipe in summaries and adjoints."""
    polynomial_output: int = 1
    """The same in outputs."""
    backward_blocks: int = 3
    """Blocks of scan_gradients that a multiprocessor holds."""
    waves: int = 1
    """Chunks are cut so that a forward pass has this many times the blocks that the chip holds."""
    backward_waves: int = 8
    """The same for scan_gradients; half of it where chunks would get shorter than SHORT_CHUNK."""

    @property
    def channels(self) -> int:
        """Channels of a block in the forward passes."""
        return 64 * self.warps


SHAPE = Shape()


def shape_defines(shape: Shape) -> dict[str, int]:
    """The compile-time names of a shape."""
    return {
        "WARPS": shape.warps,
        "MIN_BLOCKS": shape.blocks,
        "BACKWARD_BLOCKS": shape.backward_blocks,
        "POLYNOMIAL_SUMMARY": shape.polynomial_summary,
        "POLYNOMIAL_OUTPUT": shape.polynomial_output,
    }


_POINTERS = (
    "x", "dt", "z", "dy", "B", "C", "A", "D", "dt_bias", "ids", "y", "dx", "ddt", "dz", "dt_sums", "chunk_ends",
    "chunk_states", "chunk_adjoints", "tile_states", "dmaps", "dA_parts", "dD_parts", "dbias_parts",
)  # fmt: skip
_SIZES = (
    "batch", "length", "channels", "group_channels", "groups", "blocks",
    "chunk", "chunks", "tiles", "tile_rows", "shorten", "reverse",
)  # fmt: skip


class _Arguments(ctypes.Structure):
    """struct Arguments of scan_common.cuh, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((f"{name}_{of}", ctypes.c_longlong) for name in ("x", "dt", "z", "dy") for of in ("batch", "row")),
        *((f"{name}_{of}", ctypes.c_longlong) for name in ("B", "C") for of in ("batch", "row", "group")),
        ("ids_batch", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _SIZES),
    ]


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
    """Positions between the states saved for the backward pass; the passes themselves cut longer chunks, see `_cut`."""
    return TILE


def _cut(batch: int, length: int, block_columns: int, resident: int, waves: int) -> int:
    """Positions per chunk, a multiple of TILE, such that the grid has at most `waves` times the `resident` blocks."""
    chunks = max(1, waves * resident // (batch * block_columns))
    return TILE * -(-length // (TILE * chunks))


@functools.cache
def source() -> str:
    """The CUDA C++ of all kernels."""
    return "\n".join((Path(__file__).parent / name).read_text() for name in SOURCES)


def defines(name: str, switches: dict[str, int]) -> tuple[str, ...]:
    """Compiler options for one kernel: the switches that it does not depend on are 0, so that it is compiled once."""
    values = {switch: value if switch in KERNELS[name] else 0 for switch, value in switches.items()}
    return (f"-D{name}_BUILT", *(f"-D{switch}={value}" for switch, value in values.items()))


@functools.cache
def _compiled(device: int, name: str, options: tuple[str, ...]) -> Kernel:
    return Module(source(), options, device)[name]


@functools.cache
def _kernel(device: int, name: str, layer: tuple[int, ...], shape: Shape) -> Kernel:
    """The kernel for the values of LAYER, the switches that follow from the arguments."""
    return _compiled(device, name, defines(name, {**dict(zip(LAYER, layer, strict=True)), **shape_defines(shape)}))


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Call:
    """One scan's tensors, brought to one dtype, with the argument block and compiled kernels that fit them."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        maps: tuple[Tensor, ...],
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        sequence_ids: Tensor | None,
        options: ScanOptions,
        dy: Tensor | None = None,
    ) -> None:
        given = [t for t in (x, dt, *maps, z, dy) if t is not None]
        # Mixed dtypes (an fp32 dt beside bf16 x, say) run in fp32: one code path, exact, rarely needed.
        dtype = x.dtype if all(t.dtype == x.dtype for t in given) else torch.float32
        self.x, self.dt, self.maps = x.to(dtype), dt.to(dtype), [m.to(dtype) for m in maps]
        self.z, self.dy = (None if t is None else t.to(dtype) for t in (z, dy))
        ids = None if sequence_ids is None else sequence_ids.contiguous()
        self.A, self.D, self.dt_bias, self.ids = _dense(A), D, dt_bias, ids
        self.dtype, self.options, self.device = dtype, options, x.device
        self.batch, self.length, self.channels = x.shape
        self.state = A.shape[1]
        self.groups = maps[0].shape[2]
        self.group_channels = self.channels // self.groups
        rows = [t for t in (self.x, self.dt, self.z, self.dy) if t is not None]
        pair = 2 * self.x.element_size()
        aligned = self.group_channels % 2 == 0 and all(
            t.data_ptr() % pair == 0 and all(stride % 2 == 0 for stride in t.stride()[:-1]) for t in (*rows, *self.maps)
        )
        flags = options.dt_softplus, options.zoh, z is not None, D is not None, ids is not None
        self.layer = DATA[dtype], int(aligned), self.state, *(int(flag) for flag in flags)
        self.index = x.get_device()
        a = self.block = _Arguments()  # shared by all launches: a launch copies it
        rows_by_name = {"x": self.x, "dt": self.dt, "z": self.z, "dy": self.dy}
        for name, tensor in rows_by_name.items():
            if tensor is not None:
                setattr(a, f"{name}_batch", tensor.stride(0))
                setattr(a, f"{name}_row", tensor.stride(1))
        a.batch, a.length, a.channels = self.batch, self.length, self.channels
        a.group_channels, a.groups = self.group_channels, self.groups
        a.reverse = int(options.reverse)
        a.ids_batch = 0 if ids is None else ids.stride(0)
        self.point(**rows_by_name, A=self.A, D=D, dt_bias=dt_bias, ids=ids)

    def point(self, **tensors: Tensor | None) -> None:
        """Write tensors' addresses, and B's and C's strides, into the argument block."""
        for name, tensor in tensors.items():
            setattr(self.block, name, None if tensor is None else tensor.data_ptr())
            if tensor is not None and name in ("B", "C"):
                for of, stride in zip(("batch", "row", "group"), tensor.stride(), strict=False):
                    setattr(self.block, f"{name}_{of}", stride)

    def kernel(self, name: str) -> Kernel:
        return _kernel(self.index, name, self.layer, SHAPE)

    def columns(self, channels: int) -> int:
        """Blocks of this many channels side by side, all groups together."""
        return self.groups * -(-self.group_channels // channels)

    def forward_chunk(self) -> int:
        columns = self.columns(SHAPE.channels)
        resident = _processors(self.index) * SHAPE.blocks
        return _cut(self.batch, self.length, columns, resident, SHAPE.waves)

    def backward_chunk(self) -> int:
        resident, columns = _processors(self.index) * SHAPE.backward_blocks, self.columns(BACKWARD_CHANNELS)
        chunk = _cut(self.batch, self.length, columns, resident, SHAPE.backward_waves)
        if chunk < SHORT_CHUNK:
            chunk = _cut(self.batch, self.length, columns, resident, SHAPE.backward_waves // 2)
        return chunk

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def cut(self, chunk: int, block_channels: int) -> int:
        """Write the chunks and blocks of a launch into the argument block; returns the blocks of the grid."""
        a = self.block
        a.blocks = -(-self.group_channels // block_channels)
        a.chunk, a.chunks, a.tiles = chunk, -(-self.length // chunk), -(-chunk // TILE)
        a.tile_rows = self.tile_rows(chunk)
        a.shorten = a.chunks * chunk - self.length if self.options.reverse and self.cut_in_memory else 0
        return self.batch * a.chunks * a.groups * a.blocks

    cut_in_memory = True
    """Chunks start at multiples of their length in memory (the public phases), else in time (tiles must line up)."""

    def walk(self, name: str, chunk: int, **tensors: Tensor | None) -> None:
        """Launch one of the forward passes."""
        self.point(**tensors)
        grid = self.cut(chunk, SHAPE.channels)
        self.kernel(name)(grid, 32 * SHAPE.warps, 0, self.block)

    def propagate(
        self, dt_sums: Tensor, ends: Tensor, initial: Tensor | None, states: Tensor, final: Tensor, backwards: bool
    ) -> None:
        batch, chunks, channels, state = ends.shape
        pointers = (dt_sums, ends, self.A, initial, states, final)
        self.kernel("scan_propagate")(
            -(-batch * channels * state // 128), 128, 0,
            *(ctypes.c_void_p(None if t is None else t.data_ptr()) for t in pointers),
            *(ctypes.c_int(v) for v in (batch, chunks, channels, state, int(backwards))),
        )  # fmt: skip

    def summarize(self, name: str, chunk: int, **tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        """dt_sums and ends of all chunks by scan_summaries or scan_adjoints."""
        chunks = -(-self.length // chunk)
        dt_sums = self.empty(self.batch, chunks, self.channels)
        ends = self.empty(self.batch, chunks, self.channels, self.state)
        self.walk(name, chunk, dt_sums=dt_sums, chunk_ends=ends, **tensors)
        return dt_sums, ends

    def tile_states(self, chunk: int) -> Tensor:
        """Room for the states that enter the tiles of chunks; in the kernels' own order."""
        return self.empty(self.batch, self.tile_rows(chunk), self.channels, self.state)

    def tile_rows(self, chunk: int) -> int:
        """Tiles of a sequence; chunks cut in time are multiples of TILE, so that only its last tile may be short."""
        return -(-self.length // chunk) * -(-chunk // TILE) if self.cut_in_memory else -(-self.length // TILE)

    def gradients(
        self, tile_states: Tensor, adjoints: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """scan_gradients and the sums over its blocks and chunks, all in a fixed order."""
        B, C = self.maps
        chunks, columns = -(-self.length // chunk), self.columns(BACKWARD_CHANNELS)
        shapes = self.x.shape, self.dt.shape, B.shape, C.shape
        dx, ddt, dB, dC = (torch.empty(shape, dtype=self.dtype, device=self.device) for shape in shapes)
        dz = None if self.z is None else torch.empty_like(dx)
        dmaps = self.empty(self.batch, columns, self.length, 2 * MAX_STATE)
        dA_parts = self.empty(self.batch, chunks, self.channels, self.state)
        dD_parts, dbias_parts = (self.empty(self.batch, chunks, self.channels) for _ in range(2))
        self.point(B=B, C=C, tile_states=tile_states, chunk_adjoints=adjoints, dmaps=dmaps)
        self.point(dx=dx, ddt=ddt, dz=dz, dA_parts=dA_parts, dD_parts=dD_parts, dbias_parts=dbias_parts)
        grid = self.cut(chunk, BACKWARD_CHANNELS)
        self.kernel("scan_gradients")(grid, BACKWARD_THREADS, BACKWARD_SHARED, self.block)
        total = self.batch * self.groups * self.length * 8
        self.kernel("scan_sum_maps")(
            -(-total // 256), 256, 0,
            *(ctypes.c_void_p(t.data_ptr()) for t in (dmaps, dB, dC)), ctypes.c_longlong(self.length),
            ctypes.c_int(self.groups), ctypes.c_int(columns // self.groups), ctypes.c_longlong(total),
        )  # fmt: skip
        dD = None if self.D is None else dD_parts.sum((0, 1))
        dbias = None if self.dt_bias is None else dbias_parts.sum((0, 1))
        return dx, ddt, dA_parts.sum((0, 1)), dB, dC, dD, dz, dbias


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
        call = _Call(x, dt, A, (B,), None, None, dt_bias, sequence_ids, options)
        return call.summarize("scan_summaries", chunk, B=call.maps[0])


def propagate(
    dt_sums: Tensor, end_states: Tensor, A: Tensor, initial_state: Tensor | None, options: ScanOptions
) -> tuple[Tensor, Tensor]:
    """The state that enters each chunk and the final one: h ← exp(A ΣΔ) h + end."""
    with torch.cuda.device(A.device):
        rows = _dense(dt_sums)
        call = _Call(rows, rows, A, (rows[:, :, None, :1],), None, None, None, None, ScanOptions())
        states, final = torch.empty_like(end_states), call.empty(rows.shape[0], *A.shape)
        initial = None if initial_state is None else _dense(initial_state)
        call.propagate(rows, _dense(end_states), initial, states, final, options.reverse)
        return states, final


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
        call = _Call(x, dt, A, (B, C), D, z, dt_bias, sequence_ids, options)
        y = torch.empty(x.shape, dtype=call.dtype, device=x.device)
        B, C = call.maps
        call.walk("scan_outputs", chunk, B=B, C=C, chunk_states=_dense(chunk_states), y=y)
        return y.to(x.dtype)


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
        call = _Call(dy, dt, A, (C,), None, z, dt_bias, sequence_ids, options, dy=dy)
        return call.summarize("scan_adjoints", chunk, C=call.maps[0])


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
        call = _Call(x, dt, A, (B, C), D, z, dt_bias, sequence_ids, options, dy=dy)
        tiles = call.tile_states(chunk)
        y = torch.empty(x.shape, dtype=call.dtype, device=x.device)
        states = {"chunk_states": _dense(chunk_states), "tile_states": tiles, "y": y}
        call.walk("scan_outputs", chunk, B=call.maps[0], C=call.maps[1], **states)
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
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole forward pass: y, the final state and the states that `backward` starts from, in an order of its own.

    `chunk` is the grid of those states: TILE, or the length if that is shorter.
    """
    with torch.cuda.device(x.device):
        call = _Call(x, dt, A, (B, C), D, z, dt_bias, sequence_ids, options)
        call.cut_in_memory = False
        coarse = call.forward_chunk()
        B, C = call.maps
        dt_sums, ends = call.summarize("scan_summaries", coarse, B=B)
        states, final_state = torch.empty_like(ends), call.empty(call.batch, *A.shape)
        initial = None if initial_state is None else _dense(initial_state)
        call.propagate(dt_sums, ends, initial, states, final_state, options.reverse)
        y = torch.empty(x.shape, dtype=call.dtype, device=x.device)
        tiles = call.tile_states(coarse)
        call.walk("scan_outputs", coarse, B=B, C=C, chunk_states=states, tile_states=tiles, y=y)
        return y.to(x.dtype), final_state, tiles


def backward(
    dy: Tensor,
    dfinal_state: Tensor,
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
        call = _Call(x, dt, A, (B, C), D, z, dt_bias, sequence_ids, options, dy=dy)
        call.cut_in_memory = False
        coarse = call.backward_chunk()
        dt_sums, ends = call.summarize("scan_adjoints", coarse, C=call.maps[1])
        adjoints, dinitial = torch.empty_like(ends), call.empty(call.batch, *A.shape)
        call.propagate(dt_sums, ends, _dense(dfinal_state), adjoints, dinitial, not options.reverse)
        return *_like((x, dt, B, C, z), call.gradients(tile_states, adjoints, coarse)), dinitial


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
