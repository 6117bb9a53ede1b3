// Passes that scan a chunk once with the states in registers: a thread owns WIDTH neighbouring channels and their 16 states, so
// that sums over states stay within it and the rows of B and C, which all channels of a block share, are broadcast from shared
// memory.
//   SUMMARY  state after the chunk entered with zero, and the sum of delta
//   OUTPUT   y from the state that enters the chunk; saves the state at every TILE positions for the backward pass
//   ADJOINT  dL/d(state that enters the chunk), if that of the state that leaves it is zero
// OUTPUT is the recurrence. The other two are sums over positions, weighted by what of a position is left at one end of the
// chunk, exp(A S) with S the sum of delta between them:
//   SUMMARY  sum_t exp(A sum_{s>t} delta_s) delta_t x_t B_t      ADJOINT  sum_t exp(A sum_{s<=t} delta_s) dy_t C_t
// They start at that end, so that states whose weights have fallen below 2^-FORGOTTEN in all of a warp cost no more.
enum Pass { SUMMARY, OUTPUT, ADJOINT };

#if WARPS > 0   // else another kernel is being built
#define WIDTH 2                                             // channels of a thread; plan.py knows it too
#define FORGOTTEN 32.0f
#define GROUP (32 / (int)sizeof(data_t))                    // positions that are fetched together, one group ahead
#define ROW (LANES * WIDTH)                                 // channels of a warp
#define ROW_LANES (ROW / QUAD)                              // lanes that move the row of a warp
#define ROWS_AT_ONCE (LANES / ROW_LANES)                    // rows that a warp moves by one instruction

// The rows of an array that a warp moves, GROUP positions at a time: 16 bytes a lane if all rows allow that (WIDE), else a
// lane's own channels.
struct Rows {
    const data_t *at;   // what this lane moves next
    i64 step;           // from one position to the next, in elements

    FORCE Rows(const data_t *first_row, i64 step, int lane) : step(step) {
        at = first_row + (WIDE ? lane / ROW_LANES * step + lane % ROW_LANES * QUAD : lane * WIDTH);
    }
    // `positions` of the group exist, and `moved` channels from this lane's first on.
    FORCE void fetch(data_t (*to)[ROW], int positions, int moved, int lane) {
#if WIDE
#pragma unroll
        for (int i = 0; i < GROUP; i += ROWS_AT_ONCE, at += ROWS_AT_ONCE * step) {
            const int row = i + lane / ROW_LANES;
            fetch_16_bytes(&to[row][lane % ROW_LANES * QUAD], at, moved > 0 && row < positions);
        }
#else
#pragma unroll
        for (int i = 0; i < GROUP; i++, at += step)
#pragma unroll
            for (int c = 0; c < WIDTH; c++) to[i][lane * WIDTH + c] = load_one(at + c, c < moved && i < positions);
#endif
    }
    FORCE void store(const data_t (*from)[ROW], int positions, int moved, int lane) {
        data_t *to = const_cast<data_t *>(at);
#if WIDE
#pragma unroll
        for (int i = 0; i < GROUP; i += ROWS_AT_ONCE, to += ROWS_AT_ONCE * step) {
            const int row = i + lane / ROW_LANES;
            if (moved > 0 && row < positions)
                *reinterpret_cast<float4 *>(to) = *reinterpret_cast<const float4 *>(&from[row][lane % ROW_LANES * QUAD]);
        }
#else
#pragma unroll
        for (int i = 0; i < GROUP; i++, to += step)
#pragma unroll
            for (int c = 0; c < WIDTH; c++)
                if (c < moved && i < positions) to[c] = from[i][lane * WIDTH + c];
#endif
        at = to;
    }
};

// A thread's channels of a row in shared memory.
FORCE void read_row(const data_t *row, int lane, float (&v)[WIDTH]) {
    const float2 both = unpack(reinterpret_cast<const pair_t *>(row)[lane]);
    v[0] = both.x, v[1] = both.y;
}
FORCE void write_row(data_t *row, int lane, const float (&v)[WIDTH]) {
    reinterpret_cast<pair_t *>(row)[lane] = pack(v[0], v[1]);
}

struct PassShared {
    float maps[2][2][TILE][PADDED];                   // rows of B or C, or of both, of a tile and the next
    data_t ring[2][WARPS][3][GROUP][ROW];             // rows of dt, x (dL/dy for ADJOINT) and z of a group and the next
    bool restart[2][TILE];
};
static_assert(sizeof(PassShared) == 8256 + 12288 * WARPS, "plan.py has as many bytes");

