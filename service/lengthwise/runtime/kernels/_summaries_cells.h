/* The summaries of `_summaries.c` for one instruction set; see `_vectors.h`. Each function says which of `definitions.py` it
 * computes. Operations and their order are those of that file: the bits depend on it, but for sums, which are exact.
 */
#include "_vectors.h"

#define AT_ONCE 8 /* independent sums, so that a vector has some */
#define TOTAL NAMED(total)
#define TOTAL_OF_PRODUCTS NAMED(total_of_products)
#define LARGEST NAMED(largest)

/* The largest absolute value. */
INLINE double LARGEST(const double *x, long count)
{
    double most[AT_ONCE] = {0};
    for (long t = 0; t < count; t += AT_ONCE)
        UNROLLED
        for (int lane = 0; lane < AT_ONCE; lane++) {
            const double size = fabs(x[t + lane]);
            most[lane] = size > most[lane] ? size : most[lane];
        }
    for (int lane = 1; lane < AT_ONCE; lane++) most[0] = most[lane] > most[0] ? most[lane] : most[0];
    return most[0];
}

/* `Series.total`: the sum on the grid. Behind the last number there are zeros, up to a multiple of AT_ONCE. */
INLINE double TOTAL(const double *x, long count)
{
    const double shift = LARGEST(x, count) * 2097152.0; /* 2^21 */
    double sums[AT_ONCE] = {0};
    for (long t = 0; t < count; t += AT_ONCE)
        UNROLLED
        for (int lane = 0; lane < AT_ONCE; lane++) sums[lane] += (x[t + lane] + shift) - shift;
    for (int lane = 1; lane < AT_ONCE; lane++) sums[0] += sums[lane];
    return sums[0];
}

/* `Series.total` of products; `spare` has room for them. */
INLINE double TOTAL_OF_PRODUCTS(const double *x, const double *y, long count, double *spare)
{
    for (long t = 0; t < count; t++) spare[t] = x[t] * y[t];
    memset(spare + count, 0, AT_ONCE * sizeof *spare);
    return TOTAL(spare, count);
}

/* What the summaries of a feature are computed from. */
struct NAMED(Series) {
    const double *values, *deviations; /* zeros behind the last */
    double *sorted, *spare;
    long count;
    double mean, variance;
};

/* `trend`: the slope of a line and its error. */
static TARGET void NAMED(trend)(const struct NAMED(Series) *series, double *slope, double *error)
{
    const double count = series->count, middle = (count - 1.0) * 0.5;
    const double each = count * (count * count - 1.0) / 12.0, squares = each > 0.5 ? each : 0.5;
    double *time = series->sorted;
    for (long t = 0; t < series->count; t++) time[t] = (double)t - middle;
    *slope = TOTAL_OF_PRODUCTS(time, series->deviations, series->count, series->spare) / squares;
    for (long t = 0; t < series->count; t++) time[t] = series->deviations[t] - *slope * time[t];
    const double rest = TOTAL_OF_PRODUCTS(time, time, series->count, series->spare);
    *error = count > 2.0 ? sqrt(rest / ((count - 2.0) * squares)) : 0.0;
}

