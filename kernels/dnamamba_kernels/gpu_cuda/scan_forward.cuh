// Passes that walk a chunk once with the states in registers: a thread owns two neighbouring channels and their 16 states,
// so that sums over states stay within it and the rows of B and C, which all channels of a block share, are broadcast from
// shared memory. A block has WARPS warps.
//   SUMMARY  state after the chunk entered with zero, and the sum of delta
//   OUTPUT   y from the state that enters the chunk; saves the state at every TILE positions for the backward pass
//   ADJOINT  against time: dL/d(state that enters the chunk), if that of the state that leaves it is zero
enum Pass { SUMMARY, OUTPUT, ADJOINT };

#if WARPS > 0   // else another kernel is being built
#define WIDTH 2
#define GROUP 4                             // positions that are fetched together
#define GROUPS ((DATA == 0 ? 8 : 16) / GROUP)   // groups in flight or in use

// Two channels of a row into shared memory, zero if they do not exist. A thread reads back only what it fetched itself, so
// that waiting for its own copies suffices. Registers would serve too, but the compiler sinks such loads to their use.
FORCE void fetch_pair(pair_t *to, const data_t *from, bool first, bool second) {
#if ALIGNED
    const u32 address = (u32)__cvta_generic_to_shared(to), bytes = first ? sizeof(pair_t) : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(sizeof(pair_t)), "r"(bytes));
#else
    *to = load_pair(from, first, second);
#endif
}
FORCE void end_group() { asm volatile("cp.async.commit_group;"); }
FORCE void wait_for_oldest_group() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS - 1) : "memory"); }

template <Pass PASS, int POLYNOMIAL> FORCE void walk(const Arguments &a) {
    constexpr int THREADS = WARPS * LANES;
    constexpr bool NEEDS_B = PASS != ADJOINT, NEEDS_C = PASS != SUMMARY, NEEDS_Z = HAS_Z && PASS != SUMMARY;
    constexpr int MAPS = NEEDS_B + NEEDS_C, STAGED = TILE * PADDED / 2 * MAPS / THREADS;
    __shared__ __align__(16) float maps[2][MAPS][TILE][PADDED];
    __shared__ bool restart[2][TILE];
    enum { DT, X, Z };   // X: the input, or dL/dy for ADJOINT
    __shared__ __align__(16) pair_t ring[GROUPS][2 + NEEDS_Z][GROUP][THREADS];

    const Place at = locate(a);
    const int local = (at.channel_block % a.blocks * THREADS + threadIdx.x) * WIDTH;
    const int channel = at.group * a.group_channels + local;

    // ADJOINT walks the chunk from its last position in time to the first.
    const int sign = PASS == ADJOINT ? -at.sign : at.sign;
    const i64 start = PASS == ADJOINT ? at.begin + (i64)at.sign * (at.count - 1) : at.begin;
    const data_t *dt = a.dt + at.batch * a.dt_batch + start * a.dt_row + channel;
    const data_t *x = PASS == ADJOINT ? a.dy + at.batch * a.dy_batch + start * a.dy_row + channel
                                      : a.x + at.batch * a.x_batch + start * a.x_row + channel;
    const data_t *z = NEEDS_Z ? a.z + at.batch * a.z_batch + start * a.z_row + channel : nullptr;
    const i64 dt_step = sign * a.dt_row, x_step = sign * (PASS == ADJOINT ? a.dy_row : a.x_row), z_step = sign * a.z_row;
    data_t *y = PASS == OUTPUT ? a.y + ((i64)at.batch * a.length + start) * a.channels + channel : nullptr;
    const i64 y_step = (i64)sign * a.channels;

    const i64 chunk_row = ((i64)at.batch * a.chunks + at.slot) * a.channels + channel;
    bool valid[WIDTH];
    float A[WIDTH][PADDED], h[WIDTH][PADDED], bias[WIDTH], skip[WIDTH], sum[WIDTH] = {};
    float bound[WIDTH][PADDED];   // only those of the states that take the polynomial stay in registers
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
        valid[c] = local + c < a.group_channels;
        load_decay(a, channel + c, 0, valid[c], A[c], PADDED);
        const bool given = PASS == OUTPUT && a.chunk_states;
        load_state(a.chunk_states + (chunk_row + c) * STATE, 0, given && valid[c], h[c], PADDED);
        bias[c] = a.dt_bias && valid[c] ? a.dt_bias[channel + c] : 0.0f;
        skip[c] = HAS_D && PASS == OUTPUT && valid[c] ? a.D[channel + c] : 0.0f;
#pragma unroll
        for (int n = 0; n < PADDED; n++) bound[c][n] = polynomial_bound(A[c][n]);
    }

    const data_t *B = NEEDS_B ? a.B + at.batch * a.B_batch + at.group * a.B_group : nullptr;
    const data_t *C = NEEDS_C ? a.C + at.batch * a.C_batch + at.group * a.C_group : nullptr;
    pair_t staged[STAGED];
    bool staged_restart = false;
    auto fetch_maps = [&](int tile) {   // rows of B and C of a tile into registers
#pragma unroll
        for (int s = 0; s < STAGED; s++) {
            const int i = s * THREADS + threadIdx.x;
            const int n = i % (PADDED / 2) * 2, t = i / (PADDED / 2) % TILE, map = i / (PADDED / 2 * TILE);
            const bool is_c = NEEDS_C && (!NEEDS_B || map == 1);
            const bool in = tile * TILE + t < at.count && n < STATE;
            const i64 p = start + (i64)sign * (tile * TILE + t);
            staged[s] = load_pair((is_c ? C : B) + p * (is_c ? a.C_row : a.B_row) + n, in, in);
        }
        if (HAS_IDS && threadIdx.x < TILE) {
            const int t = tile * TILE + threadIdx.x;
            staged_restart = t < at.count && restarts(a, at, start + (i64)sign * t);
        }
    };
    auto put_maps = [&](int buffer) {
        float2 *flat = reinterpret_cast<float2 *>(&maps[buffer][0][0][0]);
#pragma unroll
        for (int s = 0; s < STAGED; s++) flat[s * THREADS + threadIdx.x] = unpack(staged[s]);
        if (HAS_IDS && threadIdx.x < TILE) restart[buffer][threadIdx.x] = staged_restart;
    };

    auto fetch_rows = [&](int i) {   // the rows of a group of positions from time index i, and move on
        pair_t (*slot)[GROUP][THREADS] = ring[i / GROUP % GROUPS];
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            const bool in0 = i + j < at.count && valid[0], in1 = i + j < at.count && valid[1];
            fetch_pair(&slot[DT][j][threadIdx.x], dt, in0, in1), dt += dt_step;
            fetch_pair(&slot[X][j][threadIdx.x], x, in0, in1), x += x_step;
            if (NEEDS_Z) fetch_pair(&slot[NEEDS_Z ? Z : 0][j][threadIdx.x], z, in0, in1), z += z_step;
        }
        end_group();
    };

    auto forget = [&] {   // nothing survives: not even NaN, as a decay of zero would let it
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            sum[c] = INF;
#pragma unroll
            for (int n = 0; n < PADDED; n++) h[c][n] = 0.0f;
        }
    };

    fetch_maps(0);
    put_maps(0);
