/* LSTM and GRU cells over rows of different lengths, and sums over packed steps, for one instruction set; see `_vectors.h`.
 *
 * The factors of a row, and the order in which its products are summed, do not depend on the other rows: a row gets the
 * same bits in every batch.
 */
#include "_vectors.h"
#include "_float_products.h"

/* tanh(x) as a quotient, so that what is multiplied with it needs no division of its own: x times the factor, over the
 * divisor.
 *
 * It is x P(x^2) / Q(x^2), of least largest relative error on [0, 9]; past 9 the nearest float to tanh is 1. The
 * coefficients were found by Lawson's method (Lawson, 1961). NaN stays.
 */
INLINE Vector NAMED(tanh_parts)(Vector x, Vector *factor, Vector *divisor)
{
    x = LARGER(NAMED(all)(-9.0f), SMALLER(NAMED(all)(9.0f), x));
    Vector square = x * x;
    Vector p = FUSED(square, NAMED(all)(1.3354655e-08f), NAMED(all)(2.0609077e-05f));
    p = FUSED(p, square, NAMED(all)(3.4955877e-03f));
    p = FUSED(p, square, NAMED(all)(0.13381025f));
    *factor = FUSED(p, square, NAMED(all)(1.0f));
    Vector q = FUSED(square, NAMED(all)(7.7765554e-07f), NAMED(all)(3.2856342e-04f));
    q = FUSED(q, square, NAMED(all)(0.02587698f));
    q = FUSED(q, square, NAMED(all)(0.46714342f));
    *divisor = FUSED(q, square, NAMED(all)(1.0f));
    return x;
}

INLINE Vector NAMED(tanh)(Vector x, Vector *divisor)
{
    Vector factor;
    x = NAMED(tanh_parts)(x, &factor, divisor);
    return x * factor;
}

/* 1 / (1 + exp(-x)), also as a quotient. A closed gate is exactly 0, and never slightly negative. */
INLINE Vector NAMED(sigmoid)(Vector x, Vector *divisor)
{
    Vector factor;
    x = NAMED(tanh_parts)(x * 0.5f, &factor, divisor);
    return LARGER(NAMED(all)(0.0f), FUSED(x, factor, *divisor) * 0.5f);
}

/* An LSTM's cell: its gates are input, output, forget and cell. Keeps the cell's state, and gives the unit's. */
INLINE Vector NAMED(lstm_cell)(const float *sums, float *kept)
{
    Vector i, o, f, g, c;
    Vector input = NAMED(sigmoid)(NAMED(load)(sums), &i), forget = NAMED(sigmoid)(NAMED(load)(sums + 2 * LANES), &f);
    Vector given = NAMED(tanh)(NAMED(load)(sums + 3 * LANES), &g);
    Vector cell = FUSED(forget / f, NAMED(load)(kept), input * given / (i * g));
    NAMED(store)(kept, cell);
    Vector out = NAMED(sigmoid)(NAMED(load)(sums + LANES), &o);
    return out * NAMED(tanh)(cell, &c) / (o * c);
}

/* A GRU's cell: its gates are update, reset and hidden, the last as its state gives it and as its input does. */
INLINE Vector NAMED(gru_cell)(const float *sums, float *kept)
{
    Vector r, h, u;
    Vector reset = NAMED(sigmoid)(NAMED(load)(sums + LANES), &r) / r;
    Vector hidden = NAMED(tanh)(FUSED(reset, NAMED(load)(sums + 2 * LANES), NAMED(load)(sums + 3 * LANES)), &h) / h;
    Vector state = hidden + NAMED(sigmoid)(NAMED(load)(sums), &u) * (NAMED(load)(kept) - hidden) / u;
    NAMED(store)(kept, state);
    return state;
}

/* One step of `count` rows: from what its inputs give, the states before and what is kept, to the states after it. */
static TARGET void NAMED(step)(const struct Layer *layer, const struct Direction *direction, long count,
                               const float *const *states, int first_step, float *sums, float *const *memory,
                               float *const *out)
{
    const int gates = layer->gates;
    const long stride = layer->panels * 4 * LANES;
    const long size = first_step ? 0 : layer->hidden; /* nothing was before the first */
    for (long panel = 0; panel < layer->panels; panel++) {
        const long unit = panel * LANES;
        const long units = layer->hidden - unit < LANES ? layer->hidden - unit : LANES;
        float *of_panel = sums + panel * 4 * LANES;
        for (long r = 0; gates == 3 && r < count; r++)
            for (long i = 0; i < LANES; i++) {
                of_panel[r * stride + 3 * LANES + i] = of_panel[r * stride + 2 * LANES + i];
                of_panel[r * stride + 2 * LANES + i] = direction->hidden_biases[unit + i];
            }
        NAMED(multiply_floats)(gates, count, states, size, direction->states + unit * gates * layer->hidden, of_panel, stride,
                               of_panel, stride);
        for (long r = 0; r < count; r++) {
            Vector state = gates == 4 ? NAMED(lstm_cell)(of_panel + r * stride, memory[r] + unit)
                                      : NAMED(gru_cell)(of_panel + r * stride, memory[r] + unit);
            if (units == LANES) {
                NAMED(store)(out[r] + unit, state);
            } else {
                float all[LANES];
                NAMED(store)(all, state);
                for (long u = 0; u < units; u++) out[r][unit + u] = all[u];
            }
        }
    }
}

/* The sum of the products of two rows of numbers: in each lane from the first to the last, then over the lanes. */
static TARGET float NAMED(dot)(const float *one, const float *other, long size)
{
    Vector sums = NAMED(all)(0.0f);
    float of_lane[LANES], sum = 0.0f;
    long i = 0;
    for (; i + LANES <= size; i += LANES) sums = FUSED(NAMED(load)(one + i), NAMED(load)(other + i), sums);
    NAMED(store)(of_lane, sums);
    for (long lane = 0; lane < LANES; lane++) sum += of_lane[lane];
    for (; i < size; i++) sum = __builtin_fmaf(one[i], other[i], sum);
    return sum;
}

/* Adds `share` times the values of one step to `sums`. */
static TARGET void NAMED(add_share)(float *sums, const float *values, float share, long size)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        NAMED(store)(sums + i, FUSED(NAMED(all)(share), NAMED(load)(values + i), NAMED(load)(sums + i)));
    for (; i < size; i++) sums[i] = __builtin_fmaf(share, values[i], sums[i]);
}

#undef SET
#undef MOST_ROWS
