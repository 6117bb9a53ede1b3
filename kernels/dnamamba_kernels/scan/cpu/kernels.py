"""The scan's compiled CPU code: LANES channels side by side in one SIMD vector, their states in L1 cache, time in the
outer loop.

Two layers, in one file because numba's cache on disk watches only the file that a function is written in:

* bodies in a few lines of vector arithmetic (`Lanes`), emitted as LLVM vectors by `@vector_code`. LLVM cuts them to
  what the machine has (AVX2, AVX-512, NEON), so speed does not hang on its auto-vectoriser;
* `forward_blocks` and `backward_blocks`, plain numba loops over chunks, tiles of TILE positions and blocks of LANES
  channels.

The forward pass needs one exp2 (polynomial, 2 ulp) and three fused multiply-adds an element. The backward pass
recomputes a tile's states from the state that enters its chunk, keeps them and the decays in L2 cache, and scans the
tile against time. Only `contract` is allowed to the compiler: NaN and infinity behave as in the formulas, and the
order of every sum is fixed.

In all of it u = Δ A log₂e, so that exp(ΔA) = 2ᵘ; `A2` is A log₂e.
"""

import inspect
import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # channels of a block
TILE = 64  # positions whose states the backward pass keeps
FUSED, FROM_STATES, SUMMARIES = 0, 1, 2  # states carried from chunk to chunk; given for each chunk; zero for each chunk

LOG2E = math.log2(math.e)
LN2 = math.log(2)
LN2_HIGH = 0.693359375  # LN2 in two parts, the first exact in few bits
LN2_LOW = LN2 - LN2_HIGH
ROUNDER = 1.5 * 2**23  # adding and subtracting it rounds a float32 to an integer, whose bits the sum then holds
# (2ʳ − 1)/r for |r| ≤ 1/2: interpolation at Chebyshev's nodes, error 1e-8
EXP2_POLYNOMIAL = [0.6931471880262288, 0.24022650760568237, 0.05550357114219167]
EXP2_POLYNOMIAL += [0.009618082557265605, 0.0013390863364649932, 0.00015453162949152332]
LOG_POLYNOMIAL = [2 / (2 * k + 1) for k in range(8)]  # log1p(e) = s·P(s²), s = e/(2 + e) ≤ 1/3
SLOPE_POLYNOMIAL = [(k - 1) / math.factorial(k) for k in range(2, 14)]  # (u eᵘ − expm1(u))/u²
SLOPE_SERIES_BELOW = 1.0

FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT32, LANES)