#pragma unroll 1
    for (int i = 0; i < GROUPS - 1; i++) fetch_rows(i * GROUP);
    const int tiles = (at.count + TILE - 1) / TILE;
    for (int tile = 0; tile < tiles; tile++) {
        const int buffer = tile & 1;
        __syncthreads();
        if (tile + 1 < tiles) fetch_maps(tile + 1);
        if (PASS == OUTPUT && a.tile_states) {
            const i64 row = (i64)at.batch * a.tile_rows + (i64)at.time_chunk * a.tiles + tile;
            float *out = a.tile_states + (row * (STATE / 4) * a.channels + channel) * 4;
#pragma unroll
            for (int q = 0; q < STATE / 4; q++, out += 4 * a.channels)
#pragma unroll
                for (int c = 0; c < WIDTH; c++)
                    if (valid[c])
                        *reinterpret_cast<float4 *>(out + 4 * c) =
                            make_float4(h[c][4 * q], h[c][4 * q + 1], h[c][4 * q + 2], h[c][4 * q + 3]);
        }
#pragma unroll 1
        for (int group = 0; group < TILE; group += GROUP) {
            const int i = tile * TILE + group;
            if (i >= at.count) break;
            fetch_rows(i + (GROUPS - 1) * GROUP);
            wait_for_oldest_group();
            const pair_t (*slot)[GROUP][THREADS] = ring[i / GROUP % GROUPS];
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                const bool in = i + j < at.count;
                if (HAS_IDS && PASS != ADJOINT && restart[buffer][group + j]) forget();
                float delta[WIDTH], gate[WIDTH], u[WIDTH], out[WIDTH][2];
                const float2 raw2 = unpack(slot[DT][j][threadIdx.x]), x2 = unpack(slot[X][j][threadIdx.x]);
                const float2 z2 = NEEDS_Z ? unpack(slot[NEEDS_Z ? Z : 0][j][threadIdx.x]) : make_float2(0.0f, 0.0f);
                const float raw[WIDTH] = {raw2.x, raw2.y}, in_x[WIDTH] = {x2.x, x2.y}, g[WIDTH] = {z2.x, z2.y};
#pragma unroll
                for (int c = 0; c < WIDTH; c++) {
                    delta[c] = (in ? 1.0f : 0.0f) * step_size(raw[c], bias[c]);
                    if (PASS != OUTPUT) sum[c] += delta[c];
                    gate[c] = NEEDS_Z ? g[c] * sigmoid(g[c]) : 1.0f;
                    // what multiplies B (delta x, or x for zero-order hold), or C for ADJOINT (dL/dy before the gate)
                    u[c] = in_x[c] * (PASS == ADJOINT ? gate[c] : ZOH ? 1.0f : delta[c]);
                    out[c][0] = skip[c] * in_x[c], out[c][1] = 0.0f;
                }
#pragma unroll
                for (int q = 0; q < 4; q++) {
                    const float4 left = *reinterpret_cast<const float4 *>(&maps[buffer][0][group + j][4 * q]);
                    const float4 right = *reinterpret_cast<const float4 *>(&maps[buffer][MAPS - 1][group + j][4 * q]);
                    const float in_map[4] = {left.x, left.y, left.z, left.w};
                    const float out_map[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
                    for (int k = 0; k < 4; k++)
#pragma unroll
                        for (int c = 0; c < WIDTH; c++) {
                            const int n = 4 * q + k;
                            // spread the states that take the polynomial evenly, so that both pipes stay busy
                            const bool poly = (n + 1) * POLYNOMIAL / PADDED != n * POLYNOMIAL / PADDED;
                            const float decay = poly ? exp2_polynomial(delta[c], A[c][n], bound[c][n])
                                                     : exp2_fast(delta[c] * A[c][n]);
                            if (PASS == ADJOINT) {
                                h[c][n] = decay * fmaf(u[c], in_map[k], h[c][n]);
                                continue;
                            }
                            float w = u[c] * in_map[k];
                            if (ZOH) w *= zoh_weight(delta[c], delta[c] * A[c][n], exp2_fast(delta[c] * A[c][n]));
                            h[c][n] = fmaf(decay, h[c][n], w);
                            if (PASS == OUTPUT) out[c][n & 1] = fmaf(h[c][n], out_map[k], out[c][n & 1]);
                        }
                }
                if (HAS_IDS && PASS == ADJOINT && restart[buffer][group + j]) forget();
                if (PASS == OUTPUT) {
                    const float y0 = (out[0][0] + out[0][1]) * gate[0], y1 = (out[1][0] + out[1][1]) * gate[1];
                    store_pair(y, y0, y1, in && valid[0], in && valid[1]);
                    y += y_step;
                }
            }
        }
        if (tile + 1 < tiles) put_maps(buffer ^ 1);
    }
    if (PASS != OUTPUT) {
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if (valid[c]) a.dt_sums[chunk_row + c] = sum[c];
            store_state(a.chunk_ends + (chunk_row + c) * STATE, 0, valid[c], h[c], PADDED);
        }
    }
}

