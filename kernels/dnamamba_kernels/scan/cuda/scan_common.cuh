// The selective scan on NVIDIA GPUs: what all its kernels share. No headers: NVRTC compiles these files as they are.
//
// Compile-time switches (plan.py sets them; each kernel is compiled alone, once for each combination that it needs):
//   NAME_BUILT the kernel that is wanted
//   DATA       0 fp32, 1 bf16, 2 fp16: x, dt, z, B, C, y and their gradients
//   ALIGNED    pairs of channels, and of states in B and C, are aligned to two elements: one load takes both
//   WIDE       rows of x, dt, z and dL/dy are aligned to 16 bytes
//   STATE      states of a channel, 4, 8, 12 or 16; fewer than 16 are padded
//   SOFTPLUS, ZOH, HAS_Z, HAS_D, HAS_IDS   the options of the scan
//   WARPS, MIN_BLOCKS                      shape of the forward passes: warps of a block, blocks for which a multiprocessor
//              must have registers; WHOLE_WARPS, WHOLE_BLOCKS, BACKWARD_BLOCKS likewise for scan_whole and the gradients
//   POLYNOMIAL_SUMMARY, POLYNOMIAL_OUTPUT  how many of the 16 exponentials of a channel and position go to the FMA
//              pipe instead of the special-function unit, which alone would bind the forward pass
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define LANES 32
#define PADDED 16   // states of a channel in registers
#define QUAD (16 / (int)sizeof(data_t))   // elements of 16 bytes
#define TILE 32     // positions between two saved states; plan.py knows it too
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define FORCE __device__ __forceinline__
#define INF __int_as_float(0x7f800000)

#if DATA == 0
typedef float data_t;
typedef float2 pair_t;
#else
typedef u16 data_t;
typedef u32 pair_t;
#endif

// One argument block for all kernels; plan.py mirrors it field by field. Strides count elements.
struct Arguments {
    const data_t *x, *dt, *z, *dy, *B, *C;
    const float *A, *D, *dt_bias;
    const int *ids;
    data_t *y, *dx, *ddt, *dz;
    float *dt_sums;           // (batch, chunks, channels)
    float *chunk_ends;        // (batch, chunks, channels, STATE): end states, or adjoint ends
    const float *initial_state;    // (batch, channels, STATE): enters the first chunk, whatever chunk_states says
    const float *chunk_states;     // state that enters each chunk; without both it is zero
    const float *chunk_adjoints;   // dL/d(state that leaves each chunk)
    float *final_state;       // (batch, channels, STATE): after the last chunk in time, by the output pass
    float *tile_states;       // (batch, tile_rows, STATE / 4, channels in the order of tile_place, 4): state that enters each tile
    float *dmaps;             // (batch, groups * blocks, length, 32): dB and dC summed over the channels of a block
    float *dA_parts, *dD_parts, *dbias_parts;   // (batch, chunks, channels[, STATE])
    data_t *dB, *dC;
    float *dA, *dD, *ddt_bias;
    i64 x_batch, x_row, dt_batch, dt_row, z_batch, z_row, dy_batch, dy_row;
    i64 B_batch, B_row, B_group, C_batch, C_row, C_group, ids_batch;
    int batch, length, channels, group_channels, groups, blocks;   // blocks of channels in a group
    int chunk, chunks, tiles, tile_rows;   // tiles of a chunk, tiles in all
    int shorten, reverse;                  // shorten: positions that the first chunk in time lacks
    int first, taken;                     // chunks that this launch takes: the first one in time, and how many
    int outputs;                           // chunks before this one in time give outputs, the others summaries
};

FORCE float exp2_fast(float v) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
FORCE float reciprocal(float v) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }

// exp2(delta * a) for delta * a <= 0 on the FMA pipe, relative error 2e-7. `bound` is 126 / |a|: beyond it the result would
// leave the normal numbers. Adding 1.5 * 2^23 rounds to an integer in the low bits, which then go into the exponent.
FORCE float exp2_polynomial(float delta, float a, float bound) {
    const float magic = 12582912.0f;
    delta = fminf(delta, bound);
    float shifted = fmaf(delta, a, magic);
    float f = fmaf(delta, a, magic - shifted);
    float p = fmaf(f, 0.00133335416f, 0.00966624543f);
    p = fmaf(p, f, 0.0555050038f);
    p = fmaf(p, f, 0.240223512f);
    p = fmaf(p, f, 0.693147123f);
    p = fmaf(p, f, 1.0f);
    return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

FORCE float polynomial_bound(float a) { return a < 0.0f ? -126.0f * reciprocal(a) : INF; }

// log(1 + exp(v)) = max(v, 0) + log1p(exp(-|v|)), log1p(e) / e by a polynomial on [0, 1], relative error 3e-8; 1.3e-6 where v
// comes from 16 bits, of which at most 11 are significant.
FORCE float softplus(float v) {
    const float e = exp2_fast(-LOG2E * fabsf(v));
#if DATA != 0
    const float c[] = {0.014141025f, -0.0664018095f, 0.149223894f, -0.235038623f, 0.331094503f, -0.499869645f, 0.999998748f};
#else
    const float c[] = {0.00523269549f, -0.0295052435f, 0.0782259256f, -0.136632457f, 0.191060066f, -0.24842982f,
                       0.333190978f, -0.499994934f, 0.99999994f};
#endif
    float p = c[0];
#pragma unroll
    for (int k = 1; k < (int)(sizeof c / sizeof *c); k++) p = fmaf(p, e, c[k]);
    return fmaf(p, e, fmaxf(v, 0.0f));
}

FORCE float sigmoid(float v) { return reciprocal(1.0f + exp2_fast(-LOG2E * v)); }

FORCE float step_size(float dt, float bias) {
    float v = dt + bias;
    return SOFTPLUS ? softplus(v) : v;
}

// Zero-order hold: w = phi * B * x with phi = (exp(u) - 1) / A, u = delta * A. Below |u| = 1/2 the difference cancels: series.
FORCE float zoh_weight(float delta, float u2, float decay) {
    float u = u2 * LN2, g = 0.0f;
    if (u > -0.5f) {
#pragma unroll
        for (int k = 9; k >= 1; k--) g = fmaf(g, u / (k + 1.0f), 1.0f);
    } else {
        g = __fdividef(decay - 1.0f, u);
    }
    return delta * g;
}

// d phi / dA = delta^2 * (u exp(u) - (exp(u) - 1)) / u^2; as a series 1/2 + u/3 + u^2/8 + ... = sum (k+1) u^k / (k+2)!.
FORCE float zoh_slope(float delta, float u2, float decay) {
    float u = u2 * LN2, g;
    if (u > -0.5f) {
        g = 0.0f;
        const float c[9] = {0.5f, 0.333333333f, 0.125f, 0.0333333333f, 0.00694444444f, 0.00119047619f, 1.73611111e-4f,
                            2.20458554e-5f, 2.48015873e-6f};
#pragma unroll
        for (int k = 8; k >= 0; k--) g = fmaf(g, u, c[k]);
    } else {
        g = __fdividef(u * decay - (decay - 1.0f), u * u);
    }
    return delta * delta * g;
}

FORCE float to_float(data_t v) {
#if DATA == 0
    return v;
#elif DATA == 1
    return __int_as_float((u32)v << 16);
#else
    float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v)); return r;
#endif
}

FORCE float2 unpack(pair_t v) {
#if DATA == 0
    return v;
#elif DATA == 1
    return make_float2(__int_as_float(v << 16), __int_as_float(v & 0xffff0000u));
#else
    return make_float2(to_float((u16)(v & 0xffffu)), to_float((u16)(v >> 16)));
#endif
}

FORCE u32 pack_bf16(float low, float high) {
    u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
}

FORCE pair_t pack(float low, float high) {
#if DATA == 0
    return make_float2(low, high);
#elif DATA == 1
    return pack_bf16(low, high);
#else
    u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r;
#endif
}

FORCE data_t from_float(float v) {
#if DATA == 0
    return v;
#else
    return (data_t)(pack(v, 0.0f) & 0xffffu);
#endif
}

