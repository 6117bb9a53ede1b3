// All gradients of a chunk from the states that enter its tiles (saved by the forward pass) and dL/d(state that leaves it).
//
//   g_t = C_t dy_t + r_{t+1},  r_t = a_t g_t      the adjoint of h_t, and what of it reaches h_{t-1}
//   dC_t = sum_d dy_t h_t      dB_t = sum_d g_t (delta x)_t      dA = sum_t delta_t r_t h_{t-1}
//   d(delta x)_t = q_t = sum_n g_t B_t      d delta_t = x_t q_t + sum_n A r_t h_{t-1}
//
// A block takes 64 channels, a warp 16 of them, a thread 2 channels x 4 states: channel pair lane % 8, states 4 (lane / 8).
// Tiles of TILE positions go from the last in time to the first. In a tile:
//   1. the per-position scalars (delta, its input, dL/dy before the gate) of all channels into shared memory, once;
//   2. a sweep forward keeps the state at every STEPS positions in shared memory;
//   3. STEPS positions at a time, last first: states and decays recomputed into registers, then scanned backwards.
// Sums over states are shuffles over the four lanes of a channel pair. Sums over the 16 channels of a warp go through the
// tensor cores: a lane's 4 dB and 4 dC (summed over its two channels) are the B operand of mma.m16n8k16, whose product with
// a matrix of zeros and ones adds the four lanes of a quad exactly in fp32 and lays what belongs to one state side by side.
// Operands are bf16: rounded once for bf16 data, split in two (16 bits) otherwise. Over warps the sum goes through shared
// memory, over blocks through scan_sum_parts: the order is fixed, no atomics.
#define STEPS 4
#define BLOCK_CHANNELS 64
#define BACKWARD_WARPS 4
#define BACKWARD_THREADS 128
#define ROWS (TILE / BACKWARD_WARPS)   // rows of a tile that a warp serves as a worker on scalars
#define SPLIT (DATA != 1)
#define KEEP_ROWS (DATA != 0)          // x, dL/dy and z stay in shared memory from stage 1 to 4: room for 16 bits

struct BackwardShared {
    float delta[TILE][BLOCK_CHANNELS];
    float input[TILE][BLOCK_CHANNELS];     // delta x (x for zero-order hold); later q
    float dy[TILE][BLOCK_CHANNELS];        // dL/dy before the gate; later y before the gate
    float B[TILE][PADDED], C[TILE][PADDED];
    // One kilobyte a warp and step group: its state (32 lanes x 8); once used, dB and dC of its positions ([STEPS][32])
    // and d delta ([STEPS][16 channels]).
    float kept[TILE / STEPS][BACKWARD_WARPS][256];
#if KEEP_ROWS
    pair_t rows[3][TILE][LANES];
#endif
    float4 row_sums[BACKWARD_THREADS];   // dbias and dskip of a worker on scalars, whose registers are needed for states
    bool restart[TILE];
};
static_assert(sizeof(BackwardShared) == 63520 + KEEP_ROWS * 12288, "plan.py has as many bytes");
static_assert(BACKWARD_WARPS == STEPS, "stage 4 takes row i of each warp to lie in step group i");

FORCE void mma_add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d gains, in the column of each quad, the sums over the quad's lanes of v[0] to v[3], in the four of its rows where `pick` has
// ones; rows from 8 on stay idle.
FORCE void add_quads(float (&d)[4], const u32 (&pick)[4], const float (&v)[4]) {
    const u32 b0 = pack_bf16(v[0], v[1]), b1 = pack_bf16(v[2], v[3]);
    mma_add(d, pick, b0, b1);
    if (SPLIT) {
        const u32 c0 = pack_bf16(v[0] - __int_as_float(b0 << 16), v[1] - __int_as_float(b0 & 0xffff0000u));
        const u32 c1 = pack_bf16(v[2] - __int_as_float(b1 << 16), v[3] - __int_as_float(b1 & 0xffff0000u));
        mma_add(d, pick, c0, c1);
    }
}

