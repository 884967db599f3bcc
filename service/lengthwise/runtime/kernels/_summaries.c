/* Summaries of sequences (`lengthwise_export.summaries`), for onnxruntime.
 *
 *     values of a row -> each feature's present values -> numbers in float64 -> the chosen ones as float32
 *
 * A graph's own operators compute every step of a padded batch some hundred times. Here a feature's values stay in the
 * nearest cache. Sums are of numbers on a grid, on which they are exact in any order, and all else is rounded once by each
 * operation: so the bits are those of the graph's operators, of every instruction set, and of the row in any batch.
 *
 *     inputs   x [rows][steps][features], lengths [rows] int32, plan [n] int32
 *     outputs  table [rows][chosen]
 *
 * The plan is: features; a bit for each group, in the order of `enum Group`; and lists, each after its length: the shares of
 * quantiles, each as the two halves of a float64; lags; of intervals the typical length, the depth and the divisor; and the
 * chosen numbers, by their index among all.
 */
#include <float.h>
#include <math.h>

#include "_library.h"

enum Group { LENGTH, ENDS, MOMENTS, EXTREMES, QUANTILES, TREND, CHANGE, AUTOCORRELATION, MISSING, CORRELATIONS, BANDS, INTERVALS, GROUPS_IN_ALL };
#define MOST_FEATURES 4096
#define MOST_STEPS (1L << 20)
#define REPRESENTATIONS 4 /* values, changes, curvature, spectrum */
#define MOST_LEVELS 21
#define SLACK 16 /* what may be read behind an array */
#define TOGETHER 8 /* intervals that are sorted at once */
#define RANKS 4

struct Summaries {
    const struct Cells *cells;
    int32_t *plan;
    double *shares;
    const int32_t *lags, *chosen;
    long features, groups, quantiles, lag_count, chosen_count, count; /* `count`: of all numbers of a row */
    long typical, depth, divisor;                                     /* of intervals */
    long columns[REPRESENTATIONS][MOST_LEVELS];                       /* the quantiles at each level */
    int32_t *chosen_before;                                           /* for each number, how many before it are chosen */
};

/* Where the quantiles of an interval of a size lie among its ordered values: the value below, and which part of the way to the
 * next one. */
struct Ranks {
    long size, quantiles, *below;
    double *parts;
};

/* An interval, of which quantiles are written. */
struct Interval {
    const double *values;
    long size;
    const struct Ranks *ranks;
    double *to;
};

/* The memory for a row: arrays of one number a step, and the numbers of the row. */
struct Room {
    double *all, *deviations, *sorted, *spare, *present, *every, *filled, *spectrum, *waves, *sizes, *numbers;
    double *smooth, *curvature, *together; /* for intervals; the last has room for TOGETHER of them */
    const double **represented;            /* of each feature, what intervals are of, and its lengths */
    long *lengths, *counts;                /* the counts are of present values */
    struct Ranks *ranks;                   /* RANKS of them: of small and large intervals, each of even and odd size */
    long stride; /* between the features in `present`, the present values, in `every`, the deviations at all steps, ... */
};

/* The summaries for one instruction set. */
struct Cells {
    const char *name;
    void (*summarise)(const struct Summaries *, const struct Room *, const float *, long, float *);
};

static int has(const struct Summaries *summaries, enum Group group) { return summaries->groups >> group & 1; }

/* Orders numbers: a merge sort, from runs of one, two, four ... numbers. */
static void sort(double *numbers, double *spare, long count)
{
    enum { RUN = 16 };
    for (long begin = 0; begin < count; begin += RUN)
        for (long i = begin + 1; i < count && i < begin + RUN; i++) {
            const double number = numbers[i];
            long at = i;
            for (; at > begin && numbers[at - 1] > number; at--) numbers[at] = numbers[at - 1];
            numbers[at] = number;
        }
    for (long run = RUN; run < count; run *= 2) {
        for (long begin = 0; begin < count; begin += 2 * run) {
            const long middle = begin + run < count ? begin + run : count, end = middle + run < count ? middle + run : count;
            for (long one = begin, other = middle, to = begin; to < end; to++)
                spare[to] = other >= end || (one < middle && numbers[one] <= numbers[other]) ? numbers[one++] : numbers[other++];
        }
        memcpy(numbers, spare, count * sizeof *numbers);
    }
}

static int needs_spectrum(const struct Summaries *summaries) { return has(summaries, BANDS) || has(summaries, INTERVALS); }

/* The typical length of what intervals are of. */
static long typical_steps(const struct Summaries *summaries, int representation)
{
    const long typical = summaries->typical, steps = representation == 3 ? typical / 2 + 1 : typical - representation;
    return steps > 1 ? steps : 1;
}

