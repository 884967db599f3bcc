/* LSTM and GRU cells whose products are of 8-bit integers, for one instruction set; see `_vectors.h`, `_byte_products.h`.
 * With TILES defined, many rows are multiplied in tiles (`_tiles.h`).
 *
 * A unit's numbers are the same on every instruction set. Sums of integers are exact, in any order. The operations on
 * floats are the same ones in the same order for each unit, each rounded as IEEE 754 says: sums, products, quotients
 * and FUSED, and the compiler may not fuse others (-ffp-contract=off). No operation depends on other rows.
 */
#include "_vectors.h"
#include "_byte_products.h"
#include "_float_products.h"

INLINE Vector NAMED(as_floats)(Integers x) { return __builtin_convertvector(x, Vector); }

/* tanh(x) as a quotient, so that what is multiplied with it needs no division of its own.
 *
 * It is x P(x^2) / Q(x^2), of least largest relative error on [0, 8]: 3e-6, a thousandth of what a state is rounded by.
 * The coefficients were found by Lawson's method (Lawson, 1961). NaN stays.
 */
INLINE Vector NAMED(tanh)(Vector x, Vector *divisor)
{
    x = LARGER(NAMED(all)(-8.0f), SMALLER(NAMED(all)(8.0f), x));
    const Vector square = x * x;
    Vector p = FUSED(square, NAMED(all)(3.4789610e-06f), NAMED(all)(2.1795416e-03f));
    p = FUSED(p, square, NAMED(all)(0.12193512f));
    p = FUSED(p, square, NAMED(all)(0.99999729f));
    Vector q = FUSED(square, NAMED(all)(1.3183108e-04f), NAMED(all)(0.020617871f));
    q = FUSED(q, square, NAMED(all)(0.45524987f));
    *divisor = FUSED(q, square, NAMED(all)(1.0f));
    return x * p;
}

/* 1 / (1 + exp(-x)) of x / 2, times the divisor and 2. A closed gate is exactly 0, and never slightly negative. */
INLINE Vector NAMED(sigmoid)(Vector half, Vector *divisor)
{
    const Vector p = NAMED(tanh)(half, divisor);
    return LARGER(NAMED(all)(0.0f), p + *divisor);
}

/* An LSTM's cell: its gates are input, output, forget and cell, all but the last halved. Keeps the cell's state, and
 * gives the unit's.
 *
 * Quotients are added as one, so that two divisions are enough. Nothing overflows: a divisor is at most 150, and a
 * cell's state hardly more than the number of steps.
 */
INLINE Vector NAMED(lstm_cell)(const Vector *sums, float *kept)
{
    Vector i, o, f, g, c;
    const Vector input = NAMED(sigmoid)(sums[0], &i), forget = NAMED(sigmoid)(sums[2], &f);
    const Vector given = NAMED(tanh)(sums[3], &g), both = i * g;
    const Vector cell = FUSED(forget * NAMED(load)(kept), both, input * given * f) / ((f + f) * both);
    NAMED(store)(kept, cell);
    const Vector out = NAMED(sigmoid)(sums[1], &o);
    return out * NAMED(tanh)(cell, &c) / ((o + o) * c);
}

/* A GRU's cell: its gates are update and reset, both halved, and hidden, as its state gives it and as its input does. */
INLINE Vector NAMED(gru_cell)(const Vector *sums, float *kept)
{
    Vector r, h, u;
    const Vector reset = NAMED(sigmoid)(sums[1], &r) / (r + r);
    const Vector hidden = NAMED(tanh)(FUSED(reset, sums[2], sums[3]), &h), update = NAMED(sigmoid)(sums[0], &u);
    const Vector state = FUSED(hidden, u + u, update * FUSED(NAMED(load)(kept), h, -hidden)) / (h * (u + u));
    NAMED(store)(kept, state);
    return state;
}

/* Each row's products of its bytes with a panel's weights, `[groups][gates][LANES][4]`, and `offsets [gates][LANES]`:
 * `sums [rows][4][LANES]`.
 *
 * One row alone has two sums for each gate, so that an addition need not wait for the one before it.
 */
