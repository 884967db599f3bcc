/* The transform of `_shares.c` for one instruction set; see `_vectors.h`. Every sum is exact, so the bits are those of any
 * other order.
 */
#include "_vectors.h"

#define LOAD NAMED(load)

/* The largest absolute value of some numbers; NaN if one of them is. */
static TARGET float NAMED(largest)(const float *x, long count)
{
    float most = 0.0f;
    int nan = 0;
    for (long i = 0; i < count; i++) {
        const float size = x[i] < 0 ? -x[i] : x[i];
        most = size > most ? size : most;
        nan |= x[i] != x[i];
    }
    return nan ? NAN : most;
}

/* Clips `[length][channels]` at the limit and rounds it to the grid, as `[channels][stride]`. Adding and subtracting
 * 1.5 * 2^23 rounds to whole numbers, halves to even. */
static TARGET void NAMED(to_grid)(const float *x, long length, long channels, float limit, float distance, float *planes,
                                  long stride)
{
    const float shift = 12582912.0f, inverse = 1.0f / distance;
    for (long c = 0; c < channels; c++)
        for (long t = 0; t < length; t++) {
            float value = x[t * channels + c];
            value = value > limit ? limit : value < -limit ? -limit : value;
            planes[c * stride + t] = (value * inverse + shift - shift) * distance;
        }
}

/* The sum of some planes. */
static TARGET void NAMED(add_planes)(const float *planes, long stride, const int32_t *channels, long count, long length,
                                     float *sums)
{
    for (long t = 0; t < length; t += LANES) {
        Vector sum = LOAD(planes + channels[0] * stride + t);
        for (long i = 1; i < count; i++) sum += LOAD(planes + channels[i] * stride + t);
        NAMED(store)(sums + t, sum);
    }
}

/* The sum of the nine steps that a kernel reads, at each step. */
static TARGET void NAMED(add_taps)(const float *const *taps, long length, float *sums)
{
    for (long t = 0; t < length; t += LANES)
        NAMED(store)(sums + t, LOAD(taps[0] + t) + LOAD(taps[1] + t) + LOAD(taps[2] + t) + LOAD(taps[3] + t) + LOAD(taps[4] + t) +
                                   LOAD(taps[5] + t) + LOAD(taps[6] + t) + LOAD(taps[7] + t) + LOAD(taps[8] + t));
}

/* The results of a kernel: three of its weights are 2 and the others -1, so they are 3 times three taps less all. */
static TARGET void NAMED(results)(const float *a, const float *b, const float *c, const float *all, long length, float *to)
{
    for (long t = 0; t < length; t += LANES)
        NAMED(store)(to + t, (LOAD(a + t) + LOAD(b + t) + LOAD(c + t)) * 3.0f - LOAD(all + t));
}

/* Counts results above `groups` vectors of biases: a lane is a bias. */
INLINE void NAMED(count_for_biases)(const int groups, const float *results, long steps, const float *biases, int32_t *counts)
{
    Integers count[4] = {{0}};
    Vector bias[4];
    UNROLLED
    for (int g = 0; g < groups; g++) bias[g] = LOAD(biases + g * LANES);
    for (long t = 0; t < steps; t++) {
        const Vector result = results[t] - (Vector){0};
        UNROLLED
        for (int g = 0; g < groups; g++) count[g] -= (Integers)(result > bias[g]);
    }
    UNROLLED
    for (int g = 0; g < groups; g++) *(NAMED(UnalignedIntegers) *)(counts + g * LANES) = count[g];
}

/* Counts results above `size` biases: a lane is a step. Behind the last step there are results below every bias. */
INLINE void NAMED(count_along_steps)(const int size, const float *results, long steps, const float *biases, int32_t *counts)
{
    Integers count[4] = {{0}};
    Vector bias[4];
    UNROLLED
    for (int i = 0; i < size; i++) bias[i] = biases[i] - (Vector){0};
    for (long t = 0; t < steps; t += LANES) {
        const Vector result = LOAD(results + t);
        UNROLLED
        for (int i = 0; i < size; i++) count[i] -= (Integers)(result > bias[i]);
    }
    UNROLLED
    for (int i = 0; i < size; i++) {
        counts[i] = 0;
        for (int lane = 0; lane < LANES; lane++) counts[i] += count[i][lane];
    }
}

/* The shares of the results that are above each bias. Biases and counts have room for a vector behind the last. */
static TARGET void NAMED(shares)(float *results, long steps, const float *biases, long size, int32_t *counts, float *shares)
{
    const long groups = (size + LANES - 1) / LANES, vectors = (steps + LANES - 1) / LANES;
    if (groups * steps <= (vectors + SUM_OF_LANES) * size) {
        for (long g = 0; g < groups; g += 4)
#define COUNT(n) NAMED(count_for_biases)(n, results, steps, biases + g * LANES, counts + g * LANES)
            switch (groups - g < 4 ? groups - g : 4) { UP_TO_4(COUNT) }
#undef COUNT
    } else {
        NAMED(store)(results + steps, BELOW_ALL - (Vector){0});
        for (long i = 0; i < size; i += 4)
#define COUNT(n) NAMED(count_along_steps)(n, results, steps, biases + i, counts + i)
            switch (size - i < 4 ? size - i : 4) { UP_TO_4(COUNT) }
#undef COUNT
    }
    for (long i = 0; i < size; i++) shares[i] = (float)counts[i] / (float)steps;
}

#undef LOAD
#undef SET
