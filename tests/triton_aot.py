"""Compile every Triton kernel ahead of time, as the public functions launch it, on a machine without a GPU.

    python tests/triton_aot.py 80 90 100        # compute capabilities

The backend's functions run on CPU tensors with each kernel replaced by a recorder, so signatures, constants and
divisibility are the real ones; then each recorded launch is compiled to a cubin. Needs TRITON_INTERPRET unset: not in
the test process.
"""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dnamamba_kernels import triton_common
from dnamamba_kernels.conv import triton as conv
from dnamamba_kernels.conv.protocol import ConvArguments
from dnamamba_kernels.gated_norm import triton as gated_norm
from dnamamba_kernels.norm import triton as norm
from dnamamba_kernels.rotary import triton as rotary
from dnamamba_kernels.scan.arguments import ScanArguments, ScanOptions
from dnamamba_kernels.scan.triton import scan, step
from dnamamba_kernels.ssd.protocol import SSDArguments
from dnamamba_kernels.ssd.triton import ssd

MODULES = {
    "common": triton_common,
    "conv": conv,
    "norm": norm,
    "gated_norm": gated_norm,
    "rotary": rotary,
    "scan": scan,
    "scan step": step,
    "ssd": ssd,
}
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}
OPTIONS = {"num_warps", "num_stages", "maxnreg", "enable_fp_fusion"}