INLINE void NAMED(dot_products)(const int rows, const int gates, const uint8_t *bytes, long stride, long groups,
                                const int8_t *weights, const int32_t *offsets, Integers *sums)
{
    Integers sum[MOST_ROWS][4], second[4];
    const int alone = rows == 1;
    UNROLLED
    for (int g = 0; g < gates; g++) {
        second[g] = (Integers){0};
        UNROLLED
        for (int r = 0; r < rows; r++) sum[r][g] = NAMED(load_integers)(offsets + g * LANES);
    }
    long k = 0;
    for (; alone && k + 1 < groups; k += 2, weights += 8 * gates * LANES) {
        const Four one = FOUR(bytes + 4 * k), two = FOUR(bytes + 4 * k + 4);
        UNROLLED
        for (int g = 0; g < gates; g++) {
            sum[0][g] = DOT(sum[0][g], one, WEIGHT(weights + 4 * g * LANES));
            second[g] = DOT(second[g], two, WEIGHT(weights + 4 * (gates + g) * LANES));
        }
    }
    for (; k < groups; k++, weights += 4 * gates * LANES) {
        Four number[MOST_ROWS];
        UNROLLED
        for (int r = 0; r < rows; r++) number[r] = FOUR(bytes + r * stride + 4 * k);
        UNROLLED
        for (int g = 0; g < gates; g++) {
            const Four weight = WEIGHT(weights + 4 * g * LANES);
            UNROLLED
            for (int r = 0; r < rows; r++) sum[r][g] = DOT(sum[r][g], number[r], weight);
        }
    }
    UNROLLED
    for (int g = 0; g < gates; g++) {
        if (alone) sum[0][g] += second[g];
        UNROLLED
        for (int r = 0; r < rows; r++) sums[4 * r + g] = sum[r][g];
    }
}

#ifdef TILES
#include "_tile_products.h"
#define BEGIN_TILES(count, groups)                             \
    do {                                                       \
        if (worth_tiles(count, groups)) NAMED(shape)(count);   \
    } while (0)
#define END_TILES NAMED(RELEASE_TILES)
#else
#define BEGIN_TILES(count, groups)
#define END_TILES()
#endif

/* The same for any number of rows and a panel. Inlined it would share its registers with what stands around it. */
static __attribute__((noinline)) TARGET void NAMED(multiply)(int gates, long count, const uint8_t *bytes, long stride,
                                                             const struct Product *product, long panel, long groups,
                                                             Integers *sums)
{
    static const int32_t nothing[4 * LANES];
    const int8_t *weights = product->weights + 4 * panel * gates * LANES * product->room;
    const int32_t *offsets = groups ? product->offsets + panel * gates * LANES : nothing;
#ifdef TILES
    if (worth_tiles(count, groups)) {
        if (gates == 4)
            NAMED(tile_products)(4, count, bytes, stride, groups, weights, offsets, sums);
        else
            NAMED(tile_products)(3, count, bytes, stride, groups, weights, offsets, sums);
        return;
    }
#endif
    for (long first = 0; first < count; first += MOST_ROWS, bytes += MOST_ROWS * stride, sums += 4 * MOST_ROWS) {
        const long rows = count - first < MOST_ROWS ? count - first : MOST_ROWS;
#define DOT_PRODUCTS(n)                                                                     \
    (gates == 4 ? NAMED(dot_products)(n, 4, bytes, stride, groups, weights, offsets, sums) \
                : NAMED(dot_products)(n, 3, bytes, stride, groups, weights, offsets, sums))
        BY_ROWS(DOT_PRODUCTS)
#undef DOT_PRODUCTS
    }
}

/* The largest magnitude of some numbers; infinite or NaN where one of them is. */
static TARGET float NAMED(largest)(const float *from, long size)
{
    Integers largest = {0};
    long k = 0;
    int32_t top = 0;
    for (; k + LANES <= size; k += LANES) {
        const Integers magnitude = NAMED(load_integers)(from + k) & 0x7fffffff; /* ordered as the numbers are */
        largest = LARGER_INTEGER(largest, magnitude);
    }
    for (int i = 0; i < LANES; i++) top = largest[i] > top ? largest[i] : top;
    for (; k < size; k++) {
        int32_t magnitude;
        memcpy(&magnitude, from + k, sizeof magnitude);
        magnitude &= 0x7fffffff;
        top = magnitude > top ? magnitude : top;
    }
    float most;
    memcpy(&most, &top, sizeof most);
    return most;
}