// Loads that read zero where `valid` is false: predicated, as the compiler would branch around them.
FORCE u32 load_16(const void *p, bool valid) {
    u16 v;
    asm("{.reg .pred q; setp.ne.u32 q, %2, 0; mov.b16 %0, 0; @q ld.global.nc.u16 %0, [%1];}" : "=h"(v) : "l"(p), "r"((u32)valid));
    return v;
}
FORCE u32 load_32(const void *p, bool valid) {
    u32 v;
    asm("{.reg .pred q; setp.ne.u32 q, %2, 0; mov.b32 %0, 0; @q ld.global.nc.u32 %0, [%1];}" : "=r"(v) : "l"(p), "r"((u32)valid));
    return v;
}

FORCE data_t load_one(const data_t *p, bool valid) {
#if DATA == 0
    return __int_as_float(load_32(p, valid));
#else
    return (data_t)load_16(p, valid);
#endif
}

// Two neighbouring channels of a row (or states of B or C); those that do not exist read as zero.
FORCE pair_t load_pair(const data_t *p, bool first, bool second) {
#if ALIGNED && DATA == 0
    float2 v;
    asm("{.reg .pred q; setp.ne.u32 q, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @q ld.global.nc.v2.f32 {%0, %1}, [%2];}"
        : "=f"(v.x), "=f"(v.y) : "l"(p), "r"((u32)first));
    return v;
#elif ALIGNED
    return load_32(p, first);
#elif DATA == 0
    return make_float2(load_one(p, first), load_one(p + 1, second));
#else
    return load_16(p, first) | load_16(p + 1, second) << 16;
#endif
}

// 16 bytes into shared memory, zeros if not valid; there once `wait_for_fetched` returns.
FORCE void fetch_16_bytes(void *to, const void *from, bool valid) {
    const u32 address = (u32)__cvta_generic_to_shared(to), bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes));
}
FORCE void wait_for_fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }

FORCE void store_pair(data_t *p, float low, float high, bool first, bool second) {
    pair_t v = pack(low, high);
#if ALIGNED
    if (first) *reinterpret_cast<pair_t *>(p) = v;
#elif DATA == 0
    if (first) p[0] = v.x;
    if (second) p[1] = v.y;
#else
    if (first) p[0] = (u16)(v & 0xffffu);
    if (second) p[1] = (u16)(v >> 16);
#endif
}

// Through PTX, as the compiler would take four stores where the four lie in other than neighbouring registers.
FORCE void store_four(float *p, float v0, float v1, float v2, float v3, bool valid) {
    asm volatile("{.reg .pred q; setp.ne.u32 q, %5, 0; @q st.global.v4.f32 [%0], {%1, %2, %3, %4};}"
                 ::"l"(p), "f"(v0), "f"(v1), "f"(v2), "f"(v3), "r"((u32)valid) : "memory");
}

// Where a block works. Time index i of a chunk lies at position begin + i, or at begin - i in reverse.
struct Task {
    int batch, group, channel_block, slot, time_chunk;   // slot: index of the chunk in memory order
    int count;                     // positions of the chunk
    i64 begin;                     // position of the first one in time
    int sign;
};

FORCE Task locate(const Arguments &a) {
    Task at;
    u32 i = blockIdx.x;
    u32 blocks = a.groups * a.blocks;
    at.channel_block = i % blocks;
    i /= blocks;
    at.time_chunk = a.first + i % a.taken;
    at.batch = i / a.taken;
    at.group = at.channel_block / a.blocks;
    i64 start = (i64)at.time_chunk * a.chunk - a.shorten, end = start + a.chunk;
    if (start < 0) start = 0;
    if (end > a.length) end = a.length;
    at.count = (int)(end - start);
    at.slot = a.reverse ? a.chunks - 1 - at.time_chunk : at.time_chunk;
    at.begin = a.reverse ? a.length - 1 - start : start;
    at.sign = a.reverse ? -1 : 1;
    return at;
}

// The first tile of a chunk, whose states are kept in order of time: the first chunk may be shorter by whole tiles.
FORCE i64 first_tile(const Arguments &a, const Task &at) {
    return at.time_chunk ? (i64)at.time_chunk * a.tiles - a.shorten / TILE : 0;
}

