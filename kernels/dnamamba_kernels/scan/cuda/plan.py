"""How the kernels of the CUDA scan are built and launched, from sizes, strides, dtypes and options alone.

A plan is made once for each layout of a scan's arguments and kept: what a call adds are addresses.
"""

import ctypes
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from dnamamba_kernels.scan.arguments import ScanOptions
from dnamamba_kernels.scan.cuda.nvrtc import Kernel, Module

LANES = 32  # threads of a warp
TILE = 32  # positions between saved states, as in scan_common.cuh
MAX_STATE = 16
# How the kernels are cut was measured on an H100: see LOG.md.
FORWARD_THREADS = 128  # of a block in the forward passes
FORWARD_CHANNELS = 2 * FORWARD_THREADS
FORWARD_BLOCKS = 3  # that a multiprocessor has registers for
# Blocks a multiprocessor: what a position costs each of them, in units of the cost where there are two.
FORWARD_PACES = {1: 1.3, 2: 1.0, 3: 1.0}
TWO_PASSES = 1.85  # cost of summary and output of a position, in units of the output's
TWO_LAUNCHES = 40  # cost of the launches that one chunk does not need, in positions
# The first chunk's length at most, in units of the others', so that its outputs take no longer than their summaries
FIRST_SHARE = 0.6
WHOLE_THREADS = 128  # of a block of scan_whole
WHOLE_CHANNELS = WHOLE_THREADS // 2
WHOLE_BLOCKS = 4  # that a multiprocessor has registers for
# What a tile costs scan_whole, in the same units: for blocks that run at once, and for each block
WHOLE_PACE = 0.08, 0.26
BACKWARD_THREADS = 128  # of a block of scan_gradients
BACKWARD_CHANNELS = 64
BACKWARD_BLOCKS = 3  # likewise
# Chunks are cut so that the grid has this many times as many, if they have at least so many positions; else the next.
BACKWARD_WAVES = ((8, 256), (6, 128), (3, 0))
SUM_THREADS = 256  # of a block of scan_sum_parts
MAX_RUNS = 16  # warps of a block of scan_propagate
# of a multiprocessor, by compute capability
SHARED_KILOBYTES = {(8, 0): 164, (8, 7): 164, (9, 0): 228, (10, 0): 228, (10, 3): 228}
RESERVED = 1024  # bytes of shared memory that the system takes of each block's
CUT = {
    "WARPS": FORWARD_THREADS // LANES,
    "MIN_BLOCKS": FORWARD_BLOCKS,
    "BACKWARD_BLOCKS": BACKWARD_BLOCKS,
    "POLYNOMIAL_SUMMARY": 2,  # of 16 exponentials, how many go to the FMA pipe in summaries and adjoints
    "POLYNOMIAL_OUTPUT": 1,  # the same in outputs
    "WHOLE_WARPS": WHOLE_THREADS // LANES,
    "WHOLE_BLOCKS": WHOLE_BLOCKS,
}  # compile-time switches that are the same for all scans
FORWARD_SHARED = 8256 + 12288 * (FORWARD_THREADS // LANES)  # struct PassShared
WHOLE_SHARED = 8256, 8 * TILE * (WHOLE_CHANNELS + LANES // 2)  # struct WholeShared: bytes, and elements of data
BACKWARD_SHARED = 4 * (3 * TILE * 64 + 2 * TILE * 16 + (TILE // 4) * 4 * 256 + 4 * 128) + TILE  # struct BackwardShared
BACKWARD_ROWS_SHARED = 3 * TILE * LANES * 4  # the same struct's rows, where they are kept: 16-bit data
LAYER = ("DATA", "ALIGNED", "WIDE", "STATE", "SOFTPLUS", "ZOH", "HAS_Z", "HAS_D", "HAS_IDS")
SCALARS = ("DATA", "ALIGNED", "STATE", "SOFTPLUS", "HAS_IDS")
PASS = (*SCALARS, "WIDE", "WARPS", "MIN_BLOCKS")
KERNELS = {  # the compile-time switches that each kernel depends on; the others are 0
    "scan_forward": (*PASS, "ZOH", "HAS_Z", "HAS_D", "POLYNOMIAL_OUTPUT", "POLYNOMIAL_SUMMARY"),
    "scan_whole": (*SCALARS, "ZOH", "HAS_Z", "HAS_D", "WHOLE_WARPS", "WHOLE_BLOCKS"),
    "scan_adjoints": (*PASS, "HAS_Z", "POLYNOMIAL_SUMMARY"),
    "scan_propagate": (),
    "scan_gradients": (*SCALARS, "ZOH", "HAS_Z", "HAS_D", "BACKWARD_BLOCKS"),
    "scan_sum_parts": ("DATA", "STATE"),
}
DATA = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SOURCES = ("scan_common.cuh", "scan_forward.cuh", "scan_whole.cuh", "scan_backward.cuh")

_POINTERS = (
    "x", "dt", "z", "dy", "B", "C", "A", "D", "dt_bias", "ids", "y", "dx", "ddt", "dz", "dt_sums", "chunk_ends",
    "initial_state", "chunk_states", "chunk_adjoints", "final_state", "tile_states", "dmaps", "dA_parts", "dD_parts",
    "dbias_parts", "dB", "dC", "dA", "dD", "ddt_bias",
)  # fmt: skip
_SIZES = (
    "batch", "length", "channels", "group_channels", "groups", "blocks",
    "chunk", "chunks", "tiles", "tile_rows", "shorten", "reverse",
    "first", "taken", "outputs",
)  # fmt: skip


class Arguments(ctypes.Structure):
    """struct Arguments of scan_common.cuh, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((f"{name}_{of}", ctypes.c_longlong) for name in ("x", "dt", "z", "dy") for of in ("batch", "row")),
        *((f"{name}_{of}", ctypes.c_longlong) for name in ("B", "C") for of in ("batch", "row", "group")),
        ("ids_batch", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in _SIZES),
    ]


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
def kernel(device: int, name: str, layer: tuple[int, ...]) -> Kernel:
    """The kernel for the values of LAYER, the switches that follow from the arguments."""
    return _compiled(device, name, defines(name, {**dict(zip(LAYER, layer, strict=True)), **CUT}))


@functools.cache
def processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory of a multiprocessor (CUDA C++ Programming Guide, compute capabilities)."""
    return 1024 * SHARED_KILOBYTES.get(torch.cuda.get_device_capability(device), 100)


class Layout(NamedTuple):
    """All that the launches of a scan depend on, but for addresses: the key of its plan."""

    device: int
    dtype: torch.dtype
    aligned: bool
    """Whether addresses are aligned to pairs of elements"""
    wide: bool
    """Whether those of x, dt, z and dy are aligned to 16 bytes"""
    size: tuple[int, ...]
    """batch, length, channels"""
    state: int
    groups: int
    strides: tuple[tuple[int, ...] | None, ...]
    """of x, dt, z, dy, B, C and ids, None where absent"""
    has_D: bool
    options: ScanOptions
    in_memory: bool
    """Chunks start at multiples of their length in memory (the public phases), else in time (tiles must line up)"""


class BlockSize(NamedTuple):
    """What a block of a kernel takes."""

    channels: int
    threads: int
    shared: int
    """bytes"""


class Plan:
    """How the scans of one layout are launched: kernels, chunks, grids and argument blocks without addresses."""

    def __init__(self, layout: Layout) -> None:
        self.layout, (self.batch, self.length, self.channels) = layout, layout.size
        self.group_channels = self.channels // layout.groups
        aligned = layout.aligned and self._in_steps_of(2, layout.strides[:6])
        wide = layout.wide and self._in_steps_of(16 // layout.dtype.itemsize, layout.strides[:4])
        options, (_, _, z, _, _, _, ids) = layout.options, layout.strides
        present = z is not None, layout.has_D, ids is not None
        flags = aligned, wide, layout.state, options.dt_softplus, options.zoh, *present
        self.layer = DATA[layout.dtype], *map(int, flags)
        self._kernels: dict[str, Kernel] = {}
        self._cuts: dict[tuple[int | None, ...], tuple[int, bytes]] = {}
        self.tiles = -(-self.length // TILE)
        one_pass = BlockSize(FORWARD_CHANNELS, FORWARD_THREADS, FORWARD_SHARED)
        whole = WHOLE_SHARED[0] + WHOLE_SHARED[1] * layout.dtype.itemsize
        backward = BACKWARD_SHARED + BACKWARD_ROWS_SHARED * (layout.dtype != torch.float32)
        self.blocks = {
            "scan_forward": one_pass,
            "scan_adjoints": one_pass,
            "scan_whole": BlockSize(WHOLE_CHANNELS, WHOLE_THREADS, whole),
            "scan_gradients": BlockSize(BACKWARD_CHANNELS, BACKWARD_THREADS, backward),
        }
        self.forward_kernel, self.forward_chunk, self.forward_lacking = self._forward(wide)
        chunks = ((self._backward_chunk(waves), least) for waves, least in BACKWARD_WAVES)
        self.backward_chunk = next(chunk for chunk, least in chunks if chunk >= least)

    def _in_steps_of(self, elements: int, strides: tuple[tuple[int, ...] | None, ...]) -> bool:
        """Whether rows that start at multiples of so many elements have groups of channels that do, and rows, too."""
        rows = [of[:-1] for of in strides if of is not None]
        return self.group_channels % elements == 0 and all(s % elements == 0 for row in rows for s in row)

    def kernel(self, name: str) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = kernel(self.layout.device, name, self.layer)
        return self._kernels[name]

    def columns(self, channels: int) -> int:
        """Blocks of this many channels side by side, all groups together."""
        return self.layout.groups * -(-self.group_channels // channels)

    def _capacity(self, channels: int, blocks: int) -> int:
        """Chunks of a sequence, in blocks of this many channels, at once, if a multiprocessor holds so many blocks."""
        return processors(self.layout.device) * blocks // (self.batch * self.columns(channels))

    def _forward(self, wide: bool) -> tuple[str, int, int]:
        """The kernel, positions of a chunk, a multiple of TILE, and how many of them the first one lacks.

        Whatever costs least, or nearly so with fewer blocks: the summaries of longer chunks forget more of the states.
        """
        ways = self._ways_to_cut()
        least, *chosen = next(ways)
        for cost, chunk, first in ways:
            if 1.01 * cost < least:
                least, chosen = cost, [chunk, first]
        if wide and not self.layout.in_memory and self._whole_cost() < least:
            return "scan_whole", TILE * self.tiles, 0
        chunk, first = chosen
        return "scan_forward", TILE * chunk, TILE * (chunk - first)

    def _whole_cost(self) -> float:
        """Cost of scan_whole in tiles of one block of scan_forward."""
        blocks = self._blocks_each(WHOLE_CHANNELS)
        rounds = -(-blocks // self._held(WHOLE_BLOCKS, "scan_whole"))
        return self.tiles * (WHOLE_PACE[0] * rounds + WHOLE_PACE[1] * blocks)

    def _ways_to_cut(self) -> Iterator[tuple[float, int, int]]:
        """For scan_forward: cost in tiles of one block, tiles of a chunk, tiles of the first one.

        One chunk, which needs no summary, or as many as fill the chip with one to three blocks a multiprocessor and a
        first one more, which takes what the others leave (`scan.py` says why).
        """
        tiles = self.tiles
        for blocks, pace in FORWARD_PACES.items():
            held = self._held(blocks, "scan_forward")
            capacity = self._capacity(FORWARD_CHANNELS, held)
            if capacity > 0:
                yield held * pace * tiles, tiles, tiles
            chunk = math.ceil(tiles / (capacity + FIRST_SHARE))
            if capacity > 1 and chunk < tiles:
                cost = held * pace * chunk * TWO_PASSES + TWO_LAUNCHES / TILE
                yield cost, chunk, max(1, tiles - capacity * chunk)
        if capacity == 0:  # not all at once, even so
            yield self._blocks_each(FORWARD_CHANNELS) * tiles, tiles, tiles

    def _blocks_each(self, channels: int) -> int:
        """Blocks of this many channels, in one chunk, for each multiprocessor."""
        return math.ceil(self.batch * self.columns(channels) / processors(self.layout.device))

    def _backward_chunk(self, waves: int) -> int:
        """Positions of a chunk, a multiple of TILE, such that the grid is at most so many times what the chip holds."""
        blocks = waves * self._held(BACKWARD_BLOCKS, "scan_gradients")
        return TILE * -(-self.length // (TILE * max(1, self._capacity(BACKWARD_CHANNELS, blocks))))

    def _held(self, blocks: int, name: str) -> int:
        """So many blocks of a kernel, or those for which a multiprocessor has shared memory."""
        return max(1, min(blocks, shared_memory(self.layout.device) // (self.blocks[name].shared + RESERVED)))

    def chunks(self, chunk: int, lacking: int = 0) -> int:
        """Chunks of a sequence, the first of which lacks so many positions."""
        return -(-(self.length + lacking) // chunk)

    def tile_rows(self, chunk: int) -> int:
        """Tiles of a sequence; chunks cut in time are multiples of TILE, so that only its last tile may be short."""
        return self.chunks(chunk) * -(-chunk // TILE) if self.layout.in_memory else self.tiles

    def cut(
        self,
        chunk: int,
        block_channels: int,
        lacking: int = 0,
        first: int = 0,
        last: int | None = None,
        outputs: int = 0,
    ) -> tuple[int, bytes]:
        """The blocks of a grid for chunks [first, last) in time, and the argument block, addresses missing.

        The very first chunk has `lacking` positions less than the others; those before `outputs` give outputs.
        """
        key = chunk, block_channels, lacking, first, last, outputs
        if key not in self._cuts:
            a, layout = Arguments(), self.layout
            for name, strides in zip(("x", "dt", "z", "dy", "B", "C"), layout.strides, strict=False):
                for of, stride in zip(("batch", "row", "group"), (strides or ())[:-1], strict=False):
                    setattr(a, f"{name}_{of}", stride)
            a.ids_batch = (layout.strides[6] or (0,))[0]
            a.batch, a.length, a.channels = layout.size
            a.group_channels, a.groups, a.reverse = self.group_channels, layout.groups, int(layout.options.reverse)
            a.blocks = -(-self.group_channels // block_channels)
            a.chunk, a.chunks, a.tiles = chunk, self.chunks(chunk, lacking), -(-chunk // TILE)
            a.tile_rows = self.tile_rows(chunk)
            # in reverse the last chunk in memory, which may be short, comes first
            a.shorten = a.chunks * chunk - self.length if a.reverse and layout.in_memory else lacking
            a.first, a.taken, a.outputs = first, (a.chunks if last is None else last) - first, outputs
            self._cuts[key] = self.batch * a.taken * a.groups * a.blocks, bytes(a)
        return self._cuts[key]


plan_for = functools.lru_cache(maxsize=256)(Plan)
