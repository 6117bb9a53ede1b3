"""CUDA C++ compiled at first use by NVRTC, which comes with PyTorch's CUDA build: no nvcc, no headers, no build step.

The machine code is kept on disk, one file a (source, options, architecture, NVRTC version), so that only the first
process on a machine compiles (a second a kernel). The folder is $DNAMAMBA_KERNEL_CACHE, else dnamamba_kernels under the
user's cache folder, else in the folder for temporary files.
"""

import atexit
import contextlib
import ctypes
import functools
import glob
import hashlib
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong | ctypes.Structure
MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
LANGUAGE = "--std=c++17", "--use_fast_math"
"""Options of each compilation, as nvcc takes them, too"""
INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC as PyTorch has it; RuntimeError naming what was tried if it is not there."""
    if torch.version.cuda is None:
        raise RuntimeError("PyTorch was built without CUDA, so it brings no NVRTC: install a CUDA build of torch")
    major = torch.version.cuda.split(".")[0]
    if sys.platform == "win32":
        names = [f"nvrtc64_{major}0_0.dll"]
    else:
        wheels = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
        names = [f"libnvrtc.so.{major}", *sorted(glob.glob(f"{wheels}/*/lib/libnvrtc.so.{major}")), "libnvrtc.so"]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"NVRTC was not found (tried {', '.join(names)}): reinstall torch with its CUDA packages")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _check_driver(code: int, doing: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver error {code} while {doing}: {(text.value or b'unknown').decode()}")


def version() -> tuple[int, int]:
    """NVRTC's version, e.g. (13, 0)."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    if _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)):
        raise RuntimeError("NVRTC does not say its version")
    return major.value, minor.value


def compile_cubin(source: str, options: Sequence[str], architecture: str) -> bytes:
    """Machine code for an architecture such as "sm_90"; RuntimeError with the compiler's log if it does not compile."""
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"scan.cu", 0, None, None):
        raise RuntimeError("NVRTC could not take the source")
    try:
        flags = [f"--gpu-architecture={architecture}", *LANGUAGE, *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        if nvrtc.nvrtcCompileProgram(program, len(flags), array):
            size = ctypes.c_size_t()
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC {version()} could not compile for {architecture}:\n{log.value.decode()}")
        size = ctypes.c_size_t()
        if nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)):
            raise RuntimeError(f"NVRTC {version()} made no machine code for {architecture}")
        cubin = ctypes.create_string_buffer(size.value)
        if nvrtc.nvrtcGetCUBIN(program, cubin):
            raise RuntimeError(f"NVRTC {version()} made no machine code for {architecture}")
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def cache_folder() -> Path:
    """Where compiled kernels are kept between processes."""
    if chosen := os.environ.get("DNAMAMBA_KERNEL_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "dnamamba_kernels"
    try:
        return Path.home() / ".cache" / "dnamamba_kernels"
    except RuntimeError:  # this user has no home, as in some containers
        return _own_folder(Path(tempfile.gettempdir()) / f"dnamamba_kernels-{os.getuid()}")


@functools.cache
def _own_folder(folder: Path) -> Path:
    """A folder where others may put files, too, if it is this user's alone; else one of this process.

    What lies in it is run: somebody else's could be anything.
    """
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    with contextlib.suppress(OSError):
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder
    new = Path(tempfile.mkdtemp(prefix="dnamamba_kernels-"))
    atexit.register(shutil.rmtree, new, ignore_errors=True)
    return new


def cubin_path(source: str, options: Sequence[str], architecture: str) -> Path:
    """Where `cached_cubin` keeps its result."""
    key = hashlib.sha256("\0".join([source, *options, architecture, str(version())]).encode()).hexdigest()
    return cache_folder() / f"{key}.cubin"


def cached_cubin(source: str, options: Sequence[str], architecture: str) -> bytes:
    """`compile_cubin`, or its result in an earlier process. A read-only folder costs a compilation only."""
    path = cubin_path(source, options, architecture)
    try:
        return path.read_bytes()
    except OSError:
        pass
    cubin = compile_cubin(source, options, architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written next to it and renamed: another process sees the whole file or none.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(cubin)
        os.replace(file.name, path)
    except OSError:
        pass
    return cubin


def load_cubin(source: str, options: Sequence[str], architecture: str) -> ctypes.c_void_p:
    """The module of `cached_cubin`; a kept file that does not load (cut short, say) is compiled again, once."""
    module = ctypes.c_void_p()
    if _driver().cuModuleLoadData(ctypes.byref(module), cached_cubin(source, options, architecture)):
        with contextlib.suppress(OSError):
            cubin_path(source, options, architecture).unlink()
        cubin = cached_cubin(source, options, architecture)
        _check_driver(_driver().cuModuleLoadData(ctypes.byref(module), cubin), "loading the compiled kernels")
    return module


class Kernel:
    """A loaded kernel; call it with a grid, a block, bytes of dynamic shared memory, a stream and ctypes arguments."""

    def __init__(self, function: ctypes.c_void_p, name: str, context: ctypes.c_void_p) -> None:
        self._function, self._name, self._context = function, name, context
        self._shared = 48 * 1024
        self._launch = _driver().cuLaunchKernel

    def __call__(self, grid: int, block: int, shared: int, stream: ctypes.c_void_p, *arguments: Argument) -> None:
        """Launch on a stream of the current device."""
        if shared > self._shared:
            code = self._in_context(_driver().cuFuncSetAttribute, self._function, MAX_DYNAMIC_SHARED_SIZE, shared)
            _check_driver(code, f"requesting {shared} bytes of shared memory for {self._name}")
            self._shared = shared
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        shape = grid, 1, 1, block, 1, 1
        if code := self._in_context(self._launch, self._function, *shape, shared, stream, pointers, None):
            _check_driver(code, f"launching {self._name}")

    def _in_context(self, call: Callable[..., int], *arguments: object) -> int:
        """What the driver answers, in the module's context if this thread has none yet.

        PyTorch chooses a thread's device without making a context current, and where its allocator serves from what it
        keeps nothing else does: so in backward passes, which run in threads of their own.
        """
        code = call(*arguments)
        if code == INVALID_CONTEXT:
            _check_driver(_driver().cuCtxSetCurrent(self._context), "making a context current")
            code = call(*arguments)
        return code


class Module:
    """The kernels of one compilation, loaded on one device (which must be the current one)."""

    def __init__(self, source: str, options: Sequence[str], device: int) -> None:
        torch.cuda.current_stream(device).synchronize()  # makes sure that the device's context exists and is current
        major, minor = torch.cuda.get_device_capability(device)
        self._module = load_cubin(source, options, f"sm_{major}{minor}")
        # The device's primary one, which PyTorch keeps for as long as the process lives.
        self._context = ctypes.c_void_p()
        _check_driver(_driver().cuCtxGetCurrent(ctypes.byref(self._context)), "getting the current context")
        self._kernels: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        """The kernel of this name."""
        if name not in self._kernels:
            function = ctypes.c_void_p()
            code = _driver().cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
            _check_driver(code, f"looking up {name}")
            self._kernels[name] = Kernel(function, name, self._context)
        return self._kernels[name]