// Does the state restart before the position at p (the first one in time never does: it takes the initial state)?
FORCE bool restarts(const Arguments &a, const Task &at, i64 p) {
    i64 before = p - at.sign;
    if (before < 0 || before >= a.length) return false;
    const int *ids = a.ids + at.batch * a.ids_batch;
    return ids[p] != ids[before];
}

// `count` states of a channel from n on, fours at a time: rows of STATE floats are 16-byte aligned.
FORCE void load_state(const float *p, int n, bool valid, float *out, int count) {
#pragma unroll
    for (int k = 0; k < count; k += 4) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (valid && n + k < STATE) v = *reinterpret_cast<const float4 *>(p + n + k);
        out[k] = v.x, out[k + 1] = v.y, out[k + 2] = v.z, out[k + 3] = v.w;
    }
}

FORCE void store_state(float *p, int n, bool valid, const float *in, int count) {
#pragma unroll
    for (int k = 0; k < count; k += 4)
        if (valid && n + k < STATE)
            *reinterpret_cast<float4 *>(p + n + k) = make_float4(in[k], in[k + 1], in[k + 2], in[k + 3]);
}

// Four states of all channels in tile_states, and where those of a channel lie in it: first all even channels, then all odd ones,
// so that the 16-byte stores of a warp whose threads have two channels are dense.
FORCE i64 tile_width(const Arguments &a) { return (i64)a.channels * 4; }
FORCE i64 tile_place(const Arguments &a, int channel) { return ((channel & 1) * (i64)((a.channels + 1) / 2) + channel / 2) * 4; }

// A[channel][n] / ln 2, so that exp(delta A) = exp2(delta a).
FORCE void load_decay(const Arguments &a, int channel, int n, bool valid, float *out, int count) {
    load_state(a.A + (i64)channel * STATE, n, valid, out, count);
#pragma unroll
    for (int k = 0; k < count; k++) out[k] *= LOG2E;
}

// How a block moves the rows of B and C of a tile, or of one of them, and where the state restarts, into shared memory: a thread
// takes elements n and n + 1 of every STEP-th row, through registers, so that a tile can be loaded while another is used.
template <int THREADS, bool NEEDS_B, bool NEEDS_C> struct Maps {
    static constexpr int STEP = THREADS / (PADDED / 2), ROWS = TILE / STEP, MAPS = NEEDS_B + NEEDS_C;
    const u32 row, n;
    const int sign;
    const i64 start, B_step, C_step;   // position of the first row; from a row to the next
    const data_t *B, *C;
    pair_t staged[MAPS][ROWS];
    bool restart;

    FORCE Maps(const Arguments &a, const Task &at, int sign, i64 start)
        : row(threadIdx.x / (PADDED / 2)), n(threadIdx.x % (PADDED / 2) * 2), sign(sign), start(start), B_step(sign * a.B_row),
          C_step(sign * a.C_row), restart(false) {
        B = NEEDS_B ? a.B + at.batch * a.B_batch + at.group * a.B_group + start * a.B_row + row * B_step + n : nullptr;
        C = NEEDS_C ? a.C + at.batch * a.C_batch + at.group * a.C_group + start * a.C_row + row * C_step + n : nullptr;
    }
    FORCE void fetch(const Arguments &a, const Task &at, int tile) {
        const int rest = n < STATE ? at.count - tile * TILE - (int)row : 0;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const bool in = i * STEP < rest;
            if (NEEDS_B) staged[0][i] = load_pair(B, in, in), B += STEP * B_step;
            if (NEEDS_C) staged[MAPS - 1][i] = load_pair(C, in, in), C += STEP * C_step;
        }
        if (HAS_IDS && threadIdx.x < TILE) {
            const int t = tile * TILE + threadIdx.x;
            restart = t < at.count && restarts(a, at, start + (i64)sign * t);
        }
    }
    FORCE void put(float (*to)[TILE][PADDED], bool *restarts_at) {
#pragma unroll
        for (int m = 0; m < MAPS; m++)
#pragma unroll
            for (int i = 0; i < ROWS; i++) *reinterpret_cast<float2 *>(&to[m][row + i * STEP][n]) = unpack(staged[m][i]);
        if (HAS_IDS && threadIdx.x < TILE) restarts_at[threadIdx.x] = restart;
    }
};
