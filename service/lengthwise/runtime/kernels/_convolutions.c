/* Convolutions along the steps, and what stands between them and their pooling, for onnxruntime.
 *
 *     values of a row -> convolutions, norms, maxima, sums, rectifiers -> the sum or the largest over the steps
 *
 * onnxruntime computes each operator for all rows up to the longest, with a mask before each that looks at several steps.
 * Here a row runs through all operators by itself, at its own length: nothing is masked, as what is past its end is not there,
 * and its values stay in the nearest caches. So its bits do not depend on the batch.
 *
 *     inputs   x [rows][steps][channels], lengths [rows] int32, plan [n] int32, numbers [m]
 *     outputs  pooled [rows][channels]
 *
 * The plan is: channels of x, slots, channels of the result, its slot and whether it is the largest (else the sum), and then
 * steps as in `struct Step`. A slot holds `[steps][width]` of one value; widths are multiples of FILLED, filled up with zeros.
 * Slot 0 has x at first. The numbers are weights `[taps][width][into]` behind biases `[into]`, and shifts behind scales.
 */
#include "_library.h"

#define FILLED 16
#define HEAD 5
#define MOST_STEPS_AWAY (1L << 20)
#define MOST_WIDTH (1L << 16)
#define MOST_SLOTS 256

/* The arithmetic for one instruction set. */
struct Cells {
    const char *name;
    void (*convolve)(const float *, long, long, long, long, const float *, const float *, float *, long);
    void (*scale)(const float *, long, long, const float *, float *);
    void (*combine)(const float *, const float *, long, float *);
    void (*largest)(const float *, long, long, long, float *);
    void (*total)(const float *, long, long, float *);
};

#if defined(__x86_64__)
#define SET avx512
#define WIDE 4
#define MOST_STEPS 6
#include "_convolutions_cells.h"

#define SET avx2
#define WIDE 2
#define MOST_STEPS 6
#include "_convolutions_cells.h"
#elif defined(__aarch64__)
#define SET neon
#define WIDE 4
#define MOST_STEPS 6
#include "_convolutions_cells.h"
#endif

#define CELLS(set) &(const struct Cells){#set, convolve_##set, scale_##set, combine_##set, largest_##set, total_##set}
static const struct Cells *const KNOWN[] = { /* none on other processors, where onnxruntime's own kernels run */
#if defined(__x86_64__)
    CELLS(avx512), CELLS(avx2),
#elif defined(__aarch64__)
    CELLS(neon),
#endif
    NULL,
};

enum Kind { CONVOLVE, SCALE, RECTIFY, ADD, POOL, COPY, KINDS };

/* One operator. Of a copy `left` is the channel where it begins in `to`; of a sum `other` is its second slot. */
struct Step {
    int32_t kind, from, other, to, width, into, taps, dilation, left, at;
};

struct Trunk {
    const struct Cells *cells;
    struct Step *steps;
    float *numbers;
    long count, channels, slots, outputs, result, is_largest, widest, reach;
};

static long filled(long channels) { return (channels + FILLED - 1) / FILLED * FILLED; }

static int is_width(long width) { return width > 0 && width <= MOST_WIDTH && width % FILLED == 0; }

/* How many numbers a step has. */
static int64_t numbers_of(const struct Step *step)
{
    if (step->kind == CONVOLVE) return step->into + (int64_t)step->taps * step->width * step->into;
    return step->kind == SCALE ? 2 * step->width : 0;
}

/* Whether a step stays within its slots, its numbers and a row's margins. */
static int is_good(const struct Trunk *trunk, const struct Step *step, int64_t count)
{
    const int64_t away = ((int64_t)step->taps - 1) * step->dilation;
    const int is_slot = step->from >= 0 && step->from < trunk->slots && step->to >= 0 && step->to < trunk->slots;
    const int is_apart = step->from != step->to || step->kind == SCALE || step->kind == RECTIFY || step->kind == ADD;
    if (step->kind < 0 || step->kind >= KINDS || !is_slot || !is_apart || !is_width(step->width) || !is_width(step->into)) return 0;
    if (step->kind == ADD && (step->other < 0 || step->other >= trunk->slots)) return 0;
    if (step->kind == COPY) return step->left >= 0 && step->left <= step->into - step->width;
    if (step->taps < 1 || step->dilation < 1 || away > MOST_STEPS_AWAY || step->left < 0 || step->left > away) return 0;
    return step->at >= 0 && step->at <= count - numbers_of(step);
}

static void destroy(void *kernel)
{
    struct Trunk *trunk = kernel;
    if (trunk) {
        free(trunk->steps);
        free(trunk->numbers);
    }
    free(trunk);
}