template <Pass PASS, int POLYNOMIAL> FORCE void run_pass(const Arguments &a) {
    constexpr int THREADS = WARPS * LANES;
    constexpr bool NEEDS_B = PASS != ADJOINT, NEEDS_C = PASS != SUMMARY, NEEDS_Z = HAS_Z && PASS != SUMMARY;
    constexpr int MAPS = NEEDS_B + NEEDS_C;
    extern __shared__ __align__(16) char memory[];
    PassShared &s = *reinterpret_cast<PassShared *>(memory);
    enum { DT, X, Z };

    const Task at = locate(a);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int warp_local = at.channel_block % a.blocks * (THREADS * WIDTH) + warp * ROW;
    const int warp_channel = at.group * a.group_channels + warp_local, channel = warp_channel + lane * WIDTH;
    const int there = a.group_channels - warp_local - lane * WIDTH;   // channels from the thread's first on
    const int moved = WIDE ? a.group_channels - warp_local - lane % ROW_LANES * QUAD : there;

    // SUMMARY scans the chunk from its last position in time to the first.
    const int sign = PASS == SUMMARY ? -at.sign : at.sign;
    const i64 start = PASS == SUMMARY ? at.begin + (i64)at.sign * (at.count - 1) : at.begin;
    Rows dt(a.dt + at.batch * a.dt_batch + start * a.dt_row + warp_channel, sign * a.dt_row, lane);
    Rows x = PASS == ADJOINT
        ? Rows(a.dy + at.batch * a.dy_batch + start * a.dy_row + warp_channel, sign * a.dy_row, lane)
        : Rows(a.x + at.batch * a.x_batch + start * a.x_row + warp_channel, sign * a.x_row, lane);
    Rows z(NEEDS_Z ? a.z + at.batch * a.z_batch + start * a.z_row + warp_channel : nullptr, sign * a.z_row, lane);
    Rows y(PASS == OUTPUT ? a.y + ((i64)at.batch * a.length + start) * a.channels + warp_channel : nullptr,
           (i64)sign * a.channels, lane);

    const i64 chunk_row = ((i64)at.batch * a.chunks + at.slot) * a.channels + channel;
    const i64 sequence_row = (i64)at.batch * a.channels + channel;
    const float *entering = at.time_chunk == 0 && a.initial_state ? a.initial_state + sequence_row * STATE
        : a.chunk_states ? a.chunk_states + chunk_row * STATE : nullptr;
    float A[WIDTH][PADDED], h[WIDTH][PADDED], bias[WIDTH], skip[WIDTH], sum[WIDTH], lost[WIDTH] = {};
    float bound[WIDTH][PADDED];   // only those of the states that take the polynomial stay in registers
    float slowest[PADDED / 4];    // of four states of the thread's channels: those whose weights fall last
#pragma unroll
    for (int q = 0; q < PADDED / 4; q++) slowest[q] = -INF;
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
        const bool valid = c < there;
        load_decay(a, channel + c, 0, valid, A[c], PADDED);
        load_state(entering + c * STATE, 0, PASS == OUTPUT && entering && valid, h[c], PADDED);
        bias[c] = a.dt_bias && valid ? a.dt_bias[channel + c] : 0.0f;
        skip[c] = HAS_D && PASS == OUTPUT && valid ? a.D[channel + c] : 0.0f;
        sum[c] = valid ? 0.0f : 1e30f;   // what does not exist is forgotten at once; not INF, of which Kahan's sum makes NaN
#pragma unroll
        for (int n = 0; n < PADDED; n++) {
            bound[c][n] = polynomial_bound(A[c][n]);
            // NaN as INF, which is never below the bound: nothing is left out then
            if (n < STATE && valid && !(A[c][n] <= slowest[n / 4])) slowest[n / 4] = A[c][n] == A[c][n] ? A[c][n] : INF;
        }
    }

    Maps<THREADS, NEEDS_B, NEEDS_C> maps(a, at, sign, start);

    int unfetched = at.count;
    auto fetch_rows = [&](int buffer) {
        data_t (*rows)[GROUP][ROW] = s.ring[buffer][warp];
        dt.fetch(rows[DT], unfetched, moved, lane), x.fetch(rows[X], unfetched, moved, lane);
        if (NEEDS_Z) z.fetch(rows[Z], unfetched, moved, lane);
        unfetched -= GROUP;
    };
    // spread the states that take the polynomial evenly, so that both pipes stay busy
    auto exp2_of = [&](float v, int c, int n) {   // of v A
        const bool poly = (n + 1) * POLYNOMIAL / PADDED != n * POLYNOMIAL / PADDED;
        return poly ? exp2_polynomial(v, A[c][n], bound[c][n]) : exp2_fast(v * A[c][n]);
    };

    // What OUTPUT does with the first `positions` of a group.
    auto recur = [&](data_t (*rows)[GROUP][ROW], const float (*map)[TILE][PADDED], const bool *restarts_at, int positions) {
#pragma unroll 4
        for (int j = 0; j < positions; j++) {
            if (HAS_IDS && restarts_at[j]) {   // nothing survives: not even NaN, as a decay of zero would let it
#pragma unroll
                for (int i = 0; i < WIDTH * PADDED; i++) h[i / PADDED][i % PADDED] = 0.0f;
            }
            float delta[WIDTH], in_x[WIDTH], gate[WIDTH], u[WIDTH], out[WIDTH];
            read_row(rows[DT][j], lane, delta), read_row(rows[X][j], lane, in_x);
            if (NEEDS_Z) read_row(rows[Z][j], lane, gate);
#pragma unroll
            for (int c = 0; c < WIDTH; c++) {
                delta[c] = step_size(delta[c], bias[c]);
                u[c] = ZOH ? in_x[c] : delta[c] * in_x[c];
                out[c] = skip[c] * in_x[c];
            }
            float decay[WIDTH][PADDED];
#pragma unroll
            for (int q = 0; q < PADDED; q += 4) {
                if (q % 8 == 0)   // eight at once: the compiler's order is better so than with four or all (issue_model.py)
#pragma unroll
                    for (int k = 0; k < 8; k++)
#pragma unroll
                        for (int c = 0; c < WIDTH; c++) decay[c][q + k] = exp2_of(delta[c], c, q + k);
                const float4 left = *reinterpret_cast<const float4 *>(&map[0][j][q]);
                const float4 right = *reinterpret_cast<const float4 *>(&map[MAPS - 1][j][q]);
                const float in_map[4] = {left.x, left.y, left.z, left.w}, out_map[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int c = 0; c < WIDTH; c++) {
                        const int n = q + k;
                        float w = u[c] * in_map[k];
                        if (ZOH) w *= zoh_weight(delta[c], delta[c] * A[c][n], exp2_fast(delta[c] * A[c][n]));
                        h[c][n] = fmaf(decay[c][n], h[c][n], w);
                        out[c] = fmaf(h[c][n], out_map[k], out[c]);
                    }
            }
#pragma unroll
            for (int c = 0; c < WIDTH; c++) gate[c] = NEEDS_Z ? out[c] * (gate[c] * sigmoid(gate[c])) : out[c];
            write_row(rows[DT][j], lane, gate);   // dt has been read
        }
    };
    // What the others do, for the first `live` fours of states; whether the pass ends there, as the state restarts.
    auto add_up = [&](data_t (*rows)[GROUP][ROW], const float (*map)[TILE][PADDED], const bool *restarts_at, int positions, int live) {
        float local[WIDTH] = {};   // sum of delta in this group
#pragma unroll 4
        for (int j = 0; j < positions; j++) {
            if (HAS_IDS && PASS == ADJOINT && restarts_at[j]) return true;
            float delta[WIDTH], u[WIDTH], gate[WIDTH], reach[WIDTH];
            read_row(rows[DT][j], lane, delta), read_row(rows[X][j], lane, u);
            if (NEEDS_Z) read_row(rows[Z][j], lane, gate);
#pragma unroll
            for (int c = 0; c < WIDTH; c++) {
                delta[c] = step_size(delta[c], bias[c]);
                const float before = local[c];
                local[c] += delta[c];
                reach[c] = sum[c] + (PASS == ADJOINT ? local[c] : before);
                u[c] *= PASS == ADJOINT ? (NEEDS_Z ? gate[c] * sigmoid(gate[c]) : 1.0f) : ZOH ? 1.0f : delta[c];
            }
#pragma unroll
            for (int q = 0; q < 4 * live; q += 4) {
                const float4 row = *reinterpret_cast<const float4 *>(&map[0][j][q]);
                const float in_map[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
                for (int c = 0; c < WIDTH; c++)
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        const int n = q + k;
                        float w = u[c] * in_map[k];
                        if (ZOH && PASS == SUMMARY)
                            w *= zoh_weight(delta[c], delta[c] * A[c][n], exp2_fast(delta[c] * A[c][n]));
                        h[c][n] = fmaf(exp2_of(reach[c], c, n), w, h[c][n]);
                    }
            }
            if (HAS_IDS && PASS == SUMMARY && restarts_at[j]) return true;
        }
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {   // Kahan's sum: that of thousands of groups is as exact as that of one
            const float add = local[c] - lost[c], next = sum[c] + add;
            lost[c] = next - sum[c] - add, sum[c] = next;
        }
        return false;
    };

    const i64 tile_step = (STATE / 4) * tile_width(a);
    float *states_at = PASS != OUTPUT || !a.tile_states ? nullptr
        : a.tile_states + ((i64)at.batch * a.tile_rows + first_tile(a, at)) * tile_step + tile_place(a, channel);
    const i64 to_second = tile_place(a, channel + 1) - tile_place(a, channel);
    auto keep_states = [&] {
        float *to = states_at;
#pragma unroll
        for (int n = 0; n < STATE; n += 4, to += tile_width(a))
#pragma unroll
            for (int c = 0; c < WIDTH; c++)
                store_four(to + c * to_second, h[c][n], h[c][n + 1], h[c][n + 2], h[c][n + 3], WIDE ? there > 0 : c < there);
        states_at += tile_step;
    };

    maps.fetch(a, at, 0);
    maps.put(s.maps[0], s.restart[0]);
    fetch_rows(0);
    bool restarted = false;
    int group = 0;
    const int tiles = (at.count + TILE - 1) / TILE;