class Lanes:
    """A <LANES x float> value; operators emit instructions."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def _other(self, other):
        return other.value if isinstance(other, Lanes) else ir.Constant(FLOATS, [float(np.float32(other))] * LANES)

    def _emit(self, name, other):
        return Lanes(self.builder, getattr(self.builder, name)(self.value, self._other(other), flags=("contract",)))

    def __add__(self, other):
        return self._emit("fadd", other)

    def __sub__(self, other):
        return self._emit("fsub", other)

    def __mul__(self, other):
        return self._emit("fmul", other)

    def __truediv__(self, other):
        return self._emit("fdiv", other)

    def where_less(self, bound, then, otherwise):
        """`then` in the lanes below the bound, else `otherwise` (also for NaN)."""
        below = self.builder.fcmp_ordered("<", self.value, self._other(bound))
        return Lanes(self.builder, self.builder.select(below, self._other(then), self._other(otherwise)))

    def at_least(self, bound):
        return self.where_less(bound, bound, self)

    def magnitude(self):
        return self.where_less(0, self * -1.0, self)

    def polynomial(self, coefficients):
        total = Lanes(self.builder, self._other(coefficients[-1]))
        for coefficient in coefficients[-2::-1]:
            total = total * self + coefficient
        return total

    def power_parts(self):
        """(2^k, 2^r − 1) with self = k + r, |r| ≤ 1/2; self ≤ 128, and under −127 the power is 0."""
        u = self.at_least(-127)
        shifted = u + ROUNDER
        return shifted.power_of_rounded(), _times_polynomial(u - (shifted - ROUNDER), EXP2_POLYNOMIAL)

    def power_of_rounded(self):
        """2^k of k + ROUNDER, by moving k into the exponent's bits."""
        bits = self.builder.shl(self.builder.bitcast(self.value, INTS), ir.Constant(INTS, [23] * LANES))
        bits = self.builder.add(bits, ir.Constant(INTS, [0x3F800000] * LANES))
        return Lanes(self.builder, self.builder.bitcast(bits, FLOATS))

    def exp2(self):
        power, fraction = self.power_parts()
        return power * fraction + power

    def exp_of_negative(self):
        """exp(−|self|), to 1 ulp or so also where it is small."""
        v = self.magnitude()
        v = v.where_less(88, v, 88) * -1.0
        shifted = v * LOG2E + ROUNDER
        k = shifted - ROUNDER
        r = (v - k * LN2_HIGH) - k * LN2_LOW
        power = shifted.power_of_rounded()
        return power * _times_polynomial(r * LOG2E, EXP2_POLYNOMIAL) + power

    def sum(self):
        """The sum over lanes as a scalar, halves added pairwise."""
        value, width = self.value, LANES
        while width > 1:
            width //= 2
            low, high = (
                self.builder.shuffle_vector(
                    value, value, ir.Constant(ir.VectorType(INT32, width), list(range(start, start + width)))
                )
                for start in (0, width)
            )
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(INT32, 0))


def _times_polynomial(r, coefficients):
    return r * r.polynomial(coefficients)


class Emitter:
    """Loads, stores and loops for a body of vector code."""

    def __init__(self, builder):
        self.builder = builder

    def pointer(self, array, index):
        return self.builder.gep(array, [index])

    def load(self, array, index):
        pointer = self.builder.bitcast(self.pointer(array, index), FLOATS.as_pointer())
        return Lanes(self.builder, self.builder.load(pointer, align=4))

    def store(self, lanes, array, index):
        pointer = self.builder.bitcast(self.pointer(array, index), FLOATS.as_pointer())
        self.builder.store(lanes.value, pointer, align=4)

    def spread(self, array, index):
        """One float, the same in all lanes."""
        scalar = self.builder.load(self.pointer(array, index))
        one = self.builder.insert_element(ir.Constant(FLOATS, ir.Undefined), scalar, ir.Constant(INT32, 0))
        zeros = ir.Constant(INTS, [0] * LANES)
        return Lanes(self.builder, self.builder.shuffle_vector(one, one, zeros))

    def add_scalar(self, scalar, array, index):
        pointer = self.pointer(array, index)
        self.builder.store(self.builder.fadd(self.builder.load(pointer), scalar), pointer)

    def lanes_of(self, index):
        """Offset of the index-th group of lanes."""
        return self.builder.mul(index, ir.Constant(INT64, LANES))

    def variable(self):
        """A running sum, from zero."""
        slot = cgutils.alloca_once(self.builder, FLOATS)
        self.builder.store(ir.Constant(FLOATS, [0.0] * LANES), slot)
        return slot

    def get(self, slot):
        return Lanes(self.builder, self.builder.load(slot))

    def add_to(self, slot, lanes):
        self.builder.store((self.get(slot) + lanes).value, slot)

    def map_at(self, array, at, n, constant):
        """B or C of state n: per lane if it is constant (channels, state), else one number for the block."""
        if constant:
            return self.load(array, self.builder.add(at, self.lanes_of(n)))
        return self.spread(array, self.builder.add(at, n))

    def loop(self, count):
        return cgutils.for_range(self.builder, count)