/* How often intervals are halved: at a level there are 1, 2, 4, ... */
static int levels_of(const struct Summaries *summaries, int representation)
{
    int levels = 1;
    while (levels < summaries->depth && typical_steps(summaries, representation) >> levels) levels++;
    return levels;
}

/* The intervals at a level, with those moved by half, which are there if most of them have several steps. */
static long intervals_at(long steps, int level)
{
    const long count = 1L << level, larger = steps % count, median = (steps >> level) + ((count - 1) / 2 >= count - larger);
    return count > 1 && median > 1 ? 2 * count - 1 : count;
}

/* How many more values a typical interval has than the smallest at its level: 0 or 1. */
static int is_larger(long steps, int level, long index)
{
    return (int)(((index + 1) * steps >> level) - (index * steps >> level) - (steps >> level));
}

/* Counts the quantiles at each level, and returns those at all. */
static long count_quantiles(struct Summaries *summaries)
{
    long sum = 0;
    for (int i = 0; i < REPRESENTATIONS; i++)
        for (int level = 0; level < levels_of(summaries, i); level++) {
            const long steps = typical_steps(summaries, i), size = steps >> level, divisor = summaries->divisor;
            for (long index = 0; index < intervals_at(steps, level); index++)
                summaries->columns[i][level] += 1 + (size + is_larger(steps, level, index % (1L << level)) - 1) / divisor;
            sum += summaries->columns[i][level];
        }
    return sum;
}

#if defined(__x86_64__)
#define SET avx512
#include "_summaries_cells.h"

#define SET avx2
#include "_summaries_cells.h"
#endif

#define SET portable
#include "_summaries_cells.h"

#define CELLS(set) &(const struct Cells){#set, summarise_##set}
static const struct Cells *const KNOWN[] = {
#if defined(__x86_64__)
    CELLS(avx512), CELLS(avx2),
#endif
    CELLS(portable), NULL,
};

/* How many numbers a row has before some are chosen. */
static long numbers_of(struct Summaries *summaries)
{
    const long features = summaries->features;
    const long of_feature[GROUPS_IN_ALL] = {0, 2, 3, 4, summaries->quantiles, 2, 3, summaries->lag_count, 2, 0, 4,
                                            has(summaries, INTERVALS) ? count_quantiles(summaries) : 0};
    long count = has(summaries, LENGTH) + (has(summaries, CORRELATIONS) ? features * (features - 1) / 2 : 0);
    for (int group = 0; group < GROUPS_IN_ALL; group++) count += has(summaries, group) * features * of_feature[group];
    return count;
}

static void forget(void *kernel)
{
    struct Summaries *summaries = kernel;
    if (summaries) {
        free(summaries->plan);
        free(summaries->shares);
        free(summaries->chosen_before);
    }
    free(summaries);
}

/* Reads a list of the plan, whose entries have `size` numbers each; NULL if it is damaged. */
static const int32_t *list(const int32_t **at, const int32_t *end, long size, long *count)
{
    if (*at >= end || **at < 0 || **at > (end - *at - 1) / size) return NULL;
    const int32_t *entries = *at + 1;
    *count = **at;
    *at = entries + *count * size;
    return entries;
}

/* The summaries of a plan; NULL if it is damaged, or there is no memory. */
static struct Summaries *read_plan(const int32_t *plan, long size, const struct Cells *cells)
{
    struct Summaries *made = cells && size > 2 ? calloc(1, sizeof *made) : NULL;
    if (!made) return NULL;
    made->cells = cells;
    made->plan = malloc(size * sizeof *plan);
    if (made->plan) {
        memcpy(made->plan, plan, size * sizeof *plan);
        made->features = plan[0];
        made->groups = plan[1];
        const int32_t *at = made->plan + 2, *end = made->plan + size;
        const int32_t *shares = list(&at, end, 2, &made->quantiles);
        made->lags = shares ? list(&at, end, 1, &made->lag_count) : NULL;
        long three = 0;
        const int32_t *of_intervals = made->lags ? list(&at, end, 1, &three) : NULL;
        made->chosen = of_intervals ? list(&at, end, 1, &made->chosen_count) : NULL;
        int good = made->chosen && at == end && three == 3 && made->features > 0 && made->features <= MOST_FEATURES;
        if (good) {
            made->typical = of_intervals[0];
            made->depth = of_intervals[1];
            made->divisor = of_intervals[2];
        }
        good = good && made->typical > 0 && made->typical <= MOST_STEPS && made->depth > 0 && made->divisor > 0;
        good = good && made->groups > 0 && made->groups < 1L << GROUPS_IN_ALL;
        made->shares = good ? malloc((made->quantiles + 1) * sizeof *made->shares) : NULL;
        good = made->shares != NULL;
        if (good) memcpy(made->shares, shares, made->quantiles * sizeof *made->shares);
        made->count = good ? numbers_of(made) : 0;
        for (long i = 0; good && i < made->quantiles; i++) good = made->shares[i] >= 0 && made->shares[i] <= 1;
        for (long i = 0; good && i < made->lag_count; i++) good = made->lags[i] > 0;
        for (long i = 0; good && i < made->chosen_count; i++) good = made->chosen[i] >= 0 && made->chosen[i] < made->count;
        made->chosen_before = good ? calloc(made->count + 1, sizeof *made->chosen_before) : NULL;
        for (long i = 0; made->chosen_before && i < made->chosen_count; i++) made->chosen_before[made->chosen[i] + 1] = 1;
        for (long i = 0; made->chosen_before && i < made->count; i++) made->chosen_before[i + 1] += made->chosen_before[i];
        if (made->chosen_before) return made;
    }
    forget(made);
    return NULL;
}

