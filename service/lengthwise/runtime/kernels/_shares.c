/* Shares of steps at which fixed kernels are above biases (MiniRocket), for onnxruntime and for Python.
 *
 *     values of a row -> grid -> for each dilation and kernel: sum of channels -> results -> counts -> shares
 *
 * A graph's own operators write a bool and a float for each step, kernel and bias. Here a kernel's results stay in the
 * nearest cache, and a row costs its own steps. On the grid every sum is exact (`lengthwise_export.architecture.rocket`
 * says why), and a count is a whole number: so the bits are those of the graph's operators, of every instruction set, and
 * of the row in any batch. A row with NaN gets NaN.
 *
 *     inputs   x [rows][steps][channels], lengths [rows] int32, plan [n] int32, biases [shares]
 *     outputs  shares [rows][shares]
 *
 * The plan is: channels, bits of the grid, the exponent of its limit (`EACH_ITS_OWN`: that of each sequence), and for
 * each dilation: itself, biases of a kernel, and for each of the 84 kernels: whether it is only applied where all its
 * weights have a step, how many channels it reads, and which.
 * The shares are in the order of dilations, kernels, biases.
 */
#include <float.h>
#include <math.h>

#include "_library.h"

#define TAPS 9
#define KERNELS_IN_ALL 84
#define SMALLEST_POWER (-60)
#define LARGEST_POWER 120
#define EACH_ITS_OWN (LARGEST_POWER + 1)
#define BELOW_ALL (-FLT_MAX)
#define SUM_OF_LANES 6 /* adding up the lanes of a vector takes as long as some six vectors */
#define MOST_BITS 22
#define MOST_DILATION (1L << 24)
#define SLACK 16 /* what may be read and written behind an array: the widest vector */

/* The transform for one instruction set. */
struct Cells {
    const char *name;
    float (*largest)(const float *, long);
    void (*to_grid)(const float *, long, long, float, float, float *, long);
    void (*add_planes)(const float *, long, const int32_t *, long, long, float *);
    void (*add_taps)(const float *const *, long, float *);
    void (*results)(const float *, const float *, const float *, const float *, long, float *);
    void (*shares)(float *, long, const float *, long, int32_t *, float *);
};

#if defined(__x86_64__)
#define SET avx512
#include "_shares_cells.h"

#define SET avx2
#include "_shares_cells.h"
#endif

#define SET portable
#include "_shares_cells.h"