/* The operators of a plan; NULL if it is damaged, or there is no memory. */
static struct Trunk *read_plan(const int32_t *plan, int64_t size, const float *numbers, int64_t count)
{
    const int64_t fields = sizeof(struct Step) / sizeof *plan;
    struct Trunk *trunk = size > HEAD && (size - HEAD) % fields == 0 ? calloc(1, sizeof *trunk) : NULL;
    if (!trunk) return NULL;
    *trunk = (struct Trunk){.cells = convolution_kernels.chosen, .count = (size - HEAD) / fields, .channels = plan[0],
                            .slots = plan[1], .outputs = plan[2], .result = plan[3], .is_largest = plan[4]};
    trunk->steps = malloc((size - HEAD) * sizeof *plan);
    trunk->numbers = floats(count);
    int good = trunk->cells && trunk->steps && trunk->numbers && trunk->slots > 0 && trunk->slots <= MOST_SLOTS;
    good = good && trunk->channels > 0 && trunk->outputs > 0 && trunk->result >= 0 && trunk->result < trunk->slots;
    good = good && is_width(filled(trunk->channels)) && is_width(filled(trunk->outputs));
    if (good) {
        memcpy(trunk->steps, plan + HEAD, (size - HEAD) * sizeof *plan);
        memcpy(trunk->numbers, numbers, count * sizeof *numbers);
        trunk->widest = filled(trunk->channels > trunk->outputs ? trunk->channels : trunk->outputs);
    }
    for (long i = 0; good && i < trunk->count; i++) {
        const struct Step *step = trunk->steps + i;
        const long wide = step->width > step->into ? step->width : step->into, away = (step->taps - 1) * (long)step->dilation;
        good = is_good(trunk, step, count);
        if (good && wide > trunk->widest) trunk->widest = wide;
        if (good && step->kind == CONVOLVE && away > trunk->reach) trunk->reach = away;
    }
    if (good) return trunk;
    destroy(trunk);
    return NULL;
}

/* One operator, of a row of `length` steps. */
static void run(const struct Trunk *trunk, const struct Step *step, float *from, const float *other, float *to, long length)
{
    const struct Cells *cells = trunk->cells;
    const float *numbers = trunk->numbers + step->at;
    const long width = step->width, before = step->left, away = (step->taps - 1) * (long)step->dilation;
    switch (step->kind) {
    case CONVOLVE:
        memset(from - before * width, 0, before * width * sizeof *from);
        memset(from + length * width, 0, (away - before) * width * sizeof *from);
        cells->convolve(from - before * width, width, step->taps, step->dilation, length, numbers, numbers + step->into, to, step->into);
        break;
    case SCALE: cells->scale(from, width, length, numbers, to); break;
    case RECTIFY: cells->combine(from, NULL, length * width, to); break;
    case ADD: cells->combine(from, other, length * width, to); break;
    case POOL:
        for (long t = 0; t < length; t++) {
            const long first = t - before, end = first + step->taps;
            cells->largest(from, width, first < 0 ? 0 : first, end > length ? length : end, to + t * width);
        }
        break;
    case COPY:
        for (long t = 0; t < length; t++) memcpy(to + t * step->into + step->left, from + t * width, width * sizeof *to);
        break;
    }
}

/* ---- Onnxruntime's side. ---- */

enum { X, LENGTHS, PLAN, NUMBERS };

static OrtStatus *create(const OrtCustomOp *op, const OrtApi *given, const OrtKernelInfo *info, void **kernel)
{
    int64_t size, count;
    const int32_t *plan = constant(info, PLAN, &size, 1);
    const float *numbers = constant(info, NUMBERS, &count, 1);
    (void)op, (void)given;
    if (!plan || !numbers) return status(ORT_FAIL, "operators that are not constant");
    *kernel = read_plan(plan, size, numbers, count);
    return *kernel ? NULL : status(ORT_FAIL, "a damaged plan, or no memory");
}

static OrtStatus *compute(void *kernel, OrtKernelContext *context)
{
    const struct Trunk *trunk = kernel;
    int good = 1;
    int64_t x[3], rows_of_lengths;
    long longest = 0;
    const float *values = input(context, X, x, 3, &good);
    const int32_t *lengths = input(context, LENGTHS, &rows_of_lengths, 1, &good);
    if (!good || !values || !lengths || x[2] != trunk->channels || rows_of_lengths != x[0])
        return unfit_shapes();
    if (!are_lengths(lengths, x[0], x[1])) return unfit_length();
    float *pooled = NULL;
    OrtStatus *error = output(context, 0, (int64_t[]){x[0], trunk->outputs}, 2, &pooled);
    if (error || !pooled || !x[0]) return error;
    for (long row = 0; row < x[0]; row++)
        if (lengths[row] > longest) longest = lengths[row];
    const long slot = (longest + 2 * trunk->reach) * trunk->widest, channels = filled(trunk->channels), result = filled(trunk->outputs);
    float *all = floats(trunk->slots * slot + 2 * trunk->widest), *start = all + trunk->reach * trunk->widest;
    if (!all) return no_memory();
    float *sums = all + trunk->slots * slot;
    for (long row = 0; row < x[0]; row++) {
        const float *from = values + row * x[1] * x[2], *last = start + trunk->result * slot;
        const long length = lengths[row];
        for (long t = 0; t < length; t++) {
            memcpy(start + t * channels, from + t * x[2], x[2] * sizeof *from);
            memset(start + t * channels + x[2], 0, (channels - x[2]) * sizeof *from);
        }
        for (const struct Step *step = trunk->steps; step < trunk->steps + trunk->count; step++)
            run(trunk, step, start + step->from * slot, start + step->other * slot, start + step->to * slot, length);
        if (trunk->is_largest && length) trunk->cells->largest(last, result, 0, length, sums);
        else trunk->cells->total(last, result, length, sums);
        memcpy(pooled + row * trunk->outputs, sums, trunk->outputs * sizeof *sums);
        let_others_run();
    }
    free(all);
    return NULL;
}

static struct Operator OPERATORS[] = {
    {.name = "PooledConvolutions", .inputs = "fiif", .outputs = "f", .create = create, .compute = compute, .destroy = destroy},
    {.name = NULL},
};

static struct Domain DOMAINS[] = {{.name = "lengthwise.convolutions", .operators = OPERATORS}, {0}};

struct Kernels convolution_kernels = {"convolutions", KNOWN, NULL, DOMAINS};