def vector_code(body):
    """Make a body `body(emitter, *arguments)` callable from numba code.

    float32 arrays arrive as pointers, integers as i64, flags as Python bools known when compiling: the caller passes
    None for False and True for True.
    """

    def typed(typing_context, *argument_types):
        def generate(context, builder, signature, arguments):
            emitted = []
            for kind, value in zip(signature.args, arguments, strict=True):
                if isinstance(kind, types.Array):
                    emitted.append(context.make_array(kind)(context, builder, value).data)
                elif isinstance(kind, types.Integer | types.IntegerLiteral):
                    emitted.append(context.cast(builder, value, kind, types.int64))
                else:
                    emitted.append(not isinstance(kind, types.NoneType))
            body(Emitter(builder), *emitted)
            return context.get_dummy_value()

        return types.void(*argument_types), generate

    typed.__name__ = body.__name__
    typed.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]  # the emitter stands for the typing context
    return intrinsic(typed)


@vector_code
def softplus(e, v, at, out, out_at, slope, slope_at):
    """out = softplus(v), slope = its derivative: max(v, 0) + log1p(exp(−|v|))."""
    value = e.load(v, at)
    small = value.exp_of_negative()
    s = small / (small + 2.0)
    e.store(value.at_least(0) + s * (s * s).polynomial(LOG_POLYNOMIAL), out, out_at)
    e.store(value.where_less(0, small, 1.0) / (small + 1.0), slope, slope_at)


@vector_code
def silu(e, z, at, gate, gate_at, slope, slope_at):
    """gate = silu(z) = z·σ, slope = σ(1 + z(1 − σ))."""
    value = e.load(z, at)
    small = value.exp_of_negative()
    sigmoid = value.where_less(0, small, 1.0) / (small + 1.0)
    e.store(value * sigmoid, gate, gate_at)
    e.store(sigmoid * (value * (sigmoid * -1.0 + 1.0) + 1.0), slope, slope_at)


@vector_code
def move(e, source, source_at, target, target_at):
    """target = source."""
    e.store(e.load(source, source_at), target, target_at)


@vector_code
def multiply(e, a, a_at, b, b_at, out, out_at):
    """out = a·b."""
    e.store(e.load(a, a_at) * e.load(b, b_at), out, out_at)


@vector_code
def multiply_add(e, a, a_at, b, b_at, c, c_at, out, out_at):
    """out = a·b + c."""
    e.store(e.load(a, a_at) * e.load(b, b_at) + e.load(c, c_at), out, out_at)


def _decay_and_weight(e, u, delta, inverse, n_at, zoh):
    """Ā = 2ᵘ and B̄/B: Δ (euler) or expm1(ΔA)/A (zoh)."""
    power, fraction = u.power_parts()
    decay = power * fraction + power
    if not zoh:
        return decay, delta
    return decay, (power * fraction + (power - 1.0)) * e.load(inverse, n_at)


@vector_code
def scan_position(e, h, A2, inverse, a_at, delta, x, y, at, B, b_at, C, c_at, states, const_b, const_c, zoh, with_y):
    """h ← Āh + B̄x and y = Σ C h for one position of one block."""
    step, value = e.load(delta, at), e.load(x, at)
    total = e.variable()
    with e.loop(states) as loop:
        lane = e.lanes_of(loop.index)
        n_at = e.builder.add(a_at, lane)
        decay, weight = _decay_and_weight(e, step * e.load(A2, n_at), step, inverse, n_at, zoh)
        state = decay * e.load(h, lane) + (weight * value) * e.map_at(B, b_at, loop.index, const_b)
        e.store(state, h, lane)
        if with_y:
            e.add_to(total, state * e.map_at(C, c_at, loop.index, const_c))
    if with_y:
        e.store(e.get(total), y, at)