static int make_room(struct Room *room, const struct Summaries *summaries, long steps)
{
    room->stride = steps + SLACK;
    const long features = summaries->features, each = features * room->stride, spectrum = needs_spectrum(summaries) ? each : 0;
    const long every = has(summaries, CORRELATIONS) ? each : 0, intervals = has(summaries, INTERVALS) ? each : 0;
    const long quantiles = 2 + summaries->typical / summaries->divisor; /* of an interval, at most */
    const long doubles = (7 + TOGETHER) * room->stride + each + every + 2 * (spectrum + intervals) + features;
    room->all = calloc(doubles + RANKS * quantiles + summaries->count, sizeof *room->all);
    room->counts = calloc(features * (1 + REPRESENTATIONS) + RANKS * quantiles, sizeof *room->counts);
    room->represented = calloc(features * REPRESENTATIONS, sizeof *room->represented);
    if (!room->all || !room->counts || !room->represented) return 0;
    room->lengths = room->counts + features;
    for (int i = 0; i < RANKS; i++) {
        room->ranks[i].below = room->lengths + features * REPRESENTATIONS + i * quantiles;
        room->ranks[i].parts = room->all + doubles + summaries->count + i * quantiles;
    }
    room->deviations = room->all;
    room->sorted = room->deviations + room->stride;
    room->spare = room->sorted + room->stride;
    room->waves = room->spare + room->stride;
    room->together = room->waves + 4 * room->stride;
    room->present = room->together + TOGETHER * room->stride;
    room->every = room->present + each;
    room->filled = room->every + every;
    room->spectrum = room->filled + spectrum;
    room->smooth = room->spectrum + spectrum;
    room->curvature = room->smooth + intervals;
    room->sizes = room->curvature + intervals;
    room->numbers = room->sizes + features;
    return 1;
}

/* ---- Onnxruntime's side. ---- */

enum { X, LENGTHS, PLAN };

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t size;
    const int32_t *plan = constant(info, PLAN, &size, 1);
    (void)op, (void)given;
    if (!plan) return status(ORT_FAIL, "a plan that is not constant");
    *kernel = read_plan(plan, size, summaries_kernels.chosen);
    return *kernel ? NULL : status(ORT_FAIL, "a damaged plan, or no memory");
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Summaries *summaries = kernel;
    struct Ranks ranks[RANKS] = {0};
    struct Room room = {.ranks = ranks};
    int good = 1;
    int64_t x[3], rows_of_lengths;
    const float *values = input(context, X, x, 3, &good);
    const int32_t *lengths = input(context, LENGTHS, &rows_of_lengths, 1, &good);
    if (!good || !values || !lengths || x[2] != summaries->features || rows_of_lengths != x[0]) return unfit_shapes();
    if (!are_lengths(lengths, x[0], x[1])) return unfit_length();
    float *to = NULL;
    OrtStatus *error = output(context, 0, (int64_t[]){x[0], summaries->chosen_count}, 2, &to);
    if (error || !to || !x[0]) return error;
    const int made = make_room(&room, summaries, x[1]);
    for (long row = 0; made && row < x[0]; row++) {
        summaries->cells->summarise(summaries, &room, values + row * x[1] * x[2], lengths[row], to + row * summaries->chosen_count);
        let_others_run();
    }
    free(room.all);
    free(room.counts);
    free(room.represented);
    return made ? NULL : no_memory();
}

static struct Operator OPERATORS[] = {
    {.name = "Summaries", .inputs = "fii", .outputs = "f", .create = create, .compute = compute, .destroy = forget},
    {.name = NULL},
};

static struct Domain DOMAINS[] = {{.name = "lengthwise.summaries", .operators = OPERATORS}, {0}};

struct Kernels summaries_kernels = {"summaries", KNOWN, NULL, DOMAINS};
