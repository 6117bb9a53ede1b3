"""The CUDA scan's own source run on the CPU: what its kernels compute; not how fast, nor whether they race.

The source is compiled by g++ after its few lines of PTX are replaced (BODIES, LINES). The threads of a block are fibers
of one thread that alternate at barriers, shuffles and matrix products; blocks run one after another. Exponentials and
reciprocals are libm's, dynamic shared memory starts as NaN, and what is copied to it is NaN until its thread waits for
it. Threads run in alternating order. Fibers alternate by a long jump: swapcontext(3) costs a system call. No header of
C++ is included: two of them took half of the compiler's time.
"""

import contextlib
import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dnamamba_kernels.scan.cuda import plan
from dnamamba_kernels.scan.cuda import scan as cuda_scan

MULTIPROCESSORS = 2
"""Of the imagined GPU: small scans are cut into chunks of several tiles, the first one shorter."""

BODIES = {
    "float exp2_fast": "return exp2f(v);",
    "float reciprocal": "return 1.0f / v;",
    "u32 pack_bf16": "return (u32)to_bf16(low) | (u32)to_bf16(high) << 16;",
    "u32 load_16": "u16 v = 0; if (valid) memcpy(&v, p, 2); return v;",
    "u32 load_32": "u32 v = 0; if (valid) memcpy(&v, p, 4); return v;",
    "void fetch_16_bytes": (
        "auto &mine = under_way[threadIdx.x]; if (mine.count == COPIES) __builtin_trap();"
        "memset(to, 0xff, 16); mine.copies[mine.count++] = {to, from, valid};"
    ),
    "void wait_for_fetched": (
        "auto &mine = under_way[threadIdx.x];"
        "for (Copy *c = mine.copies; c < mine.copies + mine.count; c++)"
        " if (c->valid) memcpy(c->to, c->from, 16); else memset(c->to, 0, 16);"
        "mine.count = 0;"
    ),
    "void store_four": "const float v[4] = {v0, v1, v2, v3}; if (valid) memcpy(p, v, 16);",
    "void mma_add": "matrix_product(d, a, b0, b1);",
}
"""New bodies of the functions that are PTX."""

LINES = {  # regular expressions
    r'float r; asm\("cvt.f32.f16 [^;]*;"[^;]*;': "_Float16 h; memcpy(&h, &v, 2); float r = h;",
    r'u32 r; asm\("cvt.rn.f16x2.f32 [^;]*;"[^;]*;': (
        "_Float16 h[2] = {(_Float16)low, (_Float16)high}; u32 r; memcpy(&r, h, 4);"
    ),
    r'float2 v;\s*asm\("\{\.reg \.pred q; setp[^)]*?v2.*?\(u32\)first\)\);': (
        "float2 v = make_float2(0.0f, 0.0f); if (first) v = *reinterpret_cast<const float2 *>(p);"
    ),
    r'asm volatile\("" :.*?\);': "",
    r"extern __shared__ __align__\(16\) char memory\[\];": "char *memory = dynamic_shared;",
    r"__launch_bounds__\([^)]*(\([^)]*\))?[^)]*\)": "",
}

PRELUDE = r"""
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>
#define exp2f __builtin_exp2f
#define fabsf __builtin_fabsf
#define fmaf __builtin_fmaf
#define fmaxf __builtin_fmaxf
#define fminf __builtin_fminf
#define __device__
#define __forceinline__ inline
#define __global__
#define __shared__ static
#define __align__(x) __attribute__((aligned(x)))
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct index_t { unsigned x; };
static index_t threadIdx, blockIdx, blockDim;
static float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static float2 make_float2(float a, float b) { return {a, b}; }
static float __int_as_float(int v) { float r; memcpy(&r, &v, 4); return r; }
static int __float_as_int(float v) { int r; memcpy(&r, &v, 4); return r; }
static float __fdividef(float a, float b) { return a / b; }
static unsigned to_bf16(float v) {
    unsigned u = __float_as_int(v);
    return v != v ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

static char dynamic_shared[1 << 18] __attribute__((aligned(64)));
static const int THREADS = 1024, STACK = 1 << 16, COPIES = 64;  // at most: of a block, bytes, of a thread under way
static int block_threads;
static jmp_buf scheduler, fibers[THREADS];
static ucontext_t beginnings[THREADS];
static char stacks[THREADS][STACK] __attribute__((aligned(64)));
static bool begun[THREADS], ended[THREADS];
static __attribute__((noinline)) void alternate(jmp_buf &from, jmp_buf &to) { if (!_setjmp(from)) _longjmp(to, 1); }
struct Barrier { int waiting = 0, round = 0; };
static Barrier block_barrier, warp_barriers[32];
static unsigned exchange[32][32][6];
struct Copy { void *to; const void *from; bool valid; };
static struct { int count; Copy copies[COPIES]; } under_way[THREADS];

static void wait_at(Barrier &b, int threads) {
    const int round = b.round;
    if (++b.waiting == threads) b.waiting = 0, b.round++;
    while (b.round == round) alternate(fibers[threadIdx.x], scheduler);
}
static void __syncthreads() { wait_at(block_barrier, block_threads); }
static void __syncwarp() { wait_at(warp_barriers[threadIdx.x / 32], 32); }
static int __all_sync(unsigned, int v) {
    unsigned(*mine)[6] = exchange[threadIdx.x / 32];
    mine[threadIdx.x % 32][0] = v != 0;
    __syncwarp();
    int all = 1;
    for (int lane = 0; lane < 32; lane++) all &= mine[lane][0];
    __syncwarp();
    return all;
}
static float from_lane(float v, int lane) {
    unsigned(*mine)[6] = exchange[threadIdx.x / 32];
    memcpy(mine[threadIdx.x % 32], &v, 4);
    __syncwarp();
    memcpy(&v, mine[lane], 4);
    __syncwarp();
    return v;
}
static float __shfl_xor_sync(unsigned, float v, int distance) { return from_lane(v, threadIdx.x % 32 ^ distance); }
static float __shfl_sync(unsigned, float v, int lane, int width) {
    return from_lane(v, threadIdx.x % 32 / width * width + lane);
}
// d += A B of mma.m16n8k16 with bf16 operands, as the PTX manual lays them out.
static void matrix_product(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    unsigned(*all)[6] = exchange[threadIdx.x / 32];
    const int lane = threadIdx.x % 32;
    const unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(all[lane], own, sizeof own);
    __syncwarp();
    auto half = [](unsigned pair, int odd) { return __int_as_float((odd ? pair >> 16 : pair & 0xffff) << 16); };
    for (int i = 0; i < 4; i++) {
        const int m = lane / 4 + 8 * (i / 2), n = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const unsigned left = all[m % 8 * 4 + k % 8 / 2][m / 8 + 2 * (k / 8)];
            const unsigned right = all[n * 4 + k % 8 / 2][4 + k / 8];
            d[i] += half(left, k % 2) * half(right, k % 2);
        }
    }
    __syncwarp();
}
"""

