// Outputs in one pass over whole sequences: no summaries, no chunks. For batches with channels enough to fill the chip so.
// PARTS neighbouring lanes share a channel, each with OWN of its states, so that there are PARTS times as many threads as
// channels. What a position needs but once (softplus, gate, conversions) a lane does for one of PARTS positions in a row; it
// hands its delta and delta x to the others, and they their shares of the sum over states to it.
#ifdef scan_whole_BUILT
#define PARTS 2
#define OWN (PADDED / PARTS)
#define WHOLE_CHANNELS (WHOLE_WARPS * LANES / PARTS)     // of a block
#define WHOLE_ROW (WHOLE_CHANNELS + LANES / PARTS)       // so that what a warp reads of PARTS rows lies in different banks
#define SPAN 16                                       // positions of an iteration, which the instruction cache must hold
#define ALL_LANES 0xffffffffu

struct WholeShared {
    float maps[2][2][TILE][PADDED];                      // rows of B and C of a tile and the next
    data_t rows[2][3][TILE][WHOLE_ROW];                  // rows of dt, x and z likewise
    data_t y[2][TILE][WHOLE_ROW];                        // rows of y of a tile and the one before
    bool restart[2][TILE];
};
static_assert(sizeof(WholeShared) == 8256 + 8 * TILE * WHOLE_ROW * sizeof(data_t), "plan.py has as many bytes");

