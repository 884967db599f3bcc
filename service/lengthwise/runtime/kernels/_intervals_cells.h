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

typedef double NAMED(Doubles) __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

/* `Series.spectrum` of all features: `filled` is `[steps][features]`, on the grid. A vector of features may reach into the next
 * step; what comes of that is not stored. */
static TARGET void NAMED(spectrum)(const struct Summaries *summaries, const struct Room *room, long length)
{
    const long features = summaries->features, stride = room->stride, lanes = LANES / 2;
    NAMED(waves)(length, stride, room->waves);
    for (long k = 0; k <= length / 2; k++)
        for (long first = 0; first < features; first += lanes) {
            NAMED(Doubles) sums[4] = {{0}};
            for (long t = 0, at = 0; t < length; t++) {
                const NAMED(Doubles) x = *(const NAMED(Doubles) *)(room->filled + t * features + first);
                for (int part = 0; part < 4; part++) sums[part] += x * room->waves[part * stride + at];
                at += k;
                if (at >= length) at -= length;
            }
            const NAMED(Doubles) real = sums[0] + sums[1], imaginary = sums[2] + sums[3];
            const NAMED(Doubles) squares = real * real + imaginary * imaginary;
            for (long f = 0; f < lanes && first + f < features; f++) room->spectrum[(first + f) * stride + k] = sqrt(squares[f]);
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

/* Orders each column of `numbers`, `[count][TOGETHER]`, by comparisons that no number decides: K. Batcher's merging of odd and
 * even places (D. Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M). */
static TARGET void NAMED(sort_together)(double *numbers, long count)
{
    for (long run = 1; run < count; run *= 2)
        for (long distance = run; distance; distance /= 2)
            for (long begin = distance < run ? distance : 0; begin + distance < count; begin += 2 * distance)
                for (long i = begin; i < begin + distance && i + distance < count; i++) {
                    if ((i ^ (i + distance)) >= 2 * run) continue; /* of two merges */
                    double *one = numbers + i * TOGETHER, *other = one + distance * TOGETHER;
                    for (int lane = 0; lane < TOGETHER; lane += LANES / 2) {
                        const NAMED(Doubles) x = *(const NAMED(Doubles) *)(one + lane), y = *(const NAMED(Doubles) *)(other + lane);
                        *(NAMED(Doubles) *)(one + lane) = SMALLER_DOUBLES(x, y);
                        *(NAMED(Doubles) *)(other + lane) = LARGER_DOUBLES(x, y);
                    }
                }
}

/* The mean of each column of `numbers`, as `Series.total` adds; behind the `size` numbers of a column there are zeros. */
INLINE void NAMED(means)(const double *numbers, long count, const struct Interval *intervals, double *to)
{
    for (int lane = 0; lane < TOGETHER; lane += LANES / 2) {
        NAMED(Doubles) shift = {0}, sum = {0};
        for (long t = 0; t < count; t++) {
            const NAMED(Doubles) x = *(const NAMED(Doubles) *)(numbers + t * TOGETHER + lane);
            shift = LARGER_DOUBLES(shift, LARGER_DOUBLES(x, -x));
        }
        shift *= 2097152.0; /* 2^21 */
        for (long t = 0; t < count; t++) sum += (*(const NAMED(Doubles) *)(numbers + t * TOGETHER + lane) + shift) - shift;
        *(NAMED(Doubles) *)(to + lane) = sum;
    }
    for (int lane = 0; lane < TOGETHER; lane++) to[lane] /= (double)intervals[lane].size;
}

/* The quantiles of TOGETHER intervals; `numbers` has room for `[size][TOGETHER]`. */
static TARGET void NAMED(quantiles_together)(const struct Interval *intervals, double *numbers)
{
    long most = 1, quantiles = 1;
    double means[TOGETHER] = {0};
    for (int lane = 0; lane < TOGETHER; lane++) {
        most = intervals[lane].size > most ? intervals[lane].size : most;
        quantiles = intervals[lane].ranks->quantiles > quantiles ? intervals[lane].ranks->quantiles : quantiles;
    }
    for (int lane = 0; lane < TOGETHER; lane++) {
        const struct Interval interval = intervals[lane];
        for (long t = 0; t < interval.size; t++) numbers[t * TOGETHER + lane] = interval.values[t];
        for (long t = interval.size; t < most; t++) numbers[t * TOGETHER + lane] = 0.0;
    }
    if (quantiles > 1) NAMED(means)(numbers, most, intervals, means);
    for (int lane = 0; lane < TOGETHER; lane++)
        for (long t = intervals[lane].size; t < most; t++) numbers[t * TOGETHER + lane] = INFINITY;
    NAMED(sort_together)(numbers, most);
    for (int lane = 0; lane < TOGETHER; lane++) {
        const struct Interval interval = intervals[lane];
        for (long q = 0; q < interval.ranks->quantiles; q++) {
            const double *at = numbers + interval.ranks->below[q] * TOGETHER + lane;
            const double high = at[interval.ranks->below[q] + 1 < interval.size ? TOGETHER : 0];
            const double quantile = *at + (high - *at) * interval.ranks->parts[q];
            interval.to[q] = q % 2 ? quantile - means[lane] : quantile;
        }
    }
}

/* Where the quantiles of an interval of a size lie, if they are not those of the last interval with these `ranks`. */
static TARGET void NAMED(rank)(struct Ranks *ranks, long size, long quantiles)
{
    if (ranks->size == size && ranks->quantiles == quantiles) return;
    const double step = 1.0 / (double)(quantiles - 1);
    for (long q = 0; q < quantiles; q++) {
        const double share = quantiles == 1 ? 0.5 : q == quantiles - 1 ? 1.0 : (double)q * step;
        const double position = share * ((double)size - 1.0);
        ranks->below[q] = (long)position;
        ranks->parts[q] = position - (double)ranks->below[q];
    }
    ranks->size = size;
    ranks->quantiles = quantiles;
}

/* Writes the quantiles of the intervals that wait, of which there are some, and returns how many wait then. */
INLINE int NAMED(flush)(struct Interval *waiting, int waits, double *numbers)
{
    for (int lane = waits; lane < TOGETHER; lane++) waiting[lane] = waiting[0];
    NAMED(quantiles_together)(waiting, numbers);
    return 0;
}

/* The values, smoothed changes, curvature and spectrum of a feature, of which intervals are; their `lengths`. */
static TARGET void NAMED(represent)(const struct Room *room, long f, long length, const double **represented, long *lengths)
{
    const long stride = room->stride, count = room->counts[f], changes = count > 1 ? count - 1 : 1;
    const double *values = room->present + f * stride;
    double *change = room->spare, *smooth = room->smooth + f * stride, *curvature = room->curvature + f * stride;
    for (long t = 0; t < changes; t++) change[t] = count > 1 ? values[t + 1] - values[t] : 0.0;
    for (long t = 0; t < changes; t++) {
        double sum = 0.0;
        for (long near = t - 2; near <= t + 2; near++) sum += change[near < 0 ? 0 : near < changes ? near : changes - 1];
        smooth[t] = sum / 5.0;
        curvature[t] = t < changes - 1 ? change[t + 1] - change[t] : 0.0;
    }
    const double *all[] = {values, smooth, curvature, room->spectrum + f * stride};
    const long counts[] = {count, changes, changes > 1 ? changes - 1 : 1, length / 2 + 1};
    memcpy(represented, all, sizeof all);
    memcpy(lengths, counts, sizeof counts);
}

/* `_interval_quantiles` at one level of a representation, of all features; `to` gets one number for each quantile. */
static TARGET void NAMED(of_level)(const struct Summaries *summaries, const struct Room *room, int representation, int level,
                                   double *to)
{
    const long count = 1L << level, typical = typical_steps(summaries, representation);
    const long intervals = intervals_at(typical, level), least = (typical >> level) - 1;
    const long numbers[2] = {1 + least / summaries->divisor, 1 + (least + 1) / summaries->divisor};
    struct Interval waiting[TOGETHER];
    int waits = 0;
    for (long f = 0; f < summaries->features; f++) {
        const double *values = room->represented[f * REPRESENTATIONS + representation];
        const long length = room->lengths[f * REPRESENTATIONS + representation], half = (length + 2 * count - 1) / (2 * count);
        for (long i = 0; i < intervals; i++) {
            const long index = i < count ? i : i - count, move = i < count ? 0 : half;
            const int larger = is_larger(typical, level, index);
            const int32_t *before = summaries->chosen_before + (to - room->numbers);
            to += numbers[larger];
            if (before[numbers[larger]] == before[0]) continue; /* none of them is chosen */
            long begin = (index * length >> level) + move, end = ((index + 1) * length >> level) + move;
            begin = begin < length - 1 ? begin : length - 1;
            end = end > begin ? end : begin + 1;
            end = end < length ? end : length;
            struct Ranks *ranks = &room->ranks[2 * larger + (end - begin) % 2];
            if (ranks->size != end - begin && waits) waits = NAMED(flush)(waiting, waits, room->together);
            NAMED(rank)(ranks, end - begin, numbers[larger]);
            waiting[waits++] = (struct Interval){values + begin, end - begin, ranks, to - numbers[larger]};
            if (waits == TOGETHER) waits = NAMED(flush)(waiting, waits, room->together);
        }
    }
    if (waits) NAMED(flush)(waiting, waits, room->together);
}

/* `intervals` of all features. */
static TARGET void NAMED(intervals)(const struct Summaries *summaries, const struct Room *room, long length, double *to)
{
    for (long f = 0; f < summaries->features; f++)
        NAMED(represent)(room, f, length, room->represented + f * REPRESENTATIONS, room->lengths + f * REPRESENTATIONS);
    for (int i = 0; i < REPRESENTATIONS; i++)
        for (int level = 0; level < levels_of(summaries, i); level++) {
            NAMED(of_level)(summaries, room, i, level, to);
            to += summaries->features * summaries->columns[i][level];
        }
}