/* Rounds numbers, times a factor, to bytes; those of the last vector that no number fills are of zero. */
static TARGET void NAMED(round_numbers)(const float *from, long size, float factor, uint8_t *to)
{
    long k = 0;
    for (; k + LANES <= size; k += LANES)
        STORE_BYTES(to + k, FUSED(NAMED(load)(from + k), NAMED(all)(factor), NAMED(all)(ROUNDING)));
    if (k < size) {
        float rest[LANES] = {0};
        memcpy(rest, from + k, (size - k) * sizeof *rest);
        STORE_BYTES(to + k, FUSED(NAMED(load)(rest), NAMED(all)(factor), NAMED(all)(ROUNDING)));
    }
}

/* Rounds one step's inputs to bytes, in units of the largest of them over 127. Returns that unit; NaN where an input
 * is not finite.
 */
static TARGET float NAMED(round_inputs)(const float *from, long size, uint8_t *to)
{
    const float most = NAMED(largest)(from, size);
    if (!(most <= FLT_MAX)) return NAN;
    NAMED(round_numbers)(from, size, most < SMALLEST_INPUT ? 0.0f : 127.0f / most, to);
    return most < SMALLEST_INPUT ? 0.0f : most / 127.0f;
}

/* Rounds a state to bytes, in units of 1/127. Returns whether one of its numbers is none that a state can have. */
static TARGET int NAMED(round_state)(const float *from, long size, uint8_t *to)
{
    NAMED(round_numbers)(from, size, 127.0f, to);
    return !(NAMED(largest)(from, size) <= LARGEST_STATE);
}

/* As `float_input`, in integers: (sum * unit of the input) * unit of the weight + bias. `bytes` and `units` are room. */
static TARGET void NAMED(byte_input)(const struct Layer *layer, const struct Direction *direction, long count,
                                     const float *const *inputs, uint8_t *bytes, float *units, void *room, float *sums)
{
    const struct Product *product = &direction->byte_inputs;
    const long gates = layer->gates, stride = layer->input_bytes;
    Integers *products = room;
    for (long r = 0; r < count; r++) units[r] = NAMED(round_inputs)(inputs[r], layer->inputs, bytes + r * stride);
    BEGIN_TILES(count, product->groups);
    for (long panel = 0; panel < layer->panels; panel++) {
        NAMED(multiply)(gates, count, bytes, stride, product, panel, product->groups, products);
        for (long r = 0; r < count; r++)
            for (long g = 0; g < gates; g++) {
                const long at = (panel * gates + g) * LANES;
                const Vector scaled = NAMED(as_floats)(products[4 * r + g]) * NAMED(all)(units[r]);
                NAMED(store)(sums + r * layer->given + at,
                             FUSED(scaled, NAMED(load)(product->scales + at), NAMED(load)(direction->biases + at)));
            }
    }
    END_TILES();
}

/* The products of `count` rows with a matrix: `y [count][outputs]`; all NaN where an input is not finite. */
static TARGET void NAMED(matrix)(const struct Matrix *matrix, long count, const float *x, uint8_t *bytes, void *room,
                                 float *y)
{
    const struct Product *product = &matrix->product;
    const Integers *products = room;
    float units[STEPS_AT_ONCE];
    for (long r = 0; r < count; r++)
        units[r] = NAMED(round_inputs)(x + r * matrix->inputs, matrix->inputs, bytes + r * matrix->input_bytes);
    BEGIN_TILES(count, product->groups);
    for (long panel = 0; panel < matrix->panels; panel++) {
        NAMED(multiply)(4, count, bytes, matrix->input_bytes, product, panel, product->groups, room);
        for (long r = 0; r < count; r++)
            for (long g = 0; g < 4; g++) {
                const long at = (4 * panel + g) * LANES, left = matrix->outputs - at;
                const Vector scaled = NAMED(as_floats)(products[4 * r + g]) * NAMED(all)(units[r]);
                const Vector found = scaled * NAMED(load)(product->scales + at);
                if (left >= LANES) {
                    NAMED(store)(y + r * matrix->outputs + at, found);
                } else if (left > 0) {
                    float all[LANES];
                    NAMED(store)(all, found);
                    memcpy(y + r * matrix->outputs + at, all, left * sizeof *all);
                }
            }
    }
    END_TILES();
}