@vector_code
def record_position(
    e, h, A2, inverse, a_at, delta, x, y, at, B, b_at, C, c_at, states, const_b, const_c, zoh, before, decays, kept_at
):
    """`scan_position` that keeps the state before the position and the decay."""
    step, value = e.load(delta, at), e.load(x, at)
    total = e.variable()
    with e.loop(states) as loop:
        lane = e.lanes_of(loop.index)
        n_at, kept = e.builder.add(a_at, lane), e.builder.add(kept_at, lane)
        decay, weight = _decay_and_weight(e, step * e.load(A2, n_at), step, inverse, n_at, zoh)
        old = e.load(h, lane)
        e.store(old, before, kept)
        e.store(decay, decays, kept)
        state = decay * old + (weight * value) * e.map_at(B, b_at, loop.index, const_b)
        e.store(state, h, lane)
        e.add_to(total, state * e.map_at(C, c_at, loop.index, const_c))
    e.store(e.get(total), y, at)


@vector_code
def adjoint_position(
    e, g, A2, inverse, a_at, delta, x, dy, at, B, b_at, C, c_at, states, const_b, const_c, zoh,
    before, decays, kept_at, dA, dB, db_at, dC, dc_at, dx, ddelta,
):  # fmt: skip
    """g ← Ā(g + C dy) against time, adding up dA, dB, dC and storing dx and dΔ."""
    step, value, gradient = e.load(delta, at), e.load(x, at), e.load(dy, at)
    through_product, through_input, through_weight = e.variable(), e.variable(), e.variable()
    with e.loop(states) as loop:
        n, lane = loop.index, e.lanes_of(loop.index)
        n_at, kept = e.builder.add(a_at, lane), e.builder.add(kept_at, lane)
        slope2, old, decay = e.load(A2, n_at), e.load(before, kept), e.load(decays, kept)
        b, c = e.map_at(B, b_at, n, const_b), e.map_at(C, c_at, n, const_c)
        weight = step
        if zoh:
            u = step * slope2
            _, weight = _decay_and_weight(e, u, step, inverse, n_at, zoh)
        taken = weight * value
        adjoint = e.load(g, lane) + c * gradient
        for array, array_at, constant, part in (
            (dC, dc_at, const_c, (decay * old + b * taken) * gradient),
            (dB, db_at, const_b, adjoint * taken),
        ):
            if constant:
                index = e.builder.add(array_at, lane)
                e.store(e.load(array, index) + part, array, index)
            else:
                e.add_scalar(part.sum(), array, e.builder.add(array_at, n))
        decayed = adjoint * decay
        product = decayed * old
        e.add_to(through_product, product * slope2)
        e.store(decayed, g, lane)
        of_decay = e.load(dA, lane) + product * step
        of_input = adjoint * b
        if zoh:
            w = u * LN2
            series = w.polynomial(SLOPE_POLYNOMIAL)
            direct = (w * decay - (decay - 1.0)) / (w * w)
            slope = w.magnitude().where_less(SLOPE_SERIES_BELOW, series, direct)
            d_weight = of_input * value
            of_decay = of_decay + d_weight * (step * step) * slope
            e.add_to(through_input, of_input * weight)
            e.add_to(through_weight, d_weight * decay)
        else:
            e.add_to(through_input, of_input)
        e.store(of_decay, dA, lane)
    if zoh:
        e.store(e.get(through_input), dx, at)
        e.store(e.get(through_product) * LN2 + e.get(through_weight), ddelta, at)
    else:
        e.store(e.get(through_input) * step, dx, at)
        e.store(e.get(through_product) * LN2 + e.get(through_input) * value, ddelta, at)


@vector_code
def adjoint_summary_position(e, g, A2, a_at, delta, dy, at, C, c_at, states, const_c):
    """g ← Ā(g + C dy) alone."""
    step, gradient = e.load(delta, at), e.load(dy, at)
    with e.loop(states) as loop:
        lane = e.lanes_of(loop.index)
        decay = (step * e.load(A2, e.builder.add(a_at, lane))).exp2()
        adjoint = e.load(g, lane) + gradient * e.map_at(C, c_at, loop.index, const_c)
        e.store(adjoint * decay, g, lane)