// Of two values keep `a` if !bit, else `b`, summed with the partner lane's.
FORCE float fold(float a, float b, bool bit, int distance) {
    const float keep = bit ? b : a, send = bit ? a : b;
    return keep + __shfl_xor_sync(0xffffffffu, send, distance);
}

// d softplus(v) / dv = 1 - exp(-softplus(v)), from delta = softplus(v); relative error 2e-6 and less.
FORCE float softplus_slope(float delta) {
    const float series = delta * fmaf(delta, fmaf(delta, fmaf(delta, -1.0f / 24, 1.0f / 6), -0.5f), 1.0f);
    return delta < 0.03f ? series : 1.0f - exp2_fast(-LOG2E * delta);
}

FORCE u32 ones(bool low, bool high) { return (low ? 0x3f80u : 0u) | (high ? 0x3f800000u : 0u); }

#ifdef scan_gradients_BUILT
extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, BACKWARD_BLOCKS) scan_gradients(const Arguments a) {
    extern __shared__ __align__(16) char memory[];
    BackwardShared &s = *reinterpret_cast<BackwardShared *>(memory);
    const Task at = locate(a);
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int block_start = (at.channel_block % a.blocks) * BLOCK_CHANNELS;   // within the group

    // As a worker on scalars: rows warp, warp + 4, ... of a tile, channels 2 lane and 2 lane + 1 of the block.
    const int row_local = block_start + 2 * lane, row_channel = at.group * a.group_channels + row_local;
    const bool row_first = row_local < a.group_channels, row_second = row_local + 1 < a.group_channels;
    auto parameters = [&](const float *values, int column) {
        return make_float2(values && row_first ? values[column] : 0.0f, values && row_second ? values[column + 1] : 0.0f);
    };
    s.row_sums[threadIdx.x] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const i64 dt_step = at.sign * BACKWARD_WARPS * a.dt_row, x_step = at.sign * BACKWARD_WARPS * a.x_row;
    const i64 dy_step = at.sign * BACKWARD_WARPS * a.dy_row, z_step = at.sign * BACKWARD_WARPS * a.z_row;

    // As a worker on states: channels pair and pair + 1 of the block, states 4 part ... 4 part + 3.
    const int part = lane / 8, pair = warp * 16 + 2 * (lane % 8);
    const int channel = at.group * a.group_channels + block_start + pair;
    const bool first = block_start + pair < a.group_channels, second = block_start + pair + 1 < a.group_channels;
    float A[2][4], r[2][4], dA[2][4] = {};
    load_decay(a, channel, 4 * part, first, A[0], 4);
    load_decay(a, channel + 1, 4 * part, second, A[1], 4);
    const i64 chunk_row = ((i64)at.batch * a.chunks + at.slot) * a.channels + channel;
    load_state(a.chunk_adjoints + chunk_row * STATE, 4 * part, first, r[0], 4);
    load_state(a.chunk_adjoints + (chunk_row + 1) * STATE, 4 * part, second, r[1], 4);
    const int quad = lane / 4;
    // matrices for add_quads that put dB into rows 0 to 3 and dC into rows 4 to 7
    u32 pickB[4] = {ones(quad == 0, quad == 1), 0, ones(quad == 2, quad == 3), 0};
    u32 pickC[4] = {ones(quad == 4, quad == 5), 0, ones(quad == 6, quad == 7), 0};
    int own = 2 * (lane % 8) + (lane >> 3 & 1);   // the channel whose sums this lane ends with
    int slot = (quad >> 2) * 16 + (lane & 3) * 4 + (quad & 3);   // dB then dC, by state
    // so that they stay in registers: else they are made anew for each group of steps
    asm volatile("" : "+r"(own), "+r"(slot), "+r"(pickB[0]), "+r"(pickB[1]), "+r"(pickB[2]), "+r"(pickB[3]),
                      "+r"(pickC[0]), "+r"(pickC[1]), "+r"(pickC[2]), "+r"(pickC[3]));

    const data_t *B = a.B + at.batch * a.B_batch + at.group * a.B_group;
    const data_t *C = a.C + at.batch * a.C_batch + at.group * a.C_group;

    for (int tile = (at.count + TILE - 1) / TILE - 1; tile >= 0; tile--) {
        const int base = tile * TILE, count = at.count - base < TILE ? at.count - base : TILE;
        const i64 start = at.begin + (i64)at.sign * base;

        // 1. scalars
        const i64 mine = start + (i64)at.sign * warp;   // this warp's first row; the others follow at BACKWARD_WARPS
        int column = row_channel;
        asm volatile("" : "+r"(column));   // so that row addresses are made anew for each tile: kept, they would cost 8 registers
        const data_t *dt_at = a.dt + at.batch * a.dt_batch + mine * a.dt_row + column;
        const data_t *x_at = a.x + at.batch * a.x_batch + mine * a.x_row + column;
        const data_t *dy_at = a.dy + at.batch * a.dy_batch + mine * a.dy_row + column;
        const data_t *z_at = HAS_Z ? a.z + at.batch * a.z_batch + mine * a.z_row + column : nullptr;
        const float2 bias = parameters(a.dt_bias, column);
        float dskip0 = 0.0f, dskip1 = 0.0f;
#pragma unroll 4
        for (int i = 0; i < ROWS; i++) {
            const int t = warp + i * BACKWARD_WARPS;
            const bool in0 = t < count && row_first, in1 = t < count && row_second;
            const pair_t x_row = load_pair(x_at, in0, in1), dy_row = load_pair(dy_at, in0, in1);
            const float2 raw = unpack(load_pair(dt_at, in0, in1)), in_x = unpack(x_row);
            float2 grad = unpack(dy_row);
#if KEEP_ROWS
            s.rows[0][t][lane] = x_row, s.rows[1][t][lane] = dy_row;
#endif
            if (HAS_Z) {
                const pair_t z_row = load_pair(z_at, in0, in1);
                const float2 g = unpack(z_row);
#if KEEP_ROWS
                s.rows[2][t][lane] = z_row;
#endif
                grad.x *= g.x * sigmoid(g.x), grad.y *= g.y * sigmoid(g.y);
                z_at += z_step;
            }
            dt_at += dt_step, x_at += x_step, dy_at += dy_step;
            const float keep = t < count ? 1.0f : 0.0f;   // a product, as the compiler would branch on a choice
            const float delta0 = keep * step_size(raw.x, bias.x), delta1 = keep * step_size(raw.y, bias.y);
            if (HAS_D) dskip0 = fmaf(grad.x, in_x.x, dskip0), dskip1 = fmaf(grad.y, in_x.y, dskip1);
            *reinterpret_cast<float2 *>(&s.delta[t][2 * lane]) = make_float2(delta0, delta1);
            *reinterpret_cast<float2 *>(&s.input[t][2 * lane]) =
                ZOH ? in_x : make_float2(delta0 * in_x.x, delta1 * in_x.y);
            *reinterpret_cast<float2 *>(&s.dy[t][2 * lane]) = grad;
        }
        if (HAS_D) s.row_sums[threadIdx.x].z += dskip0, s.row_sums[threadIdx.x].w += dskip1;
#pragma unroll
        for (int i = 0; i < TILE * PADDED / 2 / BACKWARD_THREADS; i++) {
            const int n = threadIdx.x % (PADDED / 2) * 2;
            const int t = threadIdx.x / (PADDED / 2) + i * (BACKWARD_THREADS * 2 / PADDED);
            const bool in = t < count && n < STATE;
            const i64 p = start + (i64)at.sign * t;
            *reinterpret_cast<float2 *>(&s.B[t][n]) = unpack(load_pair(B + p * a.B_row + n, in, in));
            *reinterpret_cast<float2 *>(&s.C[t][n]) = unpack(load_pair(C + p * a.C_row + n, in, in));
        }
        if (HAS_IDS && threadIdx.x < TILE)
            s.restart[threadIdx.x] = threadIdx.x < count && restarts(a, at, start + (i64)at.sign * threadIdx.x);

        float h[2][4];
        const i64 tile_row = (i64)at.batch * a.tile_rows + first_tile(a, at) + tile;
        const float *saved = a.tile_states + (tile_row * (STATE / 4) + part) * tile_width(a) + tile_place(a, channel);
        const i64 to_second = tile_place(a, channel + 1) - tile_place(a, channel);
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        *reinterpret_cast<float4 *>(h[0]) = first && part < STATE / 4 ? *reinterpret_cast<const float4 *>(saved) : zero;
        *reinterpret_cast<float4 *>(h[1]) = second && part < STATE / 4 ? *reinterpret_cast<const float4 *>(saved + to_second) : zero;
        __syncthreads();

        // One position forward from h_in to h_out, keeping the decays. Where the state restarts h_in is not used, and kept: it
        // is the state of the position before, whose y and dC need it.
        auto advance = [&](int t, const float (&h_in)[2][4], float (&h_out)[2][4], float (&decay)[2][4]) {
            const bool restart = HAS_IDS && s.restart[t];
            const float2 delta = *reinterpret_cast<const float2 *>(&s.delta[t][pair]);
            const float2 input = *reinterpret_cast<const float2 *>(&s.input[t][pair]);
            const float4 row = *reinterpret_cast<const float4 *>(&s.B[t][4 * part]);
            const float map[4] = {row.x, row.y, row.z, row.w}, u[2] = {input.x, input.y}, d[2] = {delta.x, delta.y};
#pragma unroll
            for (int c = 0; c < 2; c++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const float before = restart ? 0.0f : h_in[c][k];   // not by a decay of zero, which NaN would survive
                    decay[c][k] = exp2_fast(d[c] * A[c][k]);
                    float w = u[c] * map[k];
                    if (ZOH) w *= zoh_weight(d[c], d[c] * A[c][k], exp2_fast(d[c] * A[c][k]));
                    h_out[c][k] = fmaf(decay[c][k], before, w);
                }
        };

        // 2. forward, keeping the state at every STEPS positions
#pragma unroll 1
        for (int group = 0; group < TILE / STEPS; group++) {
            float *kept = s.kept[group][warp];
            *reinterpret_cast<float4 *>(kept + 4 * lane) = *reinterpret_cast<float4 *>(h[0]);
            *reinterpret_cast<float4 *>(kept + 128 + 4 * lane) = *reinterpret_cast<float4 *>(h[1]);
            if (group == TILE / STEPS - 1) break;
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
                float unused[2][4];
                advance(group * STEPS + j, h, h, unused);
            }
        }

        // 3. backward
#pragma unroll 1
        for (int group = TILE / STEPS - 1; group >= 0; group--) {
            float *kept = s.kept[group][warp];
            float states[STEPS + 1][2][4], decay[STEPS][2][4];
            *reinterpret_cast<float4 *>(states[0][0]) = *reinterpret_cast<float4 *>(kept + 4 * lane);
            *reinterpret_cast<float4 *>(states[0][1]) = *reinterpret_cast<float4 *>(kept + 128 + 4 * lane);
#pragma unroll
            for (int j = 0; j < STEPS; j++) advance(group * STEPS + j, states[j], states[j + 1], decay[j]);
            float total[STEPS / 2][3], both[STEPS / 2][2];
#pragma unroll
            for (int half = STEPS / 2 - 1; half >= 0; half--) {   // two positions at a time share their reductions
                float sums[2][2][3] = {};           // [position][channel]: y, q, d delta
#pragma unroll
                for (int odd = 1; odd >= 0; odd--) {
                    const int j = 2 * half + odd, t = group * STEPS + j;
                    const float2 delta2 = *reinterpret_cast<const float2 *>(&s.delta[t][pair]);
                    const float2 input2 = *reinterpret_cast<const float2 *>(&s.input[t][pair]);
                    const float2 dy2 = *reinterpret_cast<const float2 *>(&s.dy[t][pair]);
                    const float4 rowB = *reinterpret_cast<const float4 *>(&s.B[t][4 * part]);
                    const float4 rowC = *reinterpret_cast<const float4 *>(&s.C[t][4 * part]);
                    const float mapB[4] = {rowB.x, rowB.y, rowB.z, rowB.w}, mapC[4] = {rowC.x, rowC.y, rowC.z, rowC.w};
                    const bool restart = HAS_IDS && s.restart[t];
                    const float delta[2] = {delta2.x, delta2.y}, input[2] = {input2.x, input2.y}, dyc[2] = {dy2.x, dy2.y};
                    float dB[4] = {}, dC[4] = {}, maps[4] = {};
#pragma unroll
                    for (int c = 0; c < 2; c++)
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            const float g = fmaf(dyc[c], mapC[k], r[c][k]);
                            dC[k] = fmaf(dyc[c], states[j + 1][c][k], dC[k]);
                            if (HAS_Z) sums[odd][c][0] = fmaf(states[j + 1][c][k], mapC[k], sums[odd][c][0]);
                            r[c][k] = restart ? 0.0f : decay[j][c][k] * g;
                            const float through = restart ? 0.0f : r[c][k] * states[j][c][k];   // the state may be NaN
                            sums[odd][c][2] = fmaf(A[c][k], through, sums[odd][c][2]);
                            dA[c][k] = fmaf(delta[c], through, dA[c][k]);
                            if (ZOH) {
                                const float u2 = delta[c] * A[c][k], pure = exp2_fast(u2);
                                const float gx = g * input[c], weight = zoh_weight(delta[c], u2, pure);
                                dB[k] = fmaf(gx, weight, dB[k]);
                                sums[odd][c][1] = fmaf(g * mapB[k], weight, sums[odd][c][1]);
                                sums[odd][c][2] = fmaf(LOG2E * pure, gx * mapB[k], sums[odd][c][2]);
                                dA[c][k] = fmaf(gx * mapB[k], zoh_slope(delta[c], u2, pure), dA[c][k]);
                            } else {
                                dB[k] = fmaf(g, input[c], dB[k]);
                                sums[odd][c][1] = fmaf(g, mapB[k], sums[odd][c][1]);
                            }
                        }
                    add_quads(maps, pickB, dB), add_quads(maps, pickC, dC);
                    both[half][odd] = maps[0] + maps[1];
                }
                // The lane ends with the three sums of one position (by lane bit 4) and channel (by bit 3).
#pragma unroll
                for (int i = HAS_Z ? 0 : 1; i < 3; i++) {
                    const float left = fold(sums[0][0][i], sums[1][0][i], lane & 16, 16);
                    const float right = fold(sums[0][1][i], sums[1][1][i], lane & 16, 16);
                    total[half][i] = fold(left, right, lane & 8, 8);
                }
            }
            __syncwarp();   // all lanes have read what is now replaced
#pragma unroll
            for (int half = 0; half < STEPS / 2; half++) {
                const int j = 2 * half + (lane >> 4), t = group * STEPS + j;
                if (HAS_Z) s.dy[t][warp * 16 + own] = total[half][0];
                s.input[t][warp * 16 + own] = total[half][1];
                kept[STEPS * 32 + j * 16 + own] = total[half][2] * LN2;
                kept[(2 * half) * 32 + slot] = both[half][0];
                kept[(2 * half + 1) * 32 + slot] = both[half][1];
            }
        }
        __syncthreads();

        // 4. sums over warps to dB, dC; gradients of the rows
        float *dmaps = a.dmaps + (((i64)at.batch * a.groups * a.blocks + at.channel_block) * a.length + mine) * 32 + lane;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {   // BACKWARD_WARPS = STEPS: row i of a warp lies in step group i
            const float *kept = s.kept[i][0] + warp * 32 + lane;
            if (warp + i * BACKWARD_WARPS < count) *dmaps = (kept[0] + kept[256]) + (kept[512] + kept[768]);
            dmaps += at.sign * (BACKWARD_WARPS * 32);
        }
        asm volatile("" : "+r"(column));