#ifdef scan_summaries_BUILT
extern "C" __global__ void __launch_bounds__(WARPS * LANES, MIN_BLOCKS) scan_summaries(const Arguments a) {
    walk<SUMMARY, POLYNOMIAL_SUMMARY>(a);
}
#endif
#ifdef scan_outputs_BUILT
extern "C" __global__ void __launch_bounds__(WARPS * LANES, MIN_BLOCKS) scan_outputs(const Arguments a) {
    walk<OUTPUT, POLYNOMIAL_OUTPUT>(a);
}
#endif
#ifdef scan_adjoints_BUILT
extern "C" __global__ void __launch_bounds__(WARPS * LANES, MIN_BLOCKS) scan_adjoints(const Arguments a) {
    walk<ADJOINT, POLYNOMIAL_SUMMARY>(a);
}
#endif
#endif

#ifdef scan_propagate_BUILT
// From chunk to chunk: h <- exp(A dt_sum) h + end. A thread owns one channel and state; loads of AHEAD_CHUNKS chunks are in
// flight at once. `backwards` takes the chunks from the last in memory to the first.
#define AHEAD_CHUNKS 24
extern "C" __global__ void __launch_bounds__(128)
scan_propagate(const float *dt_sums, const float *ends, const float *A, const float *initial, float *states, float *final,
               int batch, int chunks, int channels, int state, int backwards) {
    const i64 i = (i64)blockIdx.x * 128 + threadIdx.x, width = (i64)channels * state;
    if (i >= batch * width) return;
    const i64 b = i / width, dn = i % width, d = dn / state;
    const i64 first = b * chunks + (backwards ? chunks - 1 : 0), sum_step = backwards ? -channels : channels;
    const i64 step = backwards ? -width : width;
    dt_sums += first * channels + d, ends += first * width + dn, states += first * width + dn;
    const float a2 = A[dn] * LOG2E, gone = -1.0f;
    float h = initial ? initial[i] : 0.0f;
    for (int base = 0; base < chunks; base += AHEAD_CHUNKS) {
        float decay[AHEAD_CHUNKS], end[AHEAD_CHUNKS];
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++, dt_sums += sum_step, ends += step) {
            decay[j] = base + j < chunks ? *dt_sums : 0.0f;
            end[j] = base + j < chunks ? *ends : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++) decay[j] = decay[j] == INF ? gone : exp2_fast(a2 * decay[j]);
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++, states += step) {
            if (base + j < chunks) *states = h;
            const float through = fmaf(decay[j], h, end[j]);
            h = decay[j] == gone ? end[j] : through;   // then not even NaN survives
        }
    }
    final[i] = h;
}
#endif
