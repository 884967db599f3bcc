/* The arithmetic of `_attention.c` for one instruction set; see `_vectors.h`. WIDE is how many vectors of queries are computed
 * at once where there are as many, and MOST_ROWS of how many rows of the other factor: the sums fill the registers. Queries of
 * one vector are computed with 8 rows: fewer sums would wait for each other.
 */
#include "_vectors.h"

/* Adds products with numbers of queries, `[size][block]`, to what is at `to`, `[rows][block]`; with `is_first` to 0. A row's
 * numbers begin `row_apart` floats behind the ones of the row before it, and are `apart` floats apart. */
INLINE void NAMED(add_queries)(const int rows, const int vectors, const float *numbers, long row_apart, long apart, long size,
                               const float *queries, long block, int is_first, float *to)
{
    Vector sum[8][2];
    UNROLLED
    for (int r = 0; r < rows; r++) {
        UNROLLED
        for (int v = 0; v < vectors; v++) sum[r][v] = is_first ? NAMED(all)(0.0f) : NAMED(load)(to + r * block + v * LANES);
    }
    for (long k = 0; k < size; k++, numbers += apart, queries += block) {
        Vector query[2];
        UNROLLED
        for (int v = 0; v < vectors; v++) query[v] = NAMED(load)(queries + v * LANES);
        UNROLLED
        for (int r = 0; r < rows; r++) {
            const Vector number = NAMED(all)(numbers[r * row_apart]);
            UNROLLED
            for (int v = 0; v < vectors; v++) sum[r][v] = FUSED(number, query[v], sum[r][v]);
        }
    }
    UNROLLED
    for (int r = 0; r < rows; r++) {
        UNROLLED
        for (int v = 0; v < vectors; v++) NAMED(store)(to + r * block + v * LANES, sum[r][v]);
    }
}

/* The same for any number of rows, and a block of one vector of queries or of WIDE. */
static TARGET void NAMED(multiply_queries)(const float *numbers, long row_apart, long apart, long count, long size,
                                           const float *queries, long block, int is_first, float *to)
{
    const long most = block > LANES ? MOST_ROWS : 8;
    for (long first = 0; first < count; first += most, numbers += most * row_apart, to += most * block) {
        const long rows = count - first < most ? count - first : most;
#define ADD_WIDE(n) NAMED(add_queries)(n, WIDE, numbers, row_apart, apart, size, queries, WIDE * LANES, is_first, to)
#define ADD_ONE(n) NAMED(add_queries)(n, 1, numbers, row_apart, apart, size, queries, LANES, is_first, to)
        if (block > LANES) BY_ROWS(ADD_WIDE)
        else switch (rows) { UP_TO_8(ADD_ONE) }
#undef ADD_WIDE
#undef ADD_ONE
    }
}

/* 2 to the power of x, which is 0 or less; NaN stays. Below 2^-126 it is that.
 *
 * It is a power of two times a polynomial, of least largest relative error (2e-9) on [-0.5, 0.5]; its coefficients were found
 * by Lawson's method. With its roundings it is within 8e-8.
 */
INLINE Vector NAMED(power_of_two)(Vector x)
{
    const Vector to_whole = NAMED(all)(12582912.0f); /* 1.5 * 2^23: the sum has no places behind the point */
    const Vector least = NAMED(all)(-126.0f), bounded = (Vector)LARGER(least, x), number = (Vector)LARGER(bounded, least);
    const Vector shifted = number + to_whole, rest = number - (shifted - to_whole), nan_or_zero = bounded - bounded;
    Vector power = FUSED(NAMED(all)(1.5353362e-4f), rest, NAMED(all)(1.3398875e-3f));
    power = FUSED(power, rest, NAMED(all)(9.6184369e-3f));
    power = FUSED(power, rest, NAMED(all)(5.5503324e-2f));
    power = FUSED(power, rest, NAMED(all)(0.24022648f));
    power = FUSED(power, rest, NAMED(all)(0.69314718f));
    power = FUSED(power, rest, NAMED(all)(1.0f));
    /* The lowest bits of the sum are the exponent */
    return (Vector)((Integers)power + ((Integers)shifted << 23)) + nan_or_zero;
}

/* Turns the scores of `count` keys, `[count][block]`, into their shares before they are divided by the sum of all.
 *
 * `most` has the largest score of each query so far, and `sums` the sum of the shares. What was summed so far, `so_far
 * [features][block]`, is multiplied with how much smaller its shares are in view of a larger score. */
static TARGET void NAMED(weigh)(float *scores, long count, long block, int is_first, float *most, float *sums, float *so_far,
                                long features)
{
    for (long lane = 0; lane < block; lane += LANES) {
        const Vector before = NAMED(load)(most + lane);
        Vector largest = before, sum = NAMED(all)(0.0f);
        if (is_first) largest = NAMED(load)(scores + lane);
        for (long key = 0; key < count; key++) largest = (Vector)LARGER(NAMED(load)(scores + key * block + lane), largest);
        for (long key = 0; key < count; key++) {
            const Vector share = NAMED(power_of_two)(NAMED(load)(scores + key * block + lane) - largest);
            NAMED(store)(scores + key * block + lane, share);
            sum += share;
        }
        NAMED(store)(most + lane, largest);
        if (!is_first) {
            const Vector factor = NAMED(power_of_two)(before - largest);
            sum = FUSED(NAMED(load)(sums + lane), factor, sum);
            for (long i = 0; i < features; i++)
                NAMED(store)(so_far + i * block + lane, (Vector)(NAMED(load)(so_far + i * block + lane) * factor));
        }
        NAMED(store)(sums + lane, sum);
    }
}

#undef WIDE
#undef MOST_ROWS
#undef SET