/* `change`: mean absolute change, crossings of the mean, and the longest run above it. */
static TARGET void NAMED(change)(const struct NAMED(Series) *series, double *to)
{
    const double *values = series->values;
    double *spare = series->spare;
    const long changes = series->count - 1;
    long crossings = 0, run = 0, longest = 0;
    for (long t = 0; t < series->count; t++) {
        const int above = values[t] > series->mean;
        crossings += t && above != (values[t - 1] > series->mean);
        run = above ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    for (long t = 0; t < changes; t++) spare[t] = fabs(values[t + 1] - values[t]);
    memset(spare + changes, 0, AT_ONCE * sizeof *spare);
    to[0] = changes ? TOTAL(spare, changes) / (double)changes : 0.0;
    to[1] = crossings;
    to[2] = longest;
}

/* `extremes`: minimum and maximum, each with its first position. */
static TARGET void NAMED(extremes)(const struct NAMED(Series) *series, double *values, double *positions)
{
    long low = 0, high = 0;
    for (long t = 1; t < series->count; t++) {
        if (series->values[t] < series->values[low]) low = t;
        if (series->values[t] > series->values[high]) high = t;
    }
    values[0] = series->values[low];
    values[1] = series->values[high];
    positions[0] = (double)low / (double)series->count;
    positions[1] = (double)high / (double)series->count;
}

/* `quantiles`. */
static TARGET void NAMED(quantiles)(const struct Summaries *summaries, const struct NAMED(Series) *series, double *to)
{
    memcpy(series->sorted, series->values, series->count * sizeof(double));
    sort(series->sorted, series->spare, series->count);
    for (long i = 0; i < summaries->quantiles; i++) {
        const double position = summaries->shares[i] * ((double)series->count - 1.0), below = floor(position);
        const long at = (long)below, next = at + 1 < series->count ? at + 1 : series->count - 1;
        const double low = series->sorted[at], high = series->sorted[next];
        to[i] = low + (high - low) * (position - below);
    }
}

/* `autocorrelation`. */
static TARGET void NAMED(autocorrelation)(const struct Summaries *summaries, const struct NAMED(Series) *series, long features,
                                          double *to)
{
    const double *deviations = series->deviations;
    for (long i = 0; i < summaries->lag_count; i++) {
        const long lag = summaries->lags[i], pairs = series->count > lag ? series->count - lag : 0;
                const double sum = pairs ? TOTAL_OF_PRODUCTS(deviations, deviations + lag, pairs, series->spare) : 0.0;
        to[i * features] = series->variance > 0.0 ? sum / (double)(pairs ? pairs : 1) / series->variance : 0.0;
    }
}

/* Where the numbers of a group begin in a row, for the groups of which each feature has some. */
INLINE double *NAMED(begin)(const struct Summaries *summaries, enum Group group, long count, double **next)
{
    double *begin = *next;
    if (has(summaries, group)) *next += count * summaries->features;
    return begin;
}

/* The summaries of a feature `f`; `to` is where the numbers of the group ENDS begin. The numbers of one yield of a group stand
 * together, for all features: those of the next are `features` further. Returns where the correlations begin. */
static TARGET double *NAMED(of_feature)(const struct Summaries *summaries, const struct NAMED(Series) *series, long f,
                                        long missing, long gap, long length, double *to)
{
    const long features = summaries->features, count = series->count;
    const double *values = series->values;
    double *ends = NAMED(begin)(summaries, ENDS, 2, &to), *moments = NAMED(begin)(summaries, MOMENTS, 3, &to);
    double *extremes = NAMED(begin)(summaries, EXTREMES, 4, &to);
    double *quantiles = NAMED(begin)(summaries, QUANTILES, summaries->quantiles, &to);
    double *trend = NAMED(begin)(summaries, TREND, 2, &to), *change = NAMED(begin)(summaries, CHANGE, 3, &to);
    double *lags = NAMED(begin)(summaries, AUTOCORRELATION, summaries->lag_count, &to);
    double *gaps = NAMED(begin)(summaries, MISSING, 2, &to), pair[2], where[2], three[3];
    if (has(summaries, ENDS)) {
        ends[f] = values[0];
        ends[features + f] = values[count - 1];
    }
    if (has(summaries, MOMENTS)) {
        moments[f] = series->mean;
        moments[features + f] = sqrt(series->variance);
        moments[2 * features + f] = sqrt(TOTAL_OF_PRODUCTS(values, values, count, series->spare) / (double)count);
    }
    if (has(summaries, EXTREMES)) {
        NAMED(extremes)(series, pair, where);
        for (int i = 0; i < 2; i++) {
            extremes[2 * i * features + f] = pair[i];
            extremes[(2 * i + 1) * features + f] = where[i];
        }
    }
    if (has(summaries, QUANTILES)) NAMED(quantiles)(summaries, series, quantiles + f * summaries->quantiles);
    if (has(summaries, TREND)) NAMED(trend)(series, trend + f, trend + features + f);
    if (has(summaries, CHANGE)) {
        NAMED(change)(series, three);
        for (int i = 0; i < 3; i++) change[i * features + f] = three[i];
    }
    if (has(summaries, AUTOCORRELATION)) NAMED(autocorrelation)(summaries, series, features, lags + f);
    if (has(summaries, MISSING)) {
        gaps[f] = (double)missing / (double)length;
        gaps[features + f] = gap;
    }
    return to;
}

/* `correlations`, from the deviations of each feature at all steps. Returns where they end. */
static TARGET double *NAMED(correlations)(const struct Summaries *summaries, const struct Room *room, long length, double *to)
{
    for (long f = 0; f < summaries->features; f++) {
        const double *x = room->every + f * room->stride;
        room->sizes[f] = sqrt(TOTAL_OF_PRODUCTS(x, x, length, room->spare));
    }
    for (long one = 0; one < summaries->features; one++)
        for (long other = one + 1; other < summaries->features; other++) {
            const double *x = room->every + one * room->stride, *y = room->every + other * room->stride;
            const double sizes = room->sizes[one] * room->sizes[other], sum = TOTAL_OF_PRODUCTS(x, y, length, room->spare);
            const double correlation = sizes > 0.0 ? sum / sizes : 0.0;
            *to++ = correlation < -1.0 ? -1.0 : correlation > 1.0 ? 1.0 : correlation;
        }
    return to;
}

#include "_intervals_cells.h"

/* The values of a feature at all steps on the grid of the spectrum, with the mean for missing ones: `[steps][features]`. */
static TARGET void NAMED(fill)(const struct Summaries *summaries, const struct Room *room, const float *x, long f, long steps,
                               double mean)
{
    const long features = summaries->features;
    double *filled = room->spare;
    for (long t = 0; t < steps; t++) {
        const float value = x[t * features + f];
        filled[t] = value != value ? mean : value == 0.0f ? 0.0 : (double)value;
    }
    memset(filled + steps, 0, AT_ONCE * sizeof *filled);
    const double shift = LARGEST(filled, steps) * 4294967296.0; /* 2^32 */
    room->filled[f] = 0.0; /* of a row without steps */
    for (long t = 0; t < steps; t++) room->filled[t * features + f] = (filled[t] + shift) - shift;
}

/* All summaries of a row, `x` is [length][features]; a row without steps is one of a single missing one. */
static TARGET void NAMED(summarise)(const struct Summaries *summaries, const struct Room *room, const float *x, long steps,
                                    float *to)
{
    const long features = summaries->features, length = steps ? steps : 1;
    double *numbers = room->numbers, *next = numbers + has(summaries, LENGTH), *further = next;
    if (has(summaries, LENGTH)) *numbers = length;
    for (long f = 0; f < features; f++) {
        double *values = room->present + f * room->stride;
        struct NAMED(Series) series = {values, room->deviations, room->sorted, room->spare, 0, 0.0, 0.0};
        long missing = !steps, gap = 0, longest = !steps;
        for (long t = 0; t < steps; t++) {
            const float value = x[t * features + f];
            const int is_missing = value != value;
            missing += is_missing;
            gap = is_missing ? gap + 1 : 0;
            longest = gap > longest ? gap : longest;
            values[series.count] = value == 0.0f ? 0.0 : (double)value; /* no -0.0 */
            series.count += !is_missing;
        }
        if (!series.count) values[series.count++] = 0.0; /* no value at all is one zero */
        room->counts[f] = series.count;
        for (long t = series.count; t < series.count + AT_ONCE; t++) values[t] = room->deviations[t] = 0.0;
        series.mean = TOTAL(values, series.count) / (double)series.count;
        for (long t = 0; t < series.count; t++) room->deviations[t] = values[t] - series.mean;
        const double *deviations = room->deviations;
        series.variance = TOTAL_OF_PRODUCTS(deviations, deviations, series.count, room->spare) / (double)series.count;
        further = NAMED(of_feature)(summaries, &series, f, missing, longest, length, next);
        if (needs_spectrum(summaries)) NAMED(fill)(summaries, room, x, f, steps, series.mean);
        if (!has(summaries, CORRELATIONS)) continue;
        double *every = room->every + f * room->stride;
        for (long t = 0, present = 0; t < steps; t++) {
            const int is_present = x[t * features + f] == x[t * features + f];
            every[t] = is_present ? deviations[present] : 0.0;
            present += is_present;
        }
    }
    if (has(summaries, CORRELATIONS)) further = NAMED(correlations)(summaries, room, steps, further);
    if (needs_spectrum(summaries)) NAMED(spectrum)(summaries, room, length);
    for (long f = 0; has(summaries, BANDS) && f < features; f++)
        NAMED(bands)(room->spectrum + f * room->stride, length, features, room->spare, further + f);
    further += has(summaries, BANDS) * 4 * features;
    if (has(summaries, INTERVALS)) NAMED(intervals)(summaries, room, length, further);
    for (long i = 0; i < summaries->chosen_count; i++) {
        const double number = numbers[summaries->chosen[i]];
        const float rounded = (float)(number > FLT_MAX ? FLT_MAX : number < -FLT_MAX ? -FLT_MAX : number);
        to[i] = rounded == 0.0f ? 0.0f : rounded; /* no -0.0 */
    }
}

#undef TOTAL_OF_PRODUCTS
#undef TOTAL
#undef LARGEST
#undef AT_ONCE
#undef SET