def compiled(function):
    """Compiled by numba when it is first called, and kept on the disk where there is a folder for that."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "cannot cache function": a read-only installation, and no home that can be written
        return numba.njit(nogil=True)(function)


@compiled
def load_rows(view, batch, first, sign, count, channel, width, out):
    """Rows first, first + sign, … of a block's channels, zeros in lanes beyond them."""
    flat, batch_stride, row_stride = view
    for i in range(count):
        at = batch * batch_stride + (first + sign * i) * row_stride + channel
        if width == LANES:
            move(flat, at, out, i * LANES)
        else:
            for c in range(LANES):
                out[i * LANES + c] = flat[at + c] if c < width else np.float32(0)


@compiled
def store_rows(rows, out, length, channels, batch, first, sign, count, channel, width):
    """The reverse of `load_rows`, into a contiguous (batch, length, channels)."""
    for i in range(count):
        at = (batch * length + first + sign * i) * channels + channel
        if width == LANES:
            move(rows, i * LANES, out, at)
        else:
            for c in range(width):
                out[at + c] = rows[i * LANES + c]


@compiled
def load_state(source, row, channels, channel, width, states, out):
    """State (channels, state) number `row` of a contiguous array, transposed to (state, LANES)."""
    for n in range(states):
        for c in range(LANES):
            inside = c < width
            out[n * LANES + c] = source[(row * channels + channel + c) * states + n] if inside else np.float32(0)


@compiled
def store_state(h, target, row, channels, channel, width, states):
    """The reverse of `load_state`."""
    for c in range(width):
        for n in range(states):
            target[(row * channels + channel + c) * states + n] = h[n * LANES + c]


@compiled
def load_delta(view, bias, bias_at, softplus_on, batch, first, sign, count, channel, width, delta, slope):
    """Δ of a tile and its derivative by dt."""
    load_rows(view, batch, first, sign, count, channel, width, delta)
    for i in range(count):
        for c in range(LANES):
            delta[i * LANES + c] += bias[bias_at + c]
        if softplus_on:
            softplus(delta, i * LANES, delta, i * LANES, slope, i * LANES)


@compiled
def find_restarts(ids, batch, length, first, sign, count, restarts):
    """Whether the state restarts before each position of a tile; and whether it does anywhere."""
    found = False
    for i in range(count):
        position = first + sign * i
        before = position - sign
        inside = 0 <= before < length
        restarts[i] = inside and ids[batch * length + before] != ids[batch * length + position]
        found = found or restarts[i]
    return found


@compiled
def map_offset(view, const, batch, position, block, group, states):
    """Where B or C of a position (or of a block, if constant) lies in its flat array."""
    if const is not None:
        return block * states * LANES
    return batch * view[1] + position * view[2] + group * view[3]


