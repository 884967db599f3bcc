/* The groups of `_summaries.c` that need the spectrum, for one instruction set: `_summaries_cells.h` includes it. */

/* `waves`: the first part of each cosine of 2 pi t / length, its rest, and the same of the sine: `[4][stride]`. */
static TARGET void NAMED(waves)(long length, long stride, double *to)
{
    const double turn = 2 * 3.141592653589793, first_shift = 51539607552.0, rest_shift = 393216.0; /* 1.5 * 2^35, 2^18 */
    double sine[12] = {turn};
    for (int i = 1; i < 12; i++) sine[i] = sine[i - 1] * (-(turn * turn) / (double)((2 * i + 1) * (2 * i)));
    for (int part = 0; part < 4; part += 2)
        for (long t = 0; t < length; t++) {
            const double fraction = (double)t / (double)length + (part ? 0.75 : 0.0);
            const double angle = fabs(fraction - floor(fraction) - 0.5) - 0.25, square = angle * angle;
            double wave = sine[11];
            for (int i = 10; i >= 0; i--) wave = wave * square + sine[i];
            const double value = wave * angle, first = (value + first_shift) - first_shift;
            to[part * stride + t] = first;
            to[(part + 1) * stride + t] = ((value - first) + rest_shift) - rest_shift;
        }
}

/* `Series.spectrum` of all features: `filled` is `[steps][features]`, on the grid. */
static TARGET void NAMED(spectrum)(const struct Summaries *summaries, const struct Room *room, long length)
{
    const long features = summaries->features, stride = room->stride;
    double *restrict sums = room->sums;
    NAMED(waves)(length, stride, room->waves);
    for (long k = 0; k <= length / 2; k++) {
        memset(sums, 0, 4 * features * sizeof *sums);
        for (long t = 0, at = 0; t < length; t++) {
            const double *restrict x = room->filled + t * features;
            for (int part = 0; part < 4; part++) {
                const double wave = room->waves[part * stride + at];
                for (long f = 0; f < features; f++) sums[part * features + f] += x[f] * wave;
            }
            at += k;
            if (at >= length) at -= length;
        }
        for (long f = 0; f < features; f++) {
            const double real = sums[f] + sums[features + f], imaginary = sums[2 * features + f] + sums[3 * features + f];
            room->spectrum[f * stride + k] = sqrt(real * real + imaginary * imaginary);
        }
    }
}

/* `bands` of a feature; those of the next octave are `features` further. */
static TARGET void NAMED(bands)(const double *spectrum, long length, long features, double *spare, double *to)
{
    const long count = length / 2 + 1;
    const double edges[5] = {0.5, 0.25, 0.125, 0.0625, 0.0};
    spectrum++; /* without the mean's */
    const double whole = TOTAL_OF_PRODUCTS(spectrum, spectrum, count - 1, spare);
    for (int octave = 0; octave < 4; octave++) {
        memset(spare, 0, (count + AT_ONCE) * sizeof *spare);
        for (long k = 1; k < count; k++) {
            const double frequency = (double)k / (double)length;
            if (frequency > edges[octave + 1] && frequency <= edges[octave]) spare[k] = spectrum[k - 1] * spectrum[k - 1];
        }
        to[octave * features] = whole > 0.0 ? TOTAL(spare, count) / whole : 0.0;
    }
}

/* `_interval_quantiles` of a feature: `steps` is the typical length, and `to` gets one number for each quantile. */
static TARGET void NAMED(interval_quantiles)(const struct Summaries *summaries, const struct Room *room, const double *values,
                                             long length, long steps, int level, double *to)
{
    const long count = 1L << level, intervals = intervals_at(steps, level), moved_by = (length + 2 * count - 1) / (2 * count);
    const long least = (steps >> level) - 1, numbers[2] = {1 + least / summaries->divisor, 1 + (least + 1) / summaries->divisor};
    double *sorted = room->sorted;
    for (long i = 0; i < intervals; i++) {
        const long index = i < count ? i : i - count, move = i < count ? 0 : moved_by;
        const long quantiles = numbers[is_larger(steps, level, index)];
        long begin = (index * length >> level) + move, end = ((index + 1) * length >> level) + move;
        begin = begin < length - 1 ? begin : length - 1;
        end = end > begin ? end : begin + 1;
        end = end < length ? end : length;
        const long size = end - begin;
        memcpy(sorted, values + begin, size * sizeof *sorted);
        memset(sorted + size, 0, AT_ONCE * sizeof *sorted);
        const double mean = quantiles > 1 ? TOTAL(sorted, size) / (double)size : 0.0, step = 1.0 / (double)(quantiles - 1);
        sort(sorted, room->spare, size);
        for (long q = 0; q < quantiles; q++) {
            const double share = quantiles == 1 ? 0.5 : q == quantiles - 1 ? 1.0 : (double)q * step;
            const double position = share * ((double)size - 1.0), below = floor(position);
            const long at = (long)below, next = at + 1 < size ? at + 1 : size - 1;
            const double quantile = sorted[at] + (sorted[next] - sorted[at]) * (position - below);
            *to++ = q % 2 ? quantile - mean : quantile;
        }
    }
}

/* `intervals` of a feature; `to` is where those of all features begin. */
static TARGET void NAMED(intervals)(const struct Summaries *summaries, const struct Room *room, long f, long length, double *to)
{
    const long stride = room->stride, count = room->counts[f], changes = count > 1 ? count - 1 : 1;
    const double *values = room->present + f * stride;
    double *change = room->spare + stride, *smooth = change + stride, *curvature = smooth + stride;
    for (long t = 0; t < changes; t++) change[t] = count > 1 ? values[t + 1] - values[t] : 0.0;
    for (long t = 0; t < changes; t++) {
        double sum = 0.0;
        for (long near = t - 2; near <= t + 2; near++) sum += change[near < 0 ? 0 : near < changes ? near : changes - 1];
        smooth[t] = sum / 5.0;
        curvature[t] = t < changes - 1 ? change[t + 1] - change[t] : 0.0;
    }
    const double *represented[] = {values, smooth, curvature, room->spectrum + f * stride};
    const long counts[] = {count, changes, changes > 1 ? changes - 1 : 1, length / 2 + 1};
    for (int i = 0; i < REPRESENTATIONS; i++)
        for (int level = 0; level < levels_of(summaries, i); level++) {
            const long steps = typical_steps(summaries, i), columns = summaries->columns[i][level];
            NAMED(interval_quantiles)(summaries, room, represented[i], counts[i], steps, level, to + f * columns);
            to += summaries->features * columns;
        }
}