class Launch:
    """One recorded launch: a kernel with its arguments."""

    def __init__(self, name: str, kernel: triton.JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.name, self.kernel = name, kernel
        self.options = {k: v for k, v in kwargs.items() if k in OPTIONS}
        bound = dict(zip(kernel.arg_names, args, strict=False))
        bound.update({k: v for k, v in kwargs.items() if k not in OPTIONS})
        self.signature: dict[str, str] = {}
        self.constants: dict[tuple[int, ...], Any] = {}
        self.attributes: dict[tuple[int, ...], Any] = {}
        for index, parameter in enumerate(kernel.params):
            value = bound[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
                self.signature[parameter.name] = "constexpr"
                self.constants[(index,)] = value
            elif isinstance(value, torch.Tensor):
                self.signature[parameter.name] = TYPES[value.dtype]
                self.attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                self.signature[parameter.name] = "fp32"
            else:
                self.signature[parameter.name] = "i32" if value < 2**31 else "i64"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    self.attributes[(index,)] = [["tt.divisibility", 16]]

    def compile(self, capability: int) -> Any:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


def record(call: Callable[[], object]) -> list[Launch]:
    """The launches during ``call``, in which every kernel of the backend is replaced and nothing runs."""
    launches: list[Launch] = []
    kernels = {
        (module, name): kernel
        for module in MODULES.values()
        for name, kernel in vars(module).items()
        if isinstance(kernel, triton.JITFunction) and name.endswith("_kernel")
    }

    operators = {module: operator.split()[0] for operator, module in MODULES.items()}

    class Recorder:
        def __init__(self, label: str, kernel: triton.JITFunction):
            self.label, self.kernel = label, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(0 < size < 2**31 for size in grid), f"{self.label}: grid {grid}"
            return lambda *args, **kwargs: launches.append(Launch(self.label, self.kernel, args, kwargs))

    try:
        for (module, name), kernel in kernels.items():
            setattr(module, name, Recorder(f"{operators[module]}.{name.strip('_')}", kernel))
        call()
    finally:
        for (module, name), kernel in kernels.items():
            setattr(module, name, kernel)
    return launches


def conv_launches(dtype: torch.dtype, width: int, channels: int, every_option: bool) -> list[Launch]:
    x = torch.zeros(1, 256, channels, dtype=dtype)
    weight, bias = torch.zeros(channels, width), torch.zeros(channels)
    state = torch.zeros(1, width - 1, channels, dtype=dtype) if every_option else None
    ids = torch.zeros(1, 256, dtype=torch.int32) if every_option else None
    a = ConvArguments(x, weight, bias, state, ids, "silu", every_option)
    return record(lambda: (conv.BACKEND.forward(a), conv.BACKEND.backward(a, x, state)))


def norm_launches(dtype: torch.dtype, residual_dtype: torch.dtype, width: int) -> list[Launch]:
    x, residual, weight = (
        torch.zeros(64, width, dtype=dtype),
        torch.zeros(64, width, dtype=residual_dtype),
        torch.zeros(width),
    )

    def call() -> None:
        _, total, rstd = norm.BACKEND.forward(x, weight, residual, 1e-5, residual_dtype)
        norm.BACKEND.normalised(total, weight, rstd, dtype)
        norm.BACKEND.backward(
            x, residual, residual, weight, rstd, dtype, None if dtype == residual_dtype else residual_dtype
        )

    return record(call)


def scan_launches(dtype: torch.dtype, channels: int, state: int, groups: int, every_option: bool) -> list[Launch]:
    """All five kernels: as Mamba uses them, or (every_option) reversed, zero-order hold, packed, B constant."""
    x, A, vector = torch.zeros(1, 256, channels, dtype=dtype), torch.zeros(channels, state), torch.zeros(channels)
    C = torch.zeros(1, 256, groups, state, dtype=dtype)
    B = torch.zeros(channels, state, dtype=dtype) if every_option else C
    z, D, bias = (None, None, None) if every_option else (x, vector, vector)
    ids = torch.zeros(1, 256, dtype=torch.int32) if every_option else None
    options = ScanOptions(dt_softplus=not every_option, reverse=every_option, zoh=every_option)
    states = torch.zeros(1, 4, channels, state)
    a = ScanArguments(x, x, A, B, C, D, z, bias, None, ids, options)

    def call() -> None:
        scan.BACKEND.chunk_summaries(a, 64)
        scan.BACKEND.propagate(torch.zeros(1, 4, channels), states, A, None, options.reverse)
        scan.BACKEND.chunk_outputs(a, states, 64)
        scan.BACKEND.backward_summaries(a, x, 64)
        scan.BACKEND.chunk_gradients(a, x, states, states, 64)

    return record(call)


def step_launches(dtype: torch.dtype, channels: int, state: int, every_option: bool) -> list[Launch]:
    """Both steps: as Mamba uses them, or (every_option) zero-order hold with constant B, and no more."""
    x, A, vector = torch.zeros(2, channels, dtype=dtype), torch.zeros(channels, state), torch.zeros(channels)
    B, h = torch.zeros(2, 1, state, dtype=dtype), torch.zeros(2, channels, state)
    rows, weight = torch.zeros(2, 3, channels, dtype=dtype), torch.zeros(channels, 4)
    D, z, bias = (None, None, None) if every_option else (vector, x, vector)
    options = ScanOptions(dt_softplus=not every_option, zoh=every_option)

    def call() -> None:
        conv.BACKEND.step(ConvArguments(x, weight, D, rows, None, None if every_option else "silu", False))
        scan.BACKEND.step(ScanArguments(x, x, A, A if every_option else B, B, D, z, bias, h, None, options))

    return record(call)


def ssd_launches(dtype: torch.dtype, head: int, state: int, groups: int, every_option: bool) -> list[Launch]:
    """All five kernels: as Mamba-2 uses them, or (every_option) packed, with states in and out, without D."""
    x, steps = torch.zeros(1, 256, 4, head, dtype=dtype), torch.zeros(1, 256, 4)
    B, h = torch.zeros(1, 256, groups, state, dtype=dtype), torch.zeros(1, 4, head, state)
    ids = torch.zeros(1, 256, dtype=torch.int32)
    rest = (None, h, ids) if every_option else (torch.zeros(4), None, None)
    a = SSDArguments(x, steps, steps, B, B, *rest)
    return record(lambda: (ssd.BACKEND.forward(a), ssd.BACKEND.backward(a, x, rest[1])))


def other_launches(dtype: torch.dtype, heads: int, head: int) -> list[Launch]:
    """The gated norm and rotary positions."""
    qkv, angles = torch.zeros(2, 64, 3, heads, head, dtype=dtype), torch.zeros(1, 64, head // 2)
    rows, weight = torch.zeros(64, heads * head, dtype=dtype), torch.zeros(heads * head)

    def call() -> None:
        gated_norm.BACKEND.forward(rows, rows, weight, 1e-5)
        gated_norm.BACKEND.backward(rows, rows, rows, weight, torch.zeros(64))
        rotary.BACKEND.backward(*rotary.BACKEND.forward(qkv, angles, angles), angles, angles)

    return record(call)


def instructions(cubin: bytes) -> bytes:
    """Of the one kernel in it: the section of its ELF file that is called `.text` and the kernel's name."""
    headers, size, count, names = *struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<3H", cubin, 0x3A)
    sections = [struct.unpack_from("<2I4Q2I2Q", cubin, headers + i * size) for i in range(count)]
    begin = sections[names][4]
    (found,) = (cubin[s[4] : s[4] + s[5]] for s in sections if cubin[begin + s[0] :].startswith(b".text."))
    return found


def machine_code(cubins: list[bytes], capability: int) -> list[list[str]]:
    """The instructions of each, one a line. One process reads them all: most of its time is its start."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    codes = [instructions(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        command = [nvdisasm, "--binary", f"SM{capability}{'a' * (capability >= 90)}", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = iter([line for line in listing.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)])
    found = [list(itertools.islice(lines, len(code) // 16)) for code in codes]
    assert next(lines, None) is None and all(16 * len(f) == len(code) for f, code in zip(found, codes, strict=True))
    return found


def fused_exchanges(code: list[str]) -> int:
    """How often a product is fused with what another lane sends: a b + c there, c + a b here, are rounded differently.

    Lanes that are to hold the same sum then do not (Triton's issue 7264).
    """
    received: set[str] = set()
    count = 0
    for line in code:
        if match := re.search(r"SHFL\S* \w+, (R\d+),", line):
            received.add(match[1])
        elif match := re.search(r"(\w+)\S* (R\d+), (.*?);", line):
            read = received.intersection(re.findall(r"R\d+", match[3]))
            count += match[1] == "FFMA" and bool(read)
            received -= read | {match[2]}
    return count


def unset_registers(code: list[str]) -> int:
    """How many of Hopper's instructions read a uniform register that none before them has set.

    ptxas of CUDA 12.8 does so with addresses of tiles: the product is of any other memory, or the kernel faults.
    """
    known: set[int] = set()
    count = 0
    for line in code:
        match = re.search(r"\*/ +(?:@!?U?P\w+ +)?([A-Z][\w.]+) +(?:UR(\d+)(?:, |(?= ;)))?(.*?) ?;", line)
        if match is None:
            continue
        operation, target, sources = match.groups()
        read = {int(number) for number in re.findall(r"(?<!gdesc\[)\bUR(\d+)", sources)}
        for number in map(int, re.findall(r"gdesc\[UR(\d+)", sources)):
            # A descriptor for each factor in shared memory; the first of them may be in registers.
            read |= set(range(number + (2 if re.match(r"R\d+, R\d+, gdesc", sources) else 0), number + 4))
        if operation == "UPRMT" and target is not None:
            read.discard(int(target))  # it moves two bytes, and keeps others that nobody reads
        count += not read <= known
        if target is not None:
            known |= {int(target), int(target) + (".64" in operation or "WIDE" in operation)}
    return count


def all_launches() -> list[Launch]:
    launches = conv_launches(torch.bfloat16, 4, 512, False) + conv_launches(torch.float32, 3, 33, True)
    launches += norm_launches(torch.bfloat16, torch.float32, 256) + norm_launches(torch.float32, torch.float32, 100)
    launches += norm_launches(torch.bfloat16, torch.float32, 3) + norm_launches(torch.float32, torch.bfloat16, 33)
    launches += scan_launches(torch.bfloat16, 512, 16, 1, False) + scan_launches(torch.float32, 33, 5, 3, True)
    launches += other_launches(torch.bfloat16, 4, 64) + other_launches(torch.float32, 1, 6)
    launches += ssd_launches(torch.bfloat16, 64, 16, 1, False) + ssd_launches(torch.bfloat16, 70, 100, 2, True)
    launches += ssd_launches(torch.float32, 6, 5, 2, True) + ssd_launches(torch.bfloat16, 32, 128, 2, True)
    launches += step_launches(torch.bfloat16, 512, 16, False) + step_launches(torch.float32, 33, 5, True)
    return launches


def main(capabilities: list[int]) -> None:
    for capability in capabilities:
        launches = all_launches()
        kernels = [launch.compile(capability) for launch in launches]
        codes = machine_code([kernel.asm["cubin"] for kernel in kernels], capability)
        for launch, kernel, code in zip(launches, kernels, codes, strict=True):
            unset = unset_registers(code) if capability == 90 else 0
            assert not unset, f"sm_{capability} {launch.name}: {unset} reads of registers that were never set"
            shared, fused = kernel.metadata.shared, fused_exchanges(code)
            print(f"sm_{capability} {launch.name} shared {shared} bytes, {fused} fused exchanges")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [90])