@compiled
def forward_blocks(
    mode, batch, block_range, chunk_range, chunk, length, channels, states, reverse, blocks, A2, inverse, bias, D,
    x_view, dt_view, z_view, has_z, B_view, C_view, ids, has_ids, softplus_on, const_b, const_c, zoh, with_y,
    y_out, chunk_states, final_state, dt_sums,
):  # fmt: skip
    """Scan some chunks of some blocks of one sequence of the batch.

    FUSED: from final_state (which holds the initial state) on, writing chunk_states and final_state; FROM_STATES: from
    chunk_states; SUMMARIES: from zero, writing end states into chunk_states, and dt_sums. y only if with_y is not None.
    """
    first_block, end_block = block_range
    sign = -1 if reverse else 1
    chunks = (length + chunk - 1) // chunk
    size = states * LANES
    hs = np.zeros((end_block - first_block, size), np.float32)
    buffers = np.zeros((5, TILE * LANES), np.float32)
    x, delta, z, y, slope = buffers[0], buffers[1], buffers[2], buffers[3], buffers[4]
    restarts = np.zeros(TILE, np.bool_)
    sums = np.zeros((end_block - first_block, LANES), np.float32)
    if mode == FUSED:
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            load_state(final_state, batch, channels, channel, width, states, hs[block - first_block])
    for step in range(chunk_range[1] - chunk_range[0]):
        k = chunk_range[1] - 1 - step if reverse else chunk_range[0] + step
        row = batch * chunks + k
        low, count = k * chunk, min(chunk, length - k * chunk)
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            h = hs[block - first_block]
            if mode == FUSED:
                store_state(h, chunk_states, row, channels, channel, width, states)
            elif mode == FROM_STATES:
                load_state(chunk_states, row, channels, channel, width, states, h)
            else:
                h[:] = 0
                sums[block - first_block] = 0
        for start in range(0, count, TILE):
            tile = min(TILE, count - start)
            first = low + count - 1 - start if reverse else low + start
            restarting = has_ids and find_restarts(ids, batch, length, first, sign, tile, restarts)
            for block in range(first_block, end_block):
                group, channel, width = blocks[block]
                h = hs[block - first_block]
                a_at = block * size
                load_delta(
                    dt_view, bias, block * LANES, softplus_on, batch, first, sign, tile, channel, width, delta, slope
                )
                load_rows(x_view, batch, first, sign, tile, channel, width, x)
                for i in range(tile):
                    if restarting and restarts[i]:
                        h[:] = 0
                        sums[block - first_block] = np.inf
                    position = first + sign * i
                    b_at = map_offset(B_view, const_b, batch, position, block, group, states)
                    c_at = map_offset(C_view, const_c, batch, position, block, group, states)
                    scan_position(
                        h, A2, inverse, a_at, delta, x, y, i * LANES, B_view[0], b_at, C_view[0], c_at, states,
                        const_b, const_c, zoh, with_y,
                    )  # fmt: skip
                if with_y is None:
                    for i in range(tile):
                        for c in range(LANES):
                            sums[block - first_block, c] += delta[i * LANES + c]
                else:
                    for i in range(tile):
                        multiply_add(x, i * LANES, D, block * LANES, y, i * LANES, y, i * LANES)
                    if has_z:
                        load_rows(z_view, batch, first, sign, tile, channel, width, z)
                        for i in range(tile):
                            silu(z, i * LANES, z, i * LANES, slope, i * LANES)
                            multiply(y, i * LANES, z, i * LANES, y, i * LANES)
                    store_rows(y, y_out, length, channels, batch, first, sign, tile, channel, width)
        if mode == SUMMARIES:
            for block in range(first_block, end_block):
                _, channel, width = blocks[block]
                store_state(hs[block - first_block], chunk_states, row, channels, channel, width, states)
                for c in range(width):
                    dt_sums[row * channels + channel + c] = sums[block - first_block, c]
    if mode == FUSED:
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            store_state(hs[block - first_block], final_state, batch, channels, channel, width, states)


