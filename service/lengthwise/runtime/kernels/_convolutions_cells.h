/* The arithmetic of `_convolutions.c` for one instruction set; see `_vectors.h`. WIDE is how many vectors of outputs are
 * computed at once where there are as many, and MOST_STEPS of how many steps: the sums fill the registers.
 */
#include "_vectors.h"

/* Adds `size` inputs' products with the weights, `[size][stride]`, to what is at `from`, of `steps` steps and of `vectors`
 * vectors of outputs. Each input of a step is `step` floats behind that of the one before it. */
INLINE void NAMED(add_steps)(const int steps, const int vectors, const float *x, long step, long size, const float *weights,
                             const float *from, long from_stride, float *to, long stride)
{
    Vector sum[8][4];
    UNROLLED
    for (int s = 0; s < steps; s++) {
        UNROLLED
        for (int v = 0; v < vectors; v++) sum[s][v] = NAMED(load)(from + s * from_stride + v * LANES);
    }
    for (long k = 0; k < size; k++, weights += stride) {
        Vector weight[4];
        UNROLLED
        for (int v = 0; v < vectors; v++) weight[v] = NAMED(load)(weights + v * LANES);
        UNROLLED
        for (int s = 0; s < steps; s++) {
            const Vector number = NAMED(all)(x[s * step + k]);
            UNROLLED
            for (int v = 0; v < vectors; v++) sum[s][v] = FUSED(number, weight[v], sum[s][v]);
        }
    }
    UNROLLED
    for (int s = 0; s < steps; s++) {
        UNROLLED
        for (int v = 0; v < vectors; v++) NAMED(store)(to + s * stride + v * LANES, sum[s][v]);
    }
}

/* A convolution: `taps` inputs of each step, `dilation` steps apart, from `x` on. Inputs side by side are one product. */
static TARGET void NAMED(convolve)(const float *x, long width, long taps, long dilation, long length, const float *biases,
                                   const float *weights, float *to, long into)
{
    const long products = dilation == 1 ? 1 : taps, size = dilation == 1 ? taps * width : width;
    for (long c = 0; c < into;) {
        const int is_wide = into - c >= WIDE * LANES;
        const long most = is_wide ? MOST_STEPS : 8;
        for (long t = 0; t < length; t += most) {
            const long rows = length - t < most ? length - t : most;
            float *at = to + t * into + c;
            for (long tap = 0; tap < products; tap++) {
                const float *inputs = x + (t + tap * dilation) * width, *matrix = weights + tap * width * into + c;
                const float *from = tap ? at : biases + c;
                const long from_stride = tap ? into : 0;
#define ADD_WIDE(n) NAMED(add_steps)(n, WIDE, inputs, width, size, matrix, from, from_stride, at, into)
#define ADD_ONE(n) NAMED(add_steps)(n, 1, inputs, width, size, matrix, from, from_stride, at, into)
                if (is_wide) switch (rows) { JOINED(UP_TO_, MOST_STEPS)(ADD_WIDE) }
                else switch (rows) { UP_TO_8(ADD_ONE) }
#undef ADD_WIDE
#undef ADD_ONE
            }
        }
        c += is_wide ? WIDE * LANES : LANES;
    }
}

/* Multiplies each channel with its scale, and adds its shift. */
static TARGET void NAMED(scale)(const float *x, long width, long length, const float *scales, float *to)
{
    for (long t = 0; t < length; t++, x += width, to += width)
        for (long c = 0; c < width; c += LANES)
            NAMED(store)(to + c, (Vector)FUSED(NAMED(load)(x + c), NAMED(load)(scales + c), NAMED(load)(scales + width + c)));
}

/* The sum of two; with NULL for the second, x where it is above 0, and else 0. NaN stays. */
static TARGET void NAMED(combine)(const float *x, const float *other, long count, float *to)
{
    const Vector zero = SPLAT(0.0f);
    for (long i = 0; i < count; i += LANES) {
        Vector value = NAMED(load)(x + i);
        if (other) value += NAMED(load)(other + i);
        else value = (Vector)LARGER(zero, value);
        NAMED(store)(to + i, value);
    }
}

/* The largest of the steps from `first` to before `end`, of each channel. */
static TARGET void NAMED(largest)(const float *x, long width, long first, long end, float *to)
{
    for (long c = 0; c < width; c += LANES) {
        Vector most = NAMED(load)(x + first * width + c);
        for (long t = first + 1; t < end; t++) most = (Vector)LARGER(most, NAMED(load)(x + t * width + c));
        NAMED(store)(to + c, most);
    }
}

/* The sum over the steps, of each channel. */
static TARGET void NAMED(total)(const float *x, long width, long length, float *to)
{
    for (long c = 0; c < width; c += LANES) {
        Vector sum = SPLAT(0.0f);
        for (long t = 0; t < length; t++) sum += NAMED(load)(x + t * width + c);
        NAMED(store)(to + c, sum);
    }
}

#undef WIDE
#undef MOST_STEPS
#undef SET