#define CELLS(set) \
    &(const struct Cells){#set, largest_##set, to_grid_##set, add_planes_##set, add_taps_##set, results_##set, shares_##set}
static const struct Cells *const KNOWN[] = {
#if defined(__x86_64__)
    CELLS(avx512), CELLS(avx2),
#endif
    CELLS(portable), NULL,
};

struct Shares {
    const struct Cells *cells;
    int32_t *plan;
    float *biases;
    long plan_size, channels, bits, power, count, longest, most_biases;
};

/* Reads the kernels of a dilation; gives where the next one begins, or 0 if the plan is damaged. */
static long skip_dilation(const struct Shares *shares, long at)
{
    const int32_t *plan = shares->plan;
    if (shares->plan_size - at < 2 || plan[at] < 1 || plan[at] > MOST_DILATION || plan[at + 1] < 1) return 0;
    at += 2;
    for (int kernel = 0; kernel < KERNELS_IN_ALL; kernel++) {
        if (shares->plan_size - at < 2 || (plan[at] & ~1) || plan[at + 1] < 1 || plan[at + 1] > shares->plan_size - at - 2) return 0;
        const long count = plan[at + 1];
        at += 2;
        for (long i = 0; i < count; i++)
            if (plan[at + i] < 0 || plan[at + i] >= shares->channels) return 0;
        at += count;
    }
    return at;
}

void forget_shares(struct Shares *shares)
{
    if (shares) {
        free(shares->plan);
        free(shares->biases);
    }
    free(shares);
}

/* The kernels of a plan; NULL if it is damaged, or there is no memory. */
struct Shares *make_shares(const int32_t *plan, long plan_size, const float *biases, long count)
{
    const struct Cells *cells = shares_kernels.chosen;
    struct Shares *made = cells && plan_size > 3 ? calloc(1, sizeof *made) : NULL;
    if (!made) return NULL;
    made->cells = cells;
    made->plan_size = plan_size;
    made->plan = malloc(plan_size * sizeof *plan);
    made->biases = calloc(count + SLACK, sizeof *biases);
    int good = made->plan && made->biases;
    if (good) {
        memcpy(made->plan, plan, plan_size * sizeof *plan);
        memcpy(made->biases, biases, count * sizeof *biases);
        made->channels = plan[0];
        made->bits = plan[1];
        made->power = plan[2];
        good = made->channels > 0 && made->bits > 0 && made->bits <= MOST_BITS;
        good = good && made->power >= SMALLEST_POWER && made->power <= EACH_ITS_OWN;
    }
    for (long at = 3, next; good && at < plan_size; at = next) {
        const long dilation = made->plan[at], size = at + 1 < plan_size ? made->plan[at + 1] : 0;
        next = skip_dilation(made, at);
        good = next && size <= (count - made->count) / KERNELS_IN_ALL;
        if (!good) break;
        made->count += KERNELS_IN_ALL * size;
        if (dilation > made->longest) made->longest = dilation;
        if (size > made->most_biases) made->most_biases = size;
    }
    if (good && made->count == count) return made;
    forget_shares(made);
    return NULL;
}

long channels_of(const struct Shares *shares) { return shares->channels; }

/* The memory for rows up to a length. */
struct Room {
    float *all, *planes, *around, *sums, *totals, *results, *zeros;
    int32_t *counts;
    long stride, margin;
};

/* What is before the first step stays 0. */
static int make_room(struct Room *room, const struct Shares *shares, long length)
{
    const long reach = TAPS / 2 * shares->longest;
    room->margin = reach < length ? reach : length;
    room->stride = length + SLACK;
    /* vectors are read from `margin` before the first step to `margin` and a vector behind the last */
    const long around = room->stride + 2 * room->margin + SLACK;
    room->all = calloc(shares->channels * room->stride + around + 3 * (room->stride + SLACK), sizeof(float));
    room->counts = malloc((shares->most_biases + SLACK) * sizeof *room->counts);
    if (!room->all || !room->counts) return 0;
    room->planes = room->all;
    room->around = room->planes + shares->channels * room->stride;
    room->sums = room->around + room->margin;
    room->totals = room->around + around;
    room->results = room->totals + room->stride + SLACK;
    room->zeros = room->results + room->stride + SLACK;
    return 1;
}

static void free_room(struct Room *room)
{
    free(room->all);
    free(room->counts);
}

/* The exponent of the limit of a sequence's grid, by its largest value. */
static int power_for(const struct Shares *shares, float largest)
{
    int exponent;
    if (shares->power != EACH_ITS_OWN) return (int)shares->power;
    if (largest > ldexpf(1.0f, LARGEST_POWER)) return LARGEST_POWER;
    const float half = frexpf(largest, &exponent);
    const int power = half == 0.5f ? exponent - 1 : exponent;
    return half == 0.0f || power < SMALLEST_POWER ? SMALLEST_POWER : power;
}

/* The sums of the channels that a kernel reads, zeros around them, and of all nine taps. */
static void read_channels(const struct Shares *shares, const struct Room *room, const int32_t *kernel, long length,
                          const float *const *taps)
{
    float *sums = room->sums;
    shares->cells->add_planes(room->planes, room->stride, kernel + 2, kernel[1], length, sums);
    memset(sums + length, 0, (room->margin + SLACK) * sizeof *sums);
    shares->cells->add_taps(taps, length, room->totals);
}

static int reads_alike(const int32_t *one, const int32_t *other)
{
    return one && one[1] == other[1] && !memcmp(one + 2, other + 2, one[1] * sizeof *one);
}

/* One row's shares; `x` is [length][channels]. */
static void transform(const struct Shares *shares, const struct Room *room, const float *x, long length, float *to)
{
    const struct Cells *cells = shares->cells;
    const float largest = length ? cells->largest(x, length * shares->channels) : NAN, *biases = shares->biases;
    if (largest != largest) {
        for (long i = 0; i < shares->count; i++) to[i] = NAN;
        return;
    }
    const int power = power_for(shares, largest);
    const float distance = ldexpf(1.0f, power - (int)shares->bits);
    cells->to_grid(x, length, shares->channels, ldexpf(1.0f, power), distance, room->planes, room->stride);
    for (const int32_t *at = shares->plan + 3, *end = shares->plan + shares->plan_size; at < end;) {
        const long dilation = at[0], size = at[1], reach = TAPS / 2 * dilation;
        const float *taps[TAPS];
        for (int tap = 0; tap < TAPS; tap++) {
            const long offset = (tap - TAPS / 2) * dilation;
            taps[tap] = offset < length && -offset < length ? room->sums + offset : room->zeros;
        }
        const int32_t *before = NULL;
        at += 2;
        for (int a = 0; a < TAPS; a++)
            for (int b = a + 1; b < TAPS; b++)
                for (int c = b + 1; c < TAPS; c++) {
                    if (!reads_alike(before, at)) read_channels(shares, room, at, length, taps);
                    cells->results(taps[a], taps[b], taps[c], room->totals, length, room->results);
                    const int is_inside = at[0] && length > 2 * reach;
                    const long steps = is_inside ? length - 2 * reach : length;
                    cells->shares(room->results + (is_inside ? reach : 0), steps, biases, size, room->counts, to);
                    to += size;
                    biases += size;
                    before = at;
                    at += 2 + at[1];
                }
    }
}

int transform_rows(const struct Shares *shares, const float *const *rows, const int32_t *lengths, long count, float *to)
{
    struct Room room = {0};
    long longest = 0;
    for (long row = 0; row < count; row++)
        if (lengths[row] > longest) longest = lengths[row];
    const int made = make_room(&room, shares, longest);
    for (long row = 0; made && row < count; row++) {
        transform(shares, &room, rows[row], lengths[row], to + row * shares->count);
        let_others_run();
    }
    free_room(&room);
    return made;
}

/* ---- Onnxruntime's side. ---- */

enum { X, LENGTHS, PLAN, BIASES };

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t plan_size, count;
    const int32_t *plan = constant(info, PLAN, &plan_size, 1);
    const float *biases = constant(info, BIASES, &count, 1);
    (void)op, (void)given;
    if (!plan || !biases) return status(ORT_FAIL, "kernels that are not constant");
    *kernel = make_shares(plan, plan_size, biases, count);
    return *kernel ? NULL : status(ORT_FAIL, "a damaged plan, or no memory");
}