LAUNCH = r"""
static void **launched;
static void fiber(int thread) {
    CALL;
    ended[thread] = true;
    _longjmp(scheduler, 1);
}
static __attribute__((noinline)) void run_until_it_waits(int thread) {
    threadIdx.x = thread;
    if (_setjmp(scheduler)) return;
    if (begun[thread]) _longjmp(fibers[thread], 1);
    begun[thread] = true;
    setcontext(&beginnings[thread]);
}
extern "C" void launch(int grid, int threads, void **arguments) {
    launched = arguments;
    blockDim.x = block_threads = threads;
    for (blockIdx.x = 0; (int)blockIdx.x < grid; blockIdx.x++) {
        memset(dynamic_shared, 0xff, sizeof dynamic_shared);
        for (int t = 0; t < threads; t++) {
            begun[t] = ended[t] = false;
            getcontext(&beginnings[t]);
            beginnings[t].uc_stack.ss_sp = stacks[t], beginnings[t].uc_stack.ss_size = STACK;
            makecontext(&beginnings[t], (void (*)())fiber, 1, t);
        }
        for (bool running = true, backwards = false; running; backwards = !backwards) {
            running = false;
            for (int i = 0; i < threads; i++) {
                const int t = backwards ? threads - 1 - i : i;
                if (!ended[t]) running = true, run_until_it_waits(t);
            }
        }
    }
}
"""


@functools.cache
def host_source() -> str:
    """The kernels as C++ for g++."""
    source = plan.source()
    for name, body in BODIES.items():
        begin = source.index("{", source.index(f"FORCE {name}(")) + 1
        end, depth = begin, 1
        while depth:
            depth += {"{": 1, "}": -1}.get(source[end], 0)
            end += 1
        source = source[:begin] + body + source[end - 1 :]
    for pattern, line in LINES.items():
        source, found = re.subn(pattern, lambda match, line=line: line, source, flags=re.DOTALL)
        assert found, pattern
    assert "asm" not in source, source[source.index("asm") :][:200]
    return source


@functools.cache
def _built(name: str, options: tuple[str, ...]) -> ctypes.CDLL:
    call = f"{name}(*(Arguments *)launched[0])"
    if name == "scan_propagate":
        types = [*["float *"] * 6, *["int"] * 5]
        call = f"{name}({', '.join(f'*({t} *)launched[{i}]' for i, t in enumerate(types))})"
    code = PRELUDE + host_source() + LAUNCH.replace("CALL", call)
    with tempfile.TemporaryDirectory() as folder:
        path, library = Path(folder, "scan.cpp"), Path(folder, "scan.so")
        path.write_text(code)
        # else libraries for different dtypes share the static variables of templates: their names are the same
        flags = "-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", "-fno-gnu-unique"
        flags += ("-U_FORTIFY_SOURCE",)  # which takes a jump to another stack for an error
        subprocess.run(["g++", *flags, *options, path, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def _kernel(device: int, name: str, layer: tuple[int, ...]):
    options = plan.defines(name, {**dict(zip(plan.LAYER, layer, strict=True)), **plan.CUT})

    def launch(grid, block, shared, stream, *arguments):
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        _built(name, options).launch(grid, block, pointers)

    return launch


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `dnamamba_kernels.scan.cuda.scan` take tensors on the CPU."""
    for module in (plan, cuda_scan):
        patch.setattr(module, "kernel", _kernel)
    patch.setattr(plan, "processors", lambda device: MULTIPROCESSORS)
    patch.setattr(plan, "shared_memory", lambda device: 228 * 1024)
    patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    patch.setattr(cuda_scan, "plan_for", plan.Plan)
