/* Products of floats with weights in panels, for one instruction set; see `_vectors.h`. */

/* Adds each row's `size` numbers' products with the weights, `[size][gates][LANES]`, to what is at `from`: its sums so far,
 * or biases. */
INLINE void NAMED(add_products)(const int rows, const int gates, const float *const *numbers, long size, const float *weights,
                                const float *from, long from_stride, float *sums, long stride)
{
    Vector sum[MOST_ROWS][4];
    const float *row[MOST_ROWS];
    UNROLLED
    for (int r = 0; r < rows; r++) {
        row[r] = numbers[r];
        UNROLLED
        for (int g = 0; g < gates; g++) sum[r][g] = NAMED(load)(from + r * from_stride + g * LANES);
    }
    for (long k = 0; k < size; k++, weights += gates * LANES) {
        Vector number[MOST_ROWS];
        UNROLLED
        for (int r = 0; r < rows; r++) number[r] = NAMED(all)(row[r][k]);
        UNROLLED
        for (int g = 0; g < gates; g++) {
            Vector weight = NAMED(load)(weights + g * LANES);
            UNROLLED
            for (int r = 0; r < rows; r++) sum[r][g] = FUSED(number[r], weight, sum[r][g]);
        }
    }
    UNROLLED
    for (int r = 0; r < rows; r++) {
        UNROLLED
        for (int g = 0; g < gates; g++) NAMED(store)(sums + r * stride + g * LANES, sum[r][g]);
    }
}

/* The same for any number of rows. Inlined it would share its registers with what stands around it. */
static __attribute__((noinline)) TARGET void NAMED(multiply_floats)(int gates, long count, const float *const *numbers, long size,
                                                                    const float *weights, const float *from,
                                                                    long from_stride, float *sums, long stride)
{
    for (long first = 0; first < count; first += MOST_ROWS) {
        const long rows = count - first < MOST_ROWS ? count - first : MOST_ROWS;
        const float *of_rows = from + first * from_stride;
        float *to = sums + first * stride;
#define ADD_PRODUCTS(n)                                                                                      \
    (gates == 4   ? NAMED(add_products)(n, 4, numbers + first, size, weights, of_rows, from_stride, to, stride) \
     : gates == 3 ? NAMED(add_products)(n, 3, numbers + first, size, weights, of_rows, from_stride, to, stride) \
                  : NAMED(add_products)(n, 1, numbers + first, size, weights, of_rows, from_stride, to, stride))
        BY_ROWS(ADD_PRODUCTS)
#undef ADD_PRODUCTS
    }
}

/* What the inputs of `count` steps, whosesoever they are, give to all gates: `sums [count][panels][.][LANES]`. */
static TARGET void NAMED(float_input)(const struct Layer *layer, const struct Direction *direction, long count,
                                      const float *const *inputs, float *sums)
{
    for (long panel = 0; panel < layer->panels; panel++) {
        const long column = panel * layer->gates * LANES;
        NAMED(multiply_floats)(layer->gates, count, inputs, layer->inputs, direction->inputs + column * layer->inputs,
                               direction->biases + column, 0, sums + panel * (layer->given / layer->panels), layer->given);
    }
}