static void destroy(void *kernel) { forget_shares(kernel); }

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Shares *shares = kernel;
    int good = 1;
    int64_t x[3], rows_of_lengths;
    const float *values = input(context, X, x, 3, &good);
    const int32_t *lengths = input(context, LENGTHS, &rows_of_lengths, 1, &good);
    if (!good || !values || !lengths || x[2] != shares->channels || rows_of_lengths != x[0])
        return unfit_shapes();
    if (!are_lengths(lengths, x[0], x[1])) return unfit_length();
    float *to = NULL;
    OrtStatus *error = output(context, 0, (int64_t[]){x[0], shares->count}, 2, &to);
    if (error || !to || !x[0]) return error;
    const float **rows = malloc(x[0] * sizeof *rows);
    for (long row = 0; rows && row < x[0]; row++) rows[row] = values + row * x[1] * x[2];
    const int made = rows && transform_rows(shares, rows, lengths, x[0], to);
    free(rows);
    return made ? NULL : no_memory();
}

static struct Operator OPERATORS[] = {
    {.name = "SharesAboveBiases", .inputs = "fiif", .outputs = "f", .create = create, .compute = compute, .destroy = destroy},
    {.name = NULL},
};

static struct Domain DOMAINS[] = {{.name = "lengthwise.rocket", .operators = OPERATORS}, {0}};

struct Kernels shares_kernels = {"shares", KNOWN, NULL, DOMAINS};