/* The states of one panel's units after a step, as floats and as bytes. */
INLINE void NAMED(cells)(const int gates, const struct Layer *layer, const struct Direction *direction, long panel,
                         long count, const Integers *products, const float *sums, float *const *memory,
                         float *const *out, uint8_t *next, uint8_t *poisoned)
{
    const long at = panel * gates * LANES, unit = panel * LANES, width = layer->panels * LANES;
    const long units = layer->hidden - unit < LANES ? layer->hidden - unit : LANES;
    for (long r = 0; r < count; r++, products += 4, sums += gates * width) {
        Vector gate[4];
        UNROLLED
        for (int g = 0; g < gates; g++) {
            /* The reset gate scales what the state gives to a GRU's hidden gate, and not what the input gives to it. */
            const float *other = gates == 3 && g == 2 ? direction->hidden_biases + unit : sums + at + g * LANES;
            gate[g] = FUSED(NAMED(as_floats)(products[g]), NAMED(load)(direction->byte_states.scales + at + g * LANES),
                            NAMED(load)(other));
        }
        if (gates == 3) gate[3] = NAMED(load)(sums + at + 2 * LANES);
        float *kept = memory[r] + unit;
        const Vector state = gates == 4 ? NAMED(lstm_cell)(gate, kept) : NAMED(gru_cell)(gate, kept);
        STORE_BYTES(next + r * width + unit, FUSED(state, NAMED(all)(127.0f), NAMED(all)(ROUNDING)));
        if (units == LANES) {
            NAMED(store)(out[r] + unit, state);
            if (ANY_NAN(state)) poisoned[r] = 1;
        } else {
            float all[LANES];
            NAMED(store)(all, state);
            for (long u = 0; u < units; u++) {
                out[r][unit + u] = all[u];
                if (all[u] != all[u]) poisoned[r] = 1; /* not of a lane without a unit: 0 times infinity is none of it */
            }
        }
    }
}

/* One step of `count` rows: from their states before, `[count][width]` bytes, and what their inputs give, to the states
 * after it. Marks the rows of which a state is not a number.
 */
static TARGET void NAMED(step)(const struct Layer *layer, const struct Direction *direction, long count, int first_step,
                               const uint8_t *states, const float *sums, void *room, float *const *memory,
                               float *const *out, uint8_t *next, uint8_t *poisoned)
{
    const long groups = first_step ? 0 : direction->byte_states.groups; /* nothing was before the first */
    /* Of few rows several panels at once, so that the processor computes their cells side by side. */
    const long at_once = count < ROWS_OF_CELLS ? ROWS_OF_CELLS / count : 1;
    BEGIN_TILES(count, groups);
    for (long start = 0; start < layer->panels; start += at_once) {
        const long end = start + at_once < layer->panels ? start + at_once : layer->panels;
        Integers *products = room;
        for (long panel = start; panel < end; panel++)
            NAMED(multiply)(layer->gates, count, states, layer->panels * LANES, &direction->byte_states, panel, groups,
                            products + 4 * count * (panel - start));
        for (long panel = start; panel < end; panel++, products += 4 * count)
            if (layer->gates == 4)
                NAMED(cells)(4, layer, direction, panel, count, products, sums, memory, out, next, poisoned);
            else
                NAMED(cells)(3, layer, direction, panel, count, products, sums, memory, out, next, poisoned);
    }
    END_TILES();
}

#undef SET
#undef MOST_ROWS
#undef TILES
#undef BEGIN_TILES
#undef END_TILES