#pragma unroll 1
    for (int tile = 0; tile < tiles && !restarted; tile++) {
        const int buffer = tile & 1;
        __syncthreads();
        if (tile + 1 < tiles) maps.fetch(a, at, tile + 1);
        if (PASS == OUTPUT && states_at) keep_states();
#pragma unroll 1
        for (int first = 0; first < TILE && !restarted; first += GROUP, group++) {
            const int rest = at.count - (tile * TILE + first), positions = rest < GROUP ? rest : GROUP;
            if (positions <= 0) break;
            wait_for_fetched();
            __syncwarp();   // what all lanes fetched is there, and what is fetched next replaces what all have read
            fetch_rows((group + 1) & 1);
            data_t (*rows)[GROUP][ROW] = s.ring[group & 1][warp];
            const float (*map)[TILE][PADDED] = reinterpret_cast<const float (*)[TILE][PADDED]>(&s.maps[buffer][0][first][0]);
            const bool *restarts_at = &s.restart[buffer][first];
            if (PASS == OUTPUT) {
                recur(rows, map, restarts_at, positions);
                __syncwarp();
                y.store(rows[DT], positions, moved, lane);
            } else {
                float least = fminf(sum[0], sum[1]);
                if (!SOFTPLUS)   // steps may be negative: no sum of the group is less than this
                    for (int j = 0; j < positions; j++) {
                        float steps[WIDTH];
                        read_row(rows[DT][j], lane, steps);
                        least += fminf(steps[0] + bias[0], 0.0f) + fminf(steps[1] + bias[1], 0.0f);
                    }
                auto dead = [&](int q) { return __all_sync(0xffffffffu, slowest[q] * least < -FORGOTTEN); };
                if (!dead(3)) restarted = add_up(rows, map, restarts_at, positions, 4);
                else if (!dead(2)) restarted = add_up(rows, map, restarts_at, positions, 3);
                else if (!dead(1)) restarted = add_up(rows, map, restarts_at, positions, 2);
                else if (!dead(0)) restarted = add_up(rows, map, restarts_at, positions, 1);
                else restarted = add_up(rows, map, restarts_at, positions, 0);
            }
        }
        if (tile + 1 < tiles) maps.put(s.maps[buffer ^ 1], s.restart[buffer ^ 1]);
    }
    wait_for_fetched();
    const bool ends = PASS != OUTPUT || a.chunk_ends, last = PASS == OUTPUT && a.final_state && at.time_chunk == a.chunks - 1;
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
        // of a chunk that gave its outputs the end is the state itself, which takes nothing from what enters
        if (ends && c < there) a.dt_sums[chunk_row + c] = PASS == OUTPUT || restarted ? INF : sum[c];
        store_state(a.chunk_ends + (chunk_row + c) * STATE, 0, ends && c < there, h[c], PADDED);
        store_state(a.final_state + (sequence_row + c) * STATE, 0, last && c < there, h[c], PADDED);
    }
}