#if !KEEP_ROWS
        dt_at = a.dt + at.batch * a.dt_batch + mine * a.dt_row + column;
        x_at = a.x + at.batch * a.x_batch + mine * a.x_row + column;
        dy_at = a.dy + at.batch * a.dy_batch + mine * a.dy_row + column;
        if (HAS_Z) z_at = a.z + at.batch * a.z_batch + mine * a.z_row + column;
#endif
        i64 out = ((i64)at.batch * a.length + mine) * a.channels + column;
        const float2 skip = parameters(HAS_D ? a.D : nullptr, column);
        float dbias0 = 0.0f, dbias1 = 0.0f;
#pragma unroll 4
        for (int i = 0; i < ROWS; i++) {
            const int t = warp + i * BACKWARD_WARPS;
            const bool in0 = t < count && row_first, in1 = t < count && row_second;
#if KEEP_ROWS
            const float2 in_x = unpack(s.rows[0][t][lane]);
            float2 grad = unpack(s.rows[1][t][lane]);
            const pair_t z_row = HAS_Z ? s.rows[2][t][lane] : 0;
#else
            const float2 in_x = unpack(load_pair(x_at, in0, in1));
            float2 grad = unpack(load_pair(dy_at, in0, in1));
            const float2 raw = unpack(load_pair(dt_at, in0, in1)), bias = parameters(a.dt_bias, column);
            const pair_t z_row = load_pair(z_at, HAS_Z && in0, HAS_Z && in1);
            dt_at += dt_step, x_at += x_step, dy_at += dy_step;
            if (HAS_Z) z_at += z_step;
#endif
            const float2 delta = *reinterpret_cast<const float2 *>(&s.delta[t][2 * lane]);
            const float2 q = *reinterpret_cast<const float2 *>(&s.input[t][2 * lane]);
            const float2 d = *reinterpret_cast<const float2 *>(&s.kept[i][lane / 8][STEPS * 32 + warp * 16 + 2 * lane % 16]);
            if (HAS_Z) {
                const float2 g = unpack(z_row);
                const float2 y = *reinterpret_cast<const float2 *>(&s.dy[t][2 * lane]);
                const float s0 = sigmoid(g.x), s1 = sigmoid(g.y);
                store_pair(a.dz + out, grad.x * fmaf(skip.x, in_x.x, y.x) * s0 * fmaf(g.x, 1.0f - s0, 1.0f),
                           grad.y * fmaf(skip.y, in_x.y, y.y) * s1 * fmaf(g.y, 1.0f - s1, 1.0f), in0, in1);
                grad.x *= g.x * s0, grad.y *= g.y * s1;
            }
            store_pair(a.dx + out, fmaf(skip.x, grad.x, ZOH ? q.x : delta.x * q.x),
                       fmaf(skip.y, grad.y, ZOH ? q.y : delta.y * q.y), in0, in1);
            float ddt0 = ZOH ? d.x : fmaf(in_x.x, q.x, d.x), ddt1 = ZOH ? d.y : fmaf(in_x.y, q.y, d.y);
#if KEEP_ROWS
            if (SOFTPLUS) ddt0 *= softplus_slope(delta.x), ddt1 *= softplus_slope(delta.y);
#else
            if (SOFTPLUS) ddt0 *= sigmoid(raw.x + bias.x), ddt1 *= sigmoid(raw.y + bias.y);
#endif
            store_pair(a.ddt + out, ddt0, ddt1, in0, in1);
            if (in0) dbias0 += ddt0;
            if (in1) dbias1 += ddt1;
            out += at.sign * BACKWARD_WARPS * (i64)a.channels;
        }
        s.row_sums[threadIdx.x].x += dbias0, s.row_sums[threadIdx.x].y += dbias1;
        __syncthreads();
    }

    store_state(a.dA_parts + chunk_row * STATE, 4 * part, first, dA[0], 4);
    store_state(a.dA_parts + (chunk_row + 1) * STATE, 4 * part, second, dA[1], 4);
    float *over_warps = &s.dy[0][0];   // [dbias, dskip][warp][64]
    const float4 sums = s.row_sums[threadIdx.x];
    *reinterpret_cast<float2 *>(over_warps + warp * 64 + 2 * lane) = make_float2(sums.x, sums.y);
    *reinterpret_cast<float2 *>(over_warps + 256 + warp * 64 + 2 * lane) = make_float2(sums.z, sums.w);
    __syncthreads();
    const int which = threadIdx.x / 64, c = threadIdx.x % 64;
    const float *v = over_warps + which * 256 + c;
    if (block_start + c < a.group_channels)
        (which ? a.dD_parts : a.dbias_parts)[((i64)at.batch * a.chunks + at.slot) * a.channels + at.group * a.group_channels +
                                             block_start + c] = (v[0] + v[64]) + (v[128] + v[192]);
}
#endif