extern "C" __global__ void __launch_bounds__(WHOLE_WARPS * LANES, WHOLE_BLOCKS) scan_whole(const Arguments a) {
    constexpr int THREADS = WHOLE_WARPS * LANES, LANES_OF_ROW = WHOLE_CHANNELS / QUAD, AT_ONCE = THREADS / LANES_OF_ROW;
    extern __shared__ __align__(16) char memory[];
    WholeShared &s = *reinterpret_cast<WholeShared *>(memory);
    enum { DT, X, Z };

    const Task at = locate(a);
    const int part = threadIdx.x % PARTS, own = threadIdx.x / PARTS, n = part * OWN;
    const int first_local = at.channel_block % a.blocks * WHOLE_CHANNELS;
    const int first_channel = at.group * a.group_channels + first_local, channel = first_channel + own;
    const bool there = own < a.group_channels - first_local;
    const i64 sequence_row = (i64)at.batch * a.channels + channel;

    float A[OWN], h[OWN];
    load_decay(a, channel, n, there, A, OWN);
    load_state(a.initial_state + sequence_row * STATE, n, a.initial_state && there, h, OWN);
#pragma unroll
    for (int i = 0; i < OWN; i++) A[i] = A[i] == -INF ? -3e38f : A[i];   // times a delta of zero it must be zero
    const float bias = a.dt_bias && there ? a.dt_bias[channel] : 0.0f, skip = HAS_D && there ? a.D[channel] : 0.0f;

    // Of the rows of dt, x, z and y of a tile a thread moves 16 bytes of every AT_ONCE-th.
    const int moved_row = threadIdx.x / LANES_OF_ROW, moved_channel = threadIdx.x % LANES_OF_ROW * QUAD;
    const bool moves = moved_channel < a.group_channels - first_local;
    auto row_of = [&](const data_t *p, i64 batch, i64 row) {
        return p + at.batch * batch + (at.begin + at.sign * moved_row) * row + first_channel + moved_channel;
    };
    const data_t *dt = row_of(a.dt, a.dt_batch, a.dt_row), *x = row_of(a.x, a.x_batch, a.x_row);
    const data_t *z = HAS_Z ? row_of(a.z, a.z_batch, a.z_row) : nullptr;
    data_t *y = const_cast<data_t *>(row_of(a.y, a.length * (i64)a.channels, a.channels));
    const i64 step = at.sign * AT_ONCE;
    auto fetch_rows = [&](int tile) {
        data_t (*to)[TILE][WHOLE_ROW] = s.rows[tile & 1];
#pragma unroll
        for (int row = moved_row; row < TILE + moved_row; row += AT_ONCE) {
            const bool in = moves && tile * TILE + row < at.count;
            fetch_16_bytes(&to[DT][row][moved_channel], dt, in), dt += step * a.dt_row;
            fetch_16_bytes(&to[X][row][moved_channel], x, in), x += step * a.x_row;
            if (HAS_Z) fetch_16_bytes(&to[Z][row][moved_channel], z, in), z += step * a.z_row;
        }
    };
    auto store_rows = [&](int tile) {
#pragma unroll
        for (int row = moved_row; row < TILE + moved_row; row += AT_ONCE, y += step * a.channels)
            if (moves && tile * TILE + row < at.count)
                *reinterpret_cast<float4 *>(y) = *reinterpret_cast<const float4 *>(&s.y[tile & 1][row][moved_channel]);
    };

    const i64 tile_step = (STATE / 4) * tile_width(a);
    float *states_at = !a.tile_states ? nullptr
        : a.tile_states + (i64)at.batch * a.tile_rows * tile_step + n / 4 * tile_width(a) + tile_place(a, channel);
    auto keep_states = [&] {
#pragma unroll
        for (int q = 0; q < OWN; q += 4)
            store_four(states_at + q / 4 * tile_width(a), h[q], h[q + 1], h[q + 2], h[q + 3], there && n + q < STATE);
        states_at += tile_step;
    };

    // PARTS positions: delta and delta x of all, and what the lane alone needs of its own.
    struct Few { float delta[PARTS], u[PARTS], skipped, gate; };
    auto prepare = [&](int buffer, int first, int positions) {
        const int j = first + part;
        const float in_x = to_float(s.rows[buffer][X][j][own]), gate = HAS_Z ? to_float(s.rows[buffer][Z][j][own]) : 1.0f;
        float delta = step_size(to_float(s.rows[buffer][DT][j][own]), bias);
        if (j >= positions) delta = 0.0f;   // what lies behind the sequence leaves the state as it is
        const float u = ZOH ? in_x : delta * in_x;
        Few few;
#pragma unroll
        for (int k = 0; k < PARTS; k++)
            few.delta[k] = __shfl_sync(ALL_LANES, delta, k, PARTS), few.u[k] = __shfl_sync(ALL_LANES, u, k, PARTS);
        few.skipped = skip * in_x, few.gate = HAS_Z ? gate * sigmoid(gate) : 1.0f;
        return few;
    };
    auto recur = [&](const Few &few, int buffer, int first, float (&out)[PARTS]) {
        float decay[PARTS][OWN];
#pragma unroll
        for (int k = 0; k < PARTS; k++)
#pragma unroll
            for (int i = 0; i < OWN; i++) decay[k][i] = exp2_fast(few.delta[k] * A[i]);
#pragma unroll
        for (int k = 0; k < PARTS; k++) {
            if (HAS_IDS && s.restart[buffer][first + k])   // nothing survives: not even NaN, as a decay of zero would let it
#pragma unroll
                for (int i = 0; i < OWN; i++) h[i] = 0.0f;
            out[k] = 0.0f;
#pragma unroll
            for (int q = 0; q < OWN; q += 4) {
                const float4 left = *reinterpret_cast<const float4 *>(&s.maps[buffer][0][first + k][n + q]);
                const float4 right = *reinterpret_cast<const float4 *>(&s.maps[buffer][1][first + k][n + q]);
                const float in_map[4] = {left.x, left.y, left.z, left.w}, out_map[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float w = few.u[k] * in_map[i];
                    if (ZOH) w *= zoh_weight(few.delta[k], few.delta[k] * A[q + i], decay[k][q + i]);
                    h[q + i] = fmaf(decay[k][q + i], h[q + i], w);
                    out[k] = fmaf(h[q + i], out_map[i], out[k]);
                }
            }
        }
    };
    // To each lane the sum over states for its own position.
    auto share = [&](const float (&out)[PARTS]) {
        static_assert(PARTS == 2, "two lanes hand each other what the other needs");
        return (part ? out[1] : out[0]) + __shfl_xor_sync(ALL_LANES, part ? out[0] : out[1], 1);
    };
    auto finish = [&](const Few &few, const float (&out)[PARTS]) { return from_float((share(out) + few.skipped) * few.gate); };

    Maps<THREADS, true, true> maps(a, at, at.sign, at.begin);
    maps.fetch(a, at, 0);
    maps.put(s.maps[0], s.restart[0]);
    fetch_rows(0);
    const int tiles = (at.count + TILE - 1) / TILE;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        const int buffer = tile & 1, positions = at.count - tile * TILE;
        wait_for_fetched();
        __syncthreads();   // the tile is there, and all are through with the one before
        if (tile + 1 < tiles) fetch_rows(tile + 1), maps.fetch(a, at, tile + 1);
        if (tile > 0) store_rows(tile - 1);
        if (states_at) keep_states();

        // Some positions are prepared while those before are scanned and those before them are finished.
        Few next = prepare(buffer, 0, positions), now = next;
        float out[PARTS] = {};
#pragma unroll 1
        for (int first = 0; first < TILE; first += SPAN)
#pragma unroll
            for (int j = first; j < first + SPAN; j += PARTS) {
                const data_t done = finish(now, out);
                now = next;
                recur(now, buffer, j, out);
                next = prepare(buffer, (j + PARTS) % TILE, positions);   // after the last ones the first again, for nothing
                if (j > 0) s.y[buffer][j - PARTS + part][own] = done;
            }
        s.y[buffer][TILE - PARTS + part][own] = finish(now, out);
        if (tile + 1 < tiles) maps.put(s.maps[buffer ^ 1], s.restart[buffer ^ 1]);
    }
    __syncthreads();
    store_rows(tiles - 1);
    store_state(a.final_state + sequence_row * STATE, n, a.final_state && there, h, OWN);
}
#endif