#ifdef scan_forward_BUILT
extern "C" __global__ void __launch_bounds__(WARPS * LANES, MIN_BLOCKS) scan_forward(const Arguments a) {
    // run_pass locates again: with the task as an argument the compiler's order is 4 % worse (issue_model.py)
    if (locate(a).time_chunk < a.outputs) run_pass<OUTPUT, POLYNOMIAL_OUTPUT>(a);
    else run_pass<SUMMARY, POLYNOMIAL_SUMMARY>(a);
}
#endif
#ifdef scan_adjoints_BUILT
extern "C" __global__ void __launch_bounds__(WARPS * LANES, MIN_BLOCKS) scan_adjoints(const Arguments a) {
    run_pass<ADJOINT, POLYNOMIAL_SUMMARY>(a);
}
#endif
#endif

#ifdef scan_propagate_BUILT
// From chunk to chunk: h <- exp(A dt_sum) h + end. The warps of a block, MAX_RUNS at most, take the same 32 pairs of channel and
// state, each a run of chunks: it scans its run from zero, learns from the runs before it what enters its own, and scans it
// again. `backwards` takes the chunks from the last in memory to the first.
#define MAX_RUNS 16
#define AHEAD_CHUNKS 13   // of a run, in registers
extern "C" __global__ void __launch_bounds__(MAX_RUNS * LANES)
scan_propagate(const float *dt_sums, const float *ends, const float *A, const float *initial, float *states, float *final,
               int batch, int chunks, int channels, int state, int backwards) {
    __shared__ float decays[MAX_RUNS][LANES], locals[MAX_RUNS][LANES];
    const int lane = threadIdx.x % LANES, own_run = threadIdx.x / LANES, runs = blockDim.x / LANES;
    const i64 i = (i64)blockIdx.x * LANES + lane, width = (i64)channels * state;
    const bool valid = i < batch * width;
    const i64 b = valid ? i / width : 0, dn = valid ? i % width : 0, d = dn / state;
    const i64 sum_step = backwards ? -channels : channels, step = backwards ? -width : width;
    const i64 first = b * chunks + (backwards ? chunks - 1 : 0);
    const float a2 = A[dn] * LOG2E, gone = -1.0f;
    auto enter = [&](float h, float decay, float end) { return decay == gone ? end : fmaf(decay, h, end); };   // not even NaN survives
    float h = initial && valid ? initial[i] : 0.0f;
    for (int base = 0; base < chunks; base += runs * AHEAD_CHUNKS) {
        const int left = chunks - base, share = (left + runs - 1) / runs, run = share < AHEAD_CHUNKS ? share : AHEAD_CHUNKS;
        const int begin = base + own_run * run, missing = chunks - begin, count = !valid ? 0 : missing < run ? missing : run;
        const float *sums_at = dt_sums + first * channels + d + begin * sum_step, *ends_at = ends + first * width + dn + begin * step;
        float *states_at = states + first * width + dn + begin * step;
        float decay[AHEAD_CHUNKS], end[AHEAD_CHUNKS];
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++, sums_at += sum_step, ends_at += step) {
            decay[j] = j < count ? *sums_at : 0.0f;
            end[j] = j < count ? *ends_at : 0.0f;
        }
        float through = 1.0f, local = 0.0f;
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++) {
            decay[j] = decay[j] == INF ? gone : exp2_fast(a2 * decay[j]);
            if (j < count) {
                through = decay[j] == gone || through == gone ? gone : through * decay[j];
                local = enter(local, decay[j], end[j]);
            }
        }
        decays[own_run][lane] = through, locals[own_run][lane] = local;
        __syncthreads();
        float entering = h;
        for (int s = 0; s < runs; s++) {
            if (s == own_run) entering = h;
            h = enter(h, decays[s][lane], locals[s][lane]);
        }
#pragma unroll
        for (int j = 0; j < AHEAD_CHUNKS; j++, states_at += step) {
            if (j >= count) break;
            *states_at = entering;
            entering = enter(entering, decay[j], end[j]);
        }
        __syncthreads();
    }
    if (final && own_run == 0 && valid) final[i] = h;
}
#endif