#ifdef scan_sum_parts_BUILT
// What scan_gradients leaves in parts, summed in a fixed order: dB and dC (batch, length, groups, STATE) over the blocks of 64
// channels by the first thread blocks; dA, dD and ddt_bias over chunks and the batch by the others, 32 elements each, where a
// warp takes every eighth part.
#define SUM_THREADS 256
extern "C" __global__ void __launch_bounds__(SUM_THREADS) scan_sum_parts(const Arguments a) {
    const i64 maps = (i64)a.batch * a.groups * a.length * 8;   // fours: of a position's 32 numbers, dB then dC
    const int map_blocks = (int)((maps + SUM_THREADS - 1) / SUM_THREADS);
    if ((int)blockIdx.x < map_blocks) {
        const i64 i = (i64)blockIdx.x * SUM_THREADS + threadIdx.x;
        if (i >= maps) return;
        const int four = i % 8, n = four % 4 * 4;
        const i64 t = i / 8 % a.length, bg = i / 8 / a.length, b = bg / a.groups, g = bg % a.groups;
        const float *p = a.dmaps + ((bg * a.blocks) * a.length + t) * 32 + four * 4;
        float4 sum = *reinterpret_cast<const float4 *>(p);
        for (int k = 1; k < a.blocks; k++) {
            const float4 v = *reinterpret_cast<const float4 *>(p + k * (i64)a.length * 32);
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        pair_t *out = reinterpret_cast<pair_t *>((four < 4 ? a.dB : a.dC) + ((b * a.length + t) * a.groups + g) * STATE + n);
        if (n < STATE) out[0] = pack(sum.x, sum.y), out[1] = pack(sum.z, sum.w);
        return;
    }
    __shared__ float over_warps[SUM_THREADS / LANES][LANES];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, states = a.channels * STATE;
    int e = ((int)blockIdx.x - map_blocks) * LANES + lane, width = a.channels;
    const float *parts = nullptr;
    float *out = nullptr;
    if (e < states) parts = a.dA_parts, out = a.dA, width = states;
    else if ((e -= states) < a.channels) parts = a.dD_parts, out = a.dD;
    else if ((e -= a.channels) < a.channels) parts = a.dbias_parts, out = a.ddt_bias;
    float sum = 0.0f;
    if (out) {
#pragma unroll 4
        for (int k = warp; k < a.batch * a.chunks; k += SUM_THREADS / LANES) sum += parts[k * (i64)width + e];
    }
    over_warps[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && out) {
#pragma unroll
        for (int w = 1; w < SUM_THREADS / LANES; w++) sum += over_warps[w][lane];
        out[e] = sum;
    }
}
#endif