@compiled
def adjoint_summaries(
    batch, block_range, chunk_range, chunk, length, channels, states, reverse, blocks, A2, bias,
    dt_view, dy_view, z_view, has_z, C_view, ids, has_ids, softplus_on, const_c, adjoint_ends, dt_sums,
):  # fmt: skip
    """dL/d(state entering) of some chunks of some blocks from a zero adjoint, and their dt_sums."""
    sign = -1 if reverse else 1
    chunks = (length + chunk - 1) // chunk
    g = np.zeros(states * LANES, np.float32)
    buffers = np.zeros((4, TILE * LANES), np.float32)
    delta, dy, z, slope = buffers[0], buffers[1], buffers[2], buffers[3]
    restarts = np.zeros(TILE, np.bool_)
    for k in range(*chunk_range):
        row = batch * chunks + k
        low, count = k * chunk, min(chunk, length - k * chunk)
        for block in range(*block_range):
            group, channel, width = blocks[block]
            g[:] = 0
            total = np.zeros(LANES, np.float32)
            for start in range((count - 1) // TILE * TILE, -1, -TILE):
                tile = min(TILE, count - start)
                first = low + count - 1 - start if reverse else low + start
                restarting = has_ids and find_restarts(ids, batch, length, first, sign, tile, restarts)
                load_delta(
                    dt_view, bias, block * LANES, softplus_on, batch, first, sign, tile, channel, width, delta, slope
                )
                load_rows(dy_view, batch, first, sign, tile, channel, width, dy)
                if has_z:
                    load_rows(z_view, batch, first, sign, tile, channel, width, z)
                for i in range(tile - 1, -1, -1):
                    if has_z:
                        silu(z, i * LANES, z, i * LANES, slope, i * LANES)
                        multiply(dy, i * LANES, z, i * LANES, dy, i * LANES)
                    c_at = map_offset(C_view, const_c, batch, first + sign * i, block, group, states)
                    adjoint_summary_position(
                        g, A2, block * states * LANES, delta, dy, i * LANES, C_view[0], c_at, states, const_c
                    )
                    for c in range(LANES):
                        total[c] += delta[i * LANES + c]
                    if restarting and restarts[i]:
                        g[:] = 0
                        total[:] = np.inf
            store_state(g, adjoint_ends, row, channels, channel, width, states)
            for c in range(width):
                dt_sums[row * channels + channel + c] = total[c]


@compiled
def backward_blocks(
    mode, batch, block_range, chunk_range, chunk, length, channels, states, reverse, blocks, A2, inverse, bias, D,
    x_view, dt_view, z_view, has_z, B_view, C_view, ids, has_ids, softplus_on, const_b, const_c, zoh,
    dy_view, chunk_states, adjoints, dx_out, ddt_out, dz_out, dA_out, dB_out, dC_out, map_strides, const_dB_out,
    const_dC_out, sums_out,
):  # fmt: skip
    """Gradients over some chunks of some blocks of one sequence of the batch, against time.

    FUSED: from adjoints (batch, channels, state), which holds that of the final state, and which then gets that of
    the initial one; FROM_STATES: from adjoints of the states leaving the chunks. Per position, dB_out and dC_out are
    added to at map_strides[0] + position · map_strides[1] + group · states; if constant, const_dB_out and
    const_dC_out are, which are (block, state, LANES) float64 like dA_out.
    sums_out (block, 2, LANES) float64 takes dD and ddt_bias.
    """
    first_block, end_block = block_range
    sign = -1 if reverse else 1
    chunks = (length + chunk - 1) // chunk
    size = states * LANES
    tiles = (chunk + TILE - 1) // TILE
    tile_states = np.zeros((tiles, end_block - first_block, size), np.float32)
    gs = np.zeros((end_block - first_block, size), np.float32)
    before, decays = np.zeros(TILE * size, np.float32), np.zeros(TILE * size, np.float32)
    buffers = np.zeros((10, TILE * LANES), np.float32)
    x, delta, z, y, slope, dy, gate, gate_slope, dx, ddelta = (
        buffers[0],
        buffers[1],
        buffers[2],
        buffers[3],
        buffers[4],
        buffers[5],
        buffers[6],
        buffers[7],
        buffers[8],
        buffers[9],
    )
    restarts = np.zeros(TILE, np.bool_)
    sums = np.zeros((4, size), np.float32)
    h, dA, dB, dC = sums[0], sums[1], sums[2], sums[3]
    if mode == FUSED:
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            load_state(adjoints, batch, channels, channel, width, states, gs[block - first_block])
    for step in range(chunk_range[1] - chunk_range[0]):
        k = chunk_range[0] + step if reverse else chunk_range[1] - 1 - step
        row = batch * chunks + k
        low, count = k * chunk, min(chunk, length - k * chunk)
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            load_state(chunk_states, row, channels, channel, width, states, tile_states[0, block - first_block])
            if mode == FROM_STATES:
                load_state(adjoints, row, channels, channel, width, states, gs[block - first_block])
        tiles = (count + TILE - 1) // TILE
        for forward in range(2 * tiles - 1):
            # tiles − 1 steps with time leave the state that enters each tile, then come the tiles against time
            with_time = forward < tiles - 1
            number = forward if with_time else 2 * tiles - 2 - forward
            start = number * TILE
            tile = min(TILE, count - start)
            first = low + count - 1 - start if reverse else low + start
            restarting = has_ids and find_restarts(ids, batch, length, first, sign, tile, restarts)
            for block in range(first_block, end_block):
                group, channel, width = blocks[block]
                g = gs[block - first_block]
                a_at = block * size
                load_delta(
                    dt_view, bias, block * LANES, softplus_on, batch, first, sign, tile, channel, width, delta, slope
                )
                load_rows(x_view, batch, first, sign, tile, channel, width, x)
                h[:] = tile_states[number, block - first_block]
                for i in range(tile):
                    if restarting and restarts[i]:
                        h[:] = 0
                    position = first + sign * i
                    b_at = map_offset(B_view, const_b, batch, position, block, group, states)
                    c_at = map_offset(C_view, const_c, batch, position, block, group, states)
                    record_position(
                        h, A2, inverse, a_at, delta, x, y, i * LANES, B_view[0], b_at, C_view[0], c_at, states,
                        const_b, const_c, zoh, before, decays, i * size,
                    )  # fmt: skip
                if with_time:
                    tile_states[number + 1, block - first_block] = h
                    continue
                load_rows(dy_view, batch, first, sign, tile, channel, width, dy)
                if has_z:
                    load_rows(z_view, batch, first, sign, tile, channel, width, z)
                    for i in range(tile):
                        at = i * LANES
                        silu(z, at, gate, at, gate_slope, at)
                        multiply_add(x, at, D, block * LANES, y, at, y, at)
                        multiply(y, at, gate_slope, at, y, at)
                        multiply(y, at, dy, at, y, at)
                        multiply(dy, at, gate, at, dy, at)
                    store_rows(y, dz_out, length, channels, batch, first, sign, tile, channel, width)
                dA[:] = 0
                dB[:] = 0
                dC[:] = 0
                for i in range(tile - 1, -1, -1):
                    position = first + sign * i
                    b_at = map_offset(B_view, const_b, batch, position, block, group, states)
                    c_at = map_offset(C_view, const_c, batch, position, block, group, states)
                    if const_b is None:
                        db_at = map_strides[0] + position * map_strides[1] + group * states
                        db_array = dB_out
                    else:
                        db_at, db_array = 0, dB
                    if const_c is None:
                        dc_at = map_strides[0] + position * map_strides[1] + group * states
                        dc_array = dC_out
                    else:
                        dc_at, dc_array = 0, dC
                    adjoint_position(
                        g, A2, inverse, a_at, delta, x, dy, i * LANES, B_view[0], b_at, C_view[0], c_at, states,
                        const_b, const_c, zoh, before, decays, i * size, dA, db_array, db_at, dc_array, dc_at, dx,
                        ddelta,
                    )  # fmt: skip
                    if restarting and restarts[i]:
                        g[:] = 0
                for i in range(tile):
                    at = i * LANES
                    multiply_add(dy, at, D, block * LANES, dx, at, dx, at)
                    if softplus_on:
                        multiply(ddelta, at, slope, at, ddelta, at)
                    for c in range(LANES):
                        sums_out[block, 0, c] += dy[at + c] * x[at + c]
                        sums_out[block, 1, c] += ddelta[at + c]
                store_rows(dx, dx_out, length, channels, batch, first, sign, tile, channel, width)
                store_rows(ddelta, ddt_out, length, channels, batch, first, sign, tile, channel, width)
                for i in range(size):
                    dA_out[a_at + i] += dA[i]
                if const_b is not None:
                    for i in range(size):
                        const_dB_out[a_at + i] += dB[i]
                if const_c is not None:
                    for i in range(size):
                        const_dC_out[a_at + i] += dC[i]
    if mode == FUSED:
        for block in range(first_block, end_block):
            _, channel, width = blocks[block]
            store_state(gs[block - first_block], adjoints, batch, channels, channel, width, states)
